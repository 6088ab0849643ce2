"""Coded and bounded caches: the same answers as far as they can be, shared layers included."""

import mlx.core as mx
import numpy as np
import pytest
import tiny
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

from hlwq_mlx.errors import RequestError
from hlwq_mlx.gemma4.caching import WHOLE, Caching, make_caches
from hlwq_mlx.gemma4.config import FULL
from hlwq_mlx.gemma4.masks import attention_masks

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
    assert [type(entry) for entry in cache] == [RotatingKVCache, QuantizedKVCache]
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
    """Seen by what reaches the logits: the sinks and the last positions, nothing between."""
    bound = 16
    _, cache = answer(model, Caching(max_kv_size=bound), chunks)
    full = cache[1]
    assert (full.keys.shape[2], full.offset) == (bound, len(IDS))
    _, whole = answer(model, WHOLE, chunks)
    kept = np.array(full._temporal_order(full.keys))
    everything = np.array(whole[1].keys[:, :, : len(IDS)])
    # The first layer's window of 8 is all that keys depend on, so that kept ones are equal.
    np.testing.assert_allclose(kept[:, :, :4], everything[:, :, :4], atol=1e-5)
    np.testing.assert_allclose(kept[:, :, 4:], everything[:, :, -(bound - 4) :], atol=1e-5)


def test_a_chunk_sees_the_sinks_of_a_bounded_cache(model):
    cache = model.make_cache(Caching(max_kv_size=8))
    model.fill_cache(mx.array(IDS[:20])[None], cache)
    hidden = ~np.array(cache[1].make_mask(6))  # what mlx-lm's own mask would hide
    assert hidden[5, :4].any() and not hidden[0, :8].any()
    assert attention_masks(model.args.text_config, cache, 6, None)[FULL] == "causal"
    assert attention_masks(model.args.text_config, cache, 1, None)[FULL] is None


def test_kinds_of_cache(model):
    text = model.args.text_config
    assert [type(entry) for entry in make_caches(text, WHOLE)] == [RotatingKVCache, KVCache]
    assert make_caches(text, Caching(max_kv_size=9))[1].keep == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_bits": 3}, r"\[kv_bits\] needed one of 4, 8, got 3"),
        ({"kv_bits": 4, "kv_group_size": 16}, r"\[kv_group_size\] needed one of 32, 64, 128"),
        ({"max_kv_size": 4}, r"\[max_kv_size\] needed more than 4, got 4"),
        ({"max_kv_size": 99, "kv_bits": 8}, r"\[max_kv_size\] needed to be alone, got kv_bits"),
    ],
)
def test_what_cannot_be_kept(options, message):
    with pytest.raises(RequestError, match=message):
        Caching(**options)


def test_a_group_has_to_divide_a_head():
    settings = tiny.config(even=False)
    model = tiny.dense_model(settings, tiny.make_weights(settings, has_towers=False))
    with pytest.raises(RequestError, match=r"\[kv_group_size\] needed a divisor of 32, .* got 64"):
        make_caches(model.args.text_config, Caching(kv_bits=8))
