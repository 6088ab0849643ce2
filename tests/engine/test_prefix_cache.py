"""Prompts that begin as earlier ones did: the same answers as read anew, with less work."""

import itertools
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from oracle import TOLERANCE
from oracle import model as oracle_model

from hlwq_mlx.engine import prefix_cache
from hlwq_mlx.engine.answer import generate_tokens, prefill
from hlwq_mlx.engine.prefix_cache import PrefixCache, lattice
from hlwq_mlx.engine.request import Prepared, Request
from hlwq_mlx.errors import RequestError
from hlwq_mlx.gemma4.caches import WHOLE, Caching

FIRST = [2, 11, 45, 7, 130, 201, 9, 88, 64, 17, 255, 31, 5]
MORE = [90, 14, 77, 3, 160, 21, 48]
LONG = [*FIRST, *MORE, 33, 19, 250, 8, 71, 140]
STEPS = 12  # past the sliding window
CODED = Caching(8, 32)


@pytest.fixture(scope="module")
def model():
    return oracle_model()


class Answer(NamedTuple):
    """Its ids, their log probabilities [steps, V], and how many positions were not read."""

    ids: list[int]
    scores: np.ndarray
    begin: int


def made(model, caching=WHOLE, **options):
    return PrefixCache(partial(model.make_cache, caching), **options)


def answer(model, prompt, *, keys=(), steps=STEPS, prefix=None, **options):
    begins = []
    request = Request(
        Prepared(prompt, keys=keys),
        max_tokens=steps,
        on_prefill=lambda done, total: begins.append(done),
        **options,
    )
    found = [*generate_tokens(model, request, prefix)]
    scores = mx.stack([each.scores for each in found])
    return Answer([each.token for each in found], np.array(scores), begins[0])


def require_same(found, wanted, tolerance=TOLERANCE):
    assert found.ids == wanted.ids
    assert np.abs(found.scores - wanted.scores).max() < tolerance


def read(model, ids, caches, begin=0, step=512):
    """The logits behind a prompt."""
    return np.array(prefill(model, Request(Prepared(ids), prefill_step=step), caches, begin))


def kept(prefix, model, ids, positions, **options):
    """Read a prompt whole and keep positions of it."""
    caches = prefix.find([]).restore()
    read(model, ids, caches)
    for position in positions:
        assert prefix.keep(ids, caches, position, **options)


def lengths(prefix, ids):
    """How much of each longer and longer beginning of a prompt is known."""
    return [prefix.find(ids[:length]).length for length in range(1, len(ids) + 1)]


@pytest.mark.parametrize(
    ("caching", "prefill_step"),
    [
        (WHOLE, 3),
        (CODED, 3),
        (Caching(max_kv_size=64), 512),
        pytest.param(WHOLE, 512, marks=pytest.mark.slow),
    ],
)
def test_a_conversation_is_answered_as_if_read_anew(model, caching, prefill_step):
    options = {"caching": caching, "prefill_step": prefill_step}
    assert model.args.text_config.sliding_window < len(FIRST) + STEPS
    prefix, prompt = made(model, caching), FIRST
    for turn in range(3):
        found = answer(model, prompt, prefix=prefix, **options)
        wanted = answer(model, prompt, **options)
        # Coded, what was read at once and what was read one by one differ by their roundings.
        require_same(found, wanted, 0.05 if caching.kv_bits else TOLERANCE)
        # All but the last token of the answer.
        assert found.begin == (len(prompt) - len(MORE) - 1 if turn else 0)
        prompt = [*prompt, *found.ids, *MORE]


@pytest.mark.parametrize("caching", [WHOLE, CODED])
@pytest.mark.parametrize("position", [1, 4, 5, 6, 7, 11, 12, 13, len(LONG) - 1])
def test_what_is_gone_on_from_equals_what_was_read_bit_for_bit(model, caching, position):
    """The window is 6. Kernels of the same shapes run when a chunk ends at the snapshot.

    In other chunks sums are in another order, so the last bits differ.
    """
    assert model.args.text_config.sliding_window == 6
    for other in (LONG, [*LONG[:position], 99, 98, 97]):
        fresh = model.make_cache(caching)
        read(model, LONG[:position], fresh)
        wanted = read(model, other, fresh, position)

        prefix = made(model, caching)
        caches = prefix.find(LONG).restore()
        read(model, LONG[:position], caches)
        read(model, LONG, caches, position)  # the snapshot is not where the caches end
        is_there = prefix.keep(LONG, caches, position)
        assert is_there
        match = prefix.find(other)
        assert match.length == position
        assert (read(model, other, match.restore(), position) == wanted).all()
        # One after the other, each has caches of its own.
        assert (read(model, other, match.restore(), position) == wanted).all()


@pytest.mark.parametrize("position", range(1, len(LONG)))
def test_every_position_of_a_chunk_can_be_kept(model, position):
    prefix = made(model)
    kept(prefix, model, LONG, [position])
    wanted = read(model, LONG, model.make_cache())
    found = read(model, LONG, prefix.find(LONG).restore(), position)
    assert np.abs(found - wanted).max() < TOLERANCE


def test_a_window_that_is_gone_cannot_be_kept(model):
    prefix = made(model)
    caches = prefix.find(LONG).restore()
    read(model, LONG, caches, step=8)
    last = 8 * (len(LONG) // 8)
    assert [p for p in range(1, len(LONG) + 1) if prefix.keep(LONG, caches, p)] == [
        *range(last, len(LONG) + 1)
    ]
    assert not prefix.keep([*LONG, 1], caches, len(LONG) + 1)  # it is not read yet


@pytest.mark.parametrize(
    ("second", "known"),
    [
        (FIRST, len(FIRST) - 1),
        (FIRST[:-1], 0),
        ([*FIRST[:5], *MORE], 0),
        ([*FIRST, *MORE], len(FIRST) - 1),
        (MORE, 0),
    ],
    ids=["again", "cut", "changed", "longer", "new"],
)
def test_a_second_prompt_and_a_third(model, second, known):
    prefix = made(model)
    answer(model, FIRST, prefix=prefix)
    wanted = answer(model, second)
    found = answer(model, second, prefix=prefix)
    assert found.begin == known
    require_same(found, wanted)
    found = answer(model, second, prefix=prefix)
    assert found.begin == len(second) - 1
    require_same(found, wanted)


def test_where_prompts_part_a_third_one_goes_on(model):
    prefix = made(model)
    for middle, known in ((61, 0), (62, 0), (63, 9), (62, 13)):
        prompt = [*FIRST[:9], middle, *MORE[:4]]
        found = answer(model, prompt, prefix=prefix, steps=4)
        assert found.begin == known
        require_same(found, answer(model, prompt, steps=4))


def test_two_chats_and_an_edited_message(model):
    prefix = made(model)
    chats = {seed: [2, seed, *FIRST[1:]] for seed in (40, 41)}
    ends = dict.fromkeys(chats, 1)  # both begin with one token
    before = {}
    for turn in range(3):
        for seed, prompt in chats.items():
            found = answer(model, prompt, prefix=prefix, steps=4)
            require_same(found, answer(model, prompt, steps=4))
            assert found.begin == (ends[seed] if turn else 0)
            ends[seed] = len(prompt) + 3
            before[seed] = prompt
            chats[seed] = [*prompt, *found.ids, *MORE]
    edited = [*before[40][:-1], 99, *MORE]
    found = answer(model, edited, prefix=prefix, steps=4)
    assert found.begin == len(before[40]) - 1  # the end of the prompt that was edited
    require_same(found, answer(model, edited, steps=4))


def test_what_was_said_under_another_salt_is_not_known(model):
    prefix = made(model)
    kept(prefix, model, FIRST, [8], salt="one")
    assert prefix.find(FIRST, "one").length == 8
    for salt in ("", "two"):
        match = prefix.find(FIRST, salt)
        assert (match.length, match.branch) == (0, None)
        assert {cache.offset for cache in match.restore()} == {0}


MARKED = [2, 11, -7, -7, -7, -7, 88, 64, 17, -8, -8, 31]


@pytest.mark.parametrize("variant", ["plain", "bidirectional"])
def test_media_are_known_by_their_keys_and_never_split(variant):
    model = oracle_model(variant)
    soft = model.args.image_token_id
    other = [-9 if key == -8 else key for key in MARKED]
    prefix = made(model)
    for keys, known in ((MARKED, 0), (MARKED, 11), (other, 0), (other, 11), ([*MARKED, 5], 11)):
        ids = [soft if key < 0 else key for key in keys]
        found = answer(model, ids, keys=keys, prefix=prefix, steps=3)
        assert found.begin == known
        require_same(found, answer(model, ids, keys=keys, steps=3))
    longer = [*MARKED[:3], -6, -6, 3]  # parts within a picture: at its beginning
    assert prefix.find(longer).branch == 2


def test_no_snapshot_is_in_a_run(model):
    prefix = made(model)
    ids = [abs(key) for key in MARKED]
    caches = prefix.find(MARKED).restore()
    read(model, ids, caches)
    found = [p for p in range(1, len(ids) + 1) if prefix.keep(MARKED, caches, p)]
    assert found == [1, 2, 6, 7, 8, 9, 11, 12]
    assert lengths(prefix, MARKED) == [0, 1, 2, 2, 2, 2, 6, 7, 8, 9, 9, 11]
    prefix.forget()
    assert not prefix.keep(MARKED[:6], caches, 6)  # a picture may go on there


@pytest.mark.usefixtures("by_stock")  # where a token is read before it is known
def test_an_answer_that_is_ended_early_is_gone_on_with(model):
    wanted = answer(model, FIRST)
    prefix = made(model)
    stream = generate_tokens(model, Request(Prepared(FIRST), max_tokens=STEPS), prefix)
    taken = [next(stream).token for _ in range(4)]
    stream.close()
    assert taken == wanted.ids[:4]
    prompt = [*FIRST, *taken, *MORE]
    found = answer(model, prompt, prefix=prefix)
    assert found.begin == len(FIRST) + 4  # the last one was being read already
    require_same(found, answer(model, prompt))


def test_after_a_failure_the_next_prompt_is_right(model):
    prefix = made(model)
    prompt = [*FIRST, *answer(model, FIRST, prefix=prefix).ids]
    with pytest.raises(RequestError, match=r"needed ids from 0"):
        answer(model, [*prompt, 10**6, *MORE], prefix=prefix)
    require_same(answer(model, [*prompt, *MORE], prefix=prefix), answer(model, [*prompt, *MORE]))


@pytest.mark.parametrize("stop_at", (0, 4, 12, len(LONG)))
def test_after_an_interruption_the_next_prompt_is_right(model, stop_at):
    def on_prefill(done, total):
        if done >= stop_at:
            raise KeyboardInterrupt

    prefix = made(model)
    request = Request(Prepared(LONG), on_prefill=on_prefill, prefill_step=4)
    with pytest.raises(KeyboardInterrupt):
        next(generate_tokens(model, request, prefix))
    wanted = answer(model, LONG, steps=1)
    require_same(answer(model, LONG, prefix=prefix, steps=1), wanted)


def test_an_interrupted_answer_leaves_its_prompt(model):
    prefix = made(model)
    stream = generate_tokens(model, Request(Prepared(FIRST), max_tokens=STEPS), prefix)
    first = next(stream).token
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    prompt = [*FIRST, first, *MORE]
    found = answer(model, prompt, prefix=prefix)
    assert found.begin == len(FIRST) - 1
    require_same(found, answer(model, prompt))


def counted(prefix):
    """The bytes of the tree, once they are what MLX counts too."""
    before = mx.get_active_memory()
    nbytes = prefix.nbytes
    prefix.forget()
    mx.clear_cache()
    freed = before - mx.get_active_memory()
    return nbytes, freed


def test_bytes_are_those_that_are_really_held(model):
    prefix = made(model)
    prompt = LONG * 8
    kept(prefix, model, prompt, [len(prompt) - 1, 100, 7])
    kept(prefix, model, [*prompt[:50], *MORE], [53, 50])
    keys = 8 * (len(prompt) - 1 + 3)
    nbytes, freed = counted(prefix)
    assert 0 <= freed - (nbytes - keys) < 4096  # an allocator rounds up


def test_a_part_does_not_hold_the_whole(model):
    prefix = made(model)
    prompt = LONG * 8
    kept(prefix, model, prompt, [len(prompt) - 1])
    kept(prefix, model, [*prompt[:10], *MORE], [10 + len(MORE)])
    prefix.max_bytes = prefix.nbytes - 1
    prefix._evict()  # the long rest
    nbytes, freed = counted(prefix)
    assert 0 <= freed - (nbytes - 8 * 17) < 4096


def test_a_hundred_turns_stay_within_the_bound(model):
    prompt, turns = list(FIRST), 100
    unbounded = made(model)
    kept(unbounded, model, [3] * 1200, [1199])
    bound = unbounded.nbytes  # one conversation with a window or two, but not with a hundred
    prefix = made(model, max_bytes=bound)
    known = []
    for _ in range(turns):
        match = prefix.find(prompt)
        known.append(len(prompt) - match.length)
        caches = match.restore()
        read(model, prompt, caches, match.length)
        for position in match.positions(len(prompt)):
            assert prefix.keep(prompt, caches, position)
        assert prefix.nbytes <= bound
        prompt += [5, 6, 7, 8]
    assert set(known[1:]) == {5}
    assert len(prompt) > 400
    wanted = read(model, prompt, model.make_cache())
    match = prefix.find(prompt)
    assert np.abs(read(model, prompt, match.restore(), match.length) - wanted).max() < 1e-4


def test_many_short_chats_stay_within_the_bound_and_the_last_are_known(model):
    one = made(model)
    kept(one, model, [0, *FIRST], [len(FIRST)])
    prefix = made(model, max_bytes=5 * one.nbytes)
    chats = [[seed, *FIRST] for seed in range(50)]
    for chat in chats:
        kept(prefix, model, chat, [len(FIRST)])
        assert prefix.nbytes <= prefix.max_bytes
    assert [prefix.find(chat).length for chat in chats] == [0] * 45 + [len(FIRST)] * 5


def test_keys_of_clients_are_forgotten_with_their_prefixes(model):
    """Any client may bring any key, as often as it likes."""
    one = made(model)
    kept(one, model, FIRST, [8])
    prefix = made(model, max_bytes=3 * one.nbytes)
    for salt in map(str, range(20)):
        kept(prefix, model, FIRST, [8], salt=salt)
    assert list(prefix._roots) == ["17", "18", "19"]


def test_what_is_least_worth_is_dropped_first(model):
    prefix = made(model)
    kept(prefix, model, LONG, [3], is_system=True)
    kept(prefix, model, LONG, [8, 15, 24])
    kept(prefix, model, [*LONG[:15], *MORE], [15 + len(MORE)])
    tail = [*LONG[:15], *MORE, 1]

    def states():
        """Use all, the first ones last, and return where one can go on."""
        found = (
            prefix.find(tail).length,
            *(prefix.find(LONG[: end + 1]).length for end in (24, 15, 8, 3)),
        )
        return sorted({*found})

    assert states() == [3, 8, 15, 22, 24]
    dropped = []
    while prefix.nbytes:
        prefix.max_bytes = prefix.nbytes - 1
        prefix._evict()
        dropped.append(states())
    # The window on the way, though it was used; the leaf that was used least recently, behind
    # which the place where prompts parted is on the way too; the system's text last.
    found = [each for each, _ in itertools.groupby(dropped)]
    assert found == [[3, 15, 22, 24], [3, 15, 24], [3, 24], [3], [0]]


def test_a_window_that_was_dropped_is_kept_again_where_a_prompt_parts(model):
    prefix = made(model)
    kept(prefix, model, LONG, [8, 24])
    prefix.max_bytes = prefix.nbytes - 1
    prefix._evict()
    other = [*LONG[:8], *MORE]
    assert (prefix.find(other).length, prefix.find(other).branch) == (0, 8)
    prefix.max_bytes *= 2
    require_same(answer(model, other, prefix=prefix), answer(model, other))
    assert prefix.find([*LONG[:8], 3, 4]).length == 8


def test_what_is_too_large_does_not_drive_out_its_own_beginning(model):
    prefix = made(model)
    kept(prefix, model, LONG, [20])
    prefix.max_bytes = prefix.nbytes + 100
    caches = prefix.find(LONG).restore()
    read(model, LONG, caches, 20)
    assert not prefix.keep(LONG, caches, len(LONG))
    assert prefix.find(LONG).length == 20


def test_nothing_is_kept_where_there_is_no_room(model):
    prefix = made(model, max_bytes=0)
    answer(model, FIRST, prefix=prefix)
    assert prefix.nbytes == 0
    assert prefix.find(FIRST).length == 0


@pytest.mark.parametrize("length", [1, 1024, 1025, 3000, 9216, 9217, 12_000, 131_072])
def test_a_long_prompt_has_few_snapshots_on_its_way(length):
    found = list(lattice(length))
    assert len(found) <= 8
    assert all(0 < each < length for each in found)
    assert bool(found) == (length > 1024)
    if found:  # a longer prompt's are among a shorter one's
        assert all(each % found[0] == 0 for each in found)
        assert found[0] & (found[0] - 1) == 0


def test_a_long_prompt_is_kept_on_its_way(model, monkeypatch):
    monkeypatch.setattr(prefix_cache, "LATTICE_STEP", 16)
    prefix = made(model)
    answer(model, LONG * 2, prefix=prefix, steps=1)
    assert [prefix.find([*LONG, *LONG[:i], 1]).length for i in (5, 10)] == [16, 32]
