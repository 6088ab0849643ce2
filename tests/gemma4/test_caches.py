"""Coded and bounded caches: the same answers as far as they can be, shared layers included."""

import mlx.core as mx
import numpy as np
import pytest
import tiny
from mlx.utils import tree_flatten, tree_map

from hlwq_mlx.errors import RequestError
from hlwq_mlx.gemma4.caches import (
    SINKS,
    STEP,
    WHOLE,
    BoundedCache,
    Caching,
    CodedCache,
    FullCache,
    Rows,
    SlidingCache,
    make_caches,
    rewind,
)

IDS = np.random.default_rng(5).integers(2, 320, 40)
ERRORS = {8: 0.02, 4: 0.4}  # of logits, relative; each width's own rounding of keys and values


@pytest.fixture(scope="module")
def model():
    settings = tiny.config()
    return tiny.dense_model(settings, tiny.make_weights(settings, has_towers=False))


def answer(model, caching, chunks=(17, 12)):
    """The logits behind a prompt that comes in chunks, and the caches then."""
    cache = model.make_cache(caching)
    ids, start = mx.array(IDS)[None], 0
    for length in chunks:
        model.fill_cache(ids[:, start : start + length], cache)
        start += length
    rows = [model.prefill(ids[:, start:-4], cache)[:, -1]]
    rows += [model(ids[:, at : at + 1], cache)[:, -1] for at in range(len(IDS) - 4, len(IDS))]
    return np.array(mx.concatenate(rows)), cache


def error(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("bits", [4, 8])
def test_coded_keys_and_values_serve_the_sharing_layers_too(model, bits):
    wanted, _ = answer(model, WHOLE)
    found, cache = answer(model, Caching(kv_bits=bits))
    assert [type(entry) for entry in cache] == [SlidingCache, CodedCache]
    assert cache[1].bits == bits
    assert 0 < error(found, wanted) < ERRORS[bits]


def test_more_bits_are_nearer(model):
    wanted, _ = answer(model, WHOLE)
    errors = [error(answer(model, Caching(kv_bits=bits))[0], wanted) for bits in (4, 8)]
    groups = [error(answer(model, Caching(4, group))[0], wanted) for group in (32, 128)]
    assert errors[1] < errors[0] / 4
    assert groups[0] < groups[1]


def test_a_bound_that_is_not_reached_changes_nothing(model):
    wanted, _ = answer(model, WHOLE)
    found, cache = answer(model, Caching(max_kv_size=64))
    assert cache[1].max_size == 64
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("chunks", [(17, 12), (5, 5, 5, 5, 5)])
def test_a_bounded_cache_forgets_the_middle_alone(model, chunks):
    """Seen by what it holds: the sinks and the last positions, as many as allowed."""
    bound = 16
    _, cache = answer(model, Caching(max_kv_size=bound), chunks)
    _, whole = answer(model, WHOLE, chunks)
    kept, everything = (np.array(each[1]._buffer.held()[0]) for each in (cache, whole))
    count = kept.shape[2]
    assert (bound - bound // 8 <= count <= bound, cache[1].offset) == (True, len(IDS))
    # The first layer's window of 8 is all that keys depend on, so that kept ones are equal.
    np.testing.assert_allclose(kept[:, :, :SINKS], everything[:, :, :SINKS], atol=1e-5)
    last = everything[:, :, -(count - SINKS) :]
    np.testing.assert_allclose(kept[:, :, SINKS:], last, atol=1e-5)


@pytest.mark.parametrize("window", [4, 300])
@pytest.mark.parametrize("lengths", [[1] * 12, [7, 1, 1, 1, 5], [2, 600, 1, 1, 3]])
def test_a_sliding_cache_returns_the_window_of_its_first_query(window, lengths):
    """Position by position, through growth and room made anew."""
    cache, start = SlidingCache(window), 0
    for length in lengths:
        new = mx.arange(start, start + length, dtype=mx.float32).reshape(1, 1, length, 1)
        keys, values = cache.update_and_fetch(new, -new)
        start += length
        wanted = list(range(max(0, start - length - window + 1), start))
        assert keys.reshape(-1).tolist() == wanted
        assert values.reshape(-1).tolist() == [-each for each in wanted]
        assert cache.offset == start
    assert cache.state[0].shape[2] <= window + max(lengths) + STEP


def test_a_window_of_whole_steps_is_not_copied_at_every_token():
    cache = SlidingCache(2 * STEP)
    copies, length = 0, 2 * STEP - 1
    for count in (length, *[1] * STEP):
        cache.update_and_fetch(*[mx.zeros((1, 1, count, 2))] * 2)
        copies += cache._buffer._start == 0 and count == 1
    assert copies < 3


def test_what_was_returned_outlives_the_next_update():
    cache = FullCache()
    first, _ = cache.update_and_fetch(*[mx.ones((1, 1, 3, 2))] * 2)
    cache.update_and_fetch(*[mx.zeros((1, 1, 2, 2))] * 2)
    assert first.tolist() == mx.ones((1, 1, 3, 2)).tolist()


@pytest.mark.parametrize("caching", [WHOLE, Caching(8, 32), Caching(max_kv_size=24)])
def test_rows_step_together_as_each_would_alone(model, caching):
    """Sequences of three lengths, past the window: bit for bit the logits of lone steps."""

    def begun():
        lone = [model.make_cache(caching) for _ in range(3)]
        for cache, length in zip(lone, (3, 20, 40), strict=True):
            model.fill_cache(mx.array(IDS[:length])[None], cache)
        return lone

    alone, together = begun(), begun()
    rows = [Rows(entries) for entries in zip(*together, strict=True)]
    for token in (5, 9, 200, 17):
        wanted = [model(mx.array([[token + i]]), cache) for i, cache in enumerate(alone)]
        found = model(mx.array([[token], [token + 1], [token + 2]]), rows)
        for i, each in enumerate(wanted):
            assert np.array_equal(np.array(found[i]), np.array(each[0]))


@pytest.mark.parametrize("caching", [WHOLE, Caching(8, 32)])
@pytest.mark.parametrize("begin", [2, 6, 30])
def test_a_few_tokens_in_one_pass_are_what_they_are_one_by_one(model, caching, begin):
    """Bit for bit, from before the window to past it: checking drafted tokens stands on this."""
    few, single = model.make_cache(caching), model.make_cache(caching)
    for cache in (few, single):
        model.fill_cache(mx.array(IDS[:begin])[None], cache)
    tokens = mx.array(IDS[begin : begin + 5])[None]
    found = model(tokens, few)
    for i in range(5):
        wanted = model(tokens[:, i : i + 1], single)
        assert np.array_equal(np.array(found[:, i]), np.array(wanted[:, 0])), i


MAKERS = {
    "full": FullCache,
    "sliding": lambda: SlidingCache(12),
    "wide": lambda: SlidingCache(300),
    "coded": lambda: CodedCache(8, 32),
    "bounded": lambda: BoundedCache(40),
    "tightly bounded": lambda: BoundedCache(SINKS + 1),
}


def same_arrays(found, wanted):
    """Whether keys and values, or their codes, scales and biases, are equal bit for bit."""
    pairs = zip(tree_flatten(found), tree_flatten(wanted), strict=True)
    return all(np.array_equal(np.array(each[1]), np.array(other[1])) for each, other in pairs)


@pytest.mark.parametrize("length_of_prompt", [30, 43, 60])  # the bound of 40 may be passed
@pytest.mark.parametrize("kind", MAKERS)
def test_a_rewound_cache_never_saw_what_was_dropped(kind, length_of_prompt):
    """Against one that took the other positions one by one: all that later queries see."""
    rng = np.random.default_rng(4)
    cache, single = MAKERS[kind](), MAKERS[kind]()
    prompt = mx.array(rng.standard_normal((1, 1, length_of_prompt, 32)), mx.float32)
    for each in (cache, single):
        each.update_and_fetch(prompt, -prompt)
    longest = 0
    for _ in range(150):
        length = int(rng.integers(1, min(9, cache.room + 1)))
        kept = int(rng.integers(1, length + 1))
        longest = max(longest, length - kept)
        new = mx.array(rng.standard_normal((1, 1, length, 32)), mx.float32)
        seen = cache.update_and_fetch(new, -new)
        for i in range(kept):
            one = single.update_and_fetch(new[:, :, i : i + 1], -new[:, :, i : i + 1])
            assert same_arrays(last(seen, length - 1 - i, one), one)
        cache.rewind(length - kept)
        assert cache.offset == single.offset
        assert same_arrays(cache.peek(), single.peek())
        assert cache.snapshot(0, cache.offset) is not None
    assert longest >= 3 or kind == "tightly bounded"


def last(seen, ahead, like):
    """What a query `ahead` positions before the last one sees: as many positions as `like` has."""
    count = tree_flatten(like)[0][1].shape[2]
    return tree_map(lambda array: array[:, :, : array.shape[2] - ahead][:, :, -count:], seen)


def test_snapshots_of_the_rewound_and_the_plain_are_equal(model):
    """A sliding cache keeps positions before its window, and no snapshot has them."""
    for caching in (WHOLE, Caching(8, 32), Caching(max_kv_size=99)):
        few, single = model.make_cache(caching), model.make_cache(caching)
        for cache in (few, single):
            model.fill_cache(mx.array(IDS[:25])[None], cache)
        model.check(mx.array(IDS[25:31])[None], few)
        rewind(few, 27)
        for token in IDS[25:27]:
            model(mx.array([[int(token)]]), single)
        for each, other in zip(few, single, strict=True):
            assert same_arrays(each.snapshot(0, 27), other.snapshot(0, 27))
            assert each.snapshot(0, 28) is None


def test_kinds_of_cache(model):
    text = model.args.text_config
    assert [type(entry) for entry in make_caches(text, WHOLE)] == [SlidingCache, FullCache]
    assert type(make_caches(text, Caching(max_kv_size=9))[1]) is BoundedCache


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_bits": 3}, r"\[kv_bits\] needed one of 4, 8, got 3"),
        ({"kv_bits": 4, "kv_group_size": 16}, r"\[kv_group_size\] needed one of 32, 64, 128"),
        ({"max_kv_size": 4}, r"\[max_kv_size\] needed more than 4, got 4"),
        ({"max_kv_size": 99, "kv_bits": 8}, r"\[max_kv_size\] needed to be alone, got kv_bits"),
    ],
)
def test_unknown_cache_options_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        Caching(**options)


def test_a_group_has_to_divide_a_head():
    settings = tiny.config(even=False)
    model = tiny.dense_model(settings, tiny.make_weights(settings, has_towers=False))
    with pytest.raises(RequestError, match=r"\[kv_group_size\] needed a divisor of 32, .* got 64"):
        make_caches(model.args.text_config, Caching(kv_bits=8))
