"""Masks against their definition, position by position."""

import mlx.core as mx
import numpy as np
import pytest
from oracle import config

from hlwq_mlx.gemma4.caches import FullCache, SlidingCache
from hlwq_mlx.gemma4.config import FULL, SLIDING, Gemma4Config
from hlwq_mlx.gemma4.masks import Causal, Seen, attention_masks, join_blocks

TEXT = Gemma4Config.from_dict(config("bidirectional")).text_config
WINDOW = 6


def filled(length):
    """One cache of each layer type that has seen `length` positions in one chunk."""
    caches = [SlidingCache(WINDOW), SlidingCache(WINDOW), FullCache()]
    for cache in caches if length else ():
        cache.update_and_fetch(mx.zeros((1, 1, length, 4)), mx.zeros((1, 1, length, 4)))
    return caches


def sees(query, key, window, runs):
    """Whether absolute position `query` sees `key`, as the specification says it."""
    in_block = runs.get(query) is not None and runs.get(query) == runs.get(key)
    return (key <= query or in_block) and (window is None or key > query - window)


def expand(mask, length, keys):
    """A mask as booleans [length, keys]."""
    array = mask.array(length, keys) if isinstance(mask, Causal) else mask.pairs
    return np.broadcast_to(np.array(array), (1, 1, length, keys))[0, 0]


@pytest.mark.parametrize("cached", [0, 1, 4, 5, 6, 9])
def test_causal_and_windowed(cached):
    for length in (1, 2, 5, 6, 7, 12):
        check_masks(cached, length)


def check_masks(cached, length):
    masks = attention_masks(TEXT, filled(cached), length, None)
    for layer_type, window in ((FULL, None), (SLIDING, WINDOW)):
        held = min(cached, WINDOW - 1) if window else cached
        got = expand(masks[layer_type], length, held + length)
        start = cached - held
        for row in range(length):
            wanted = [sees(cached + row, start + k, window, {}) for k in range(held + length)]
            assert got[row].tolist() == wanted


@pytest.mark.parametrize("cached", [0, 3, 9])
def test_blocks_see_themselves_whole_in_sliding_layers_only(cached):
    vision = np.array([[0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0]], dtype=bool)
    length = vision.shape[1]
    runs = {cached + i: 1 for i in range(1, 9)} | {cached + i: 2 for i in (10, 11)}
    masks = attention_masks(TEXT, filled(cached), length, vision)
    assert expand(masks[FULL], length, cached + length).sum() == sum(
        cached + row + 1 for row in range(length)
    )
    held = min(cached, WINDOW - 1)
    got = expand(masks[SLIDING], length, held + length)
    for row in range(length):
        wanted = [sees(cached + row, cached - held + k, WINDOW, runs) for k in range(held + length)]
        assert got[row].tolist() == wanted


def test_each_sequence_of_a_batch_has_its_own_blocks():
    causal = mx.tril(mx.ones((3, 3))).astype(mx.bool_)
    vision = np.array([[True, True, False], [False, True, True]])
    joined = join_blocks(causal, vision).pairs
    assert joined.shape == (2, 1, 3, 3)
    assert joined[0, 0].astype(int).tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert joined[1, 0].astype(int).tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]


def test_blocks_leave_padding_hidden():
    padded = mx.array([[[[False] * 3, [False, True, False], [False, True, True]]]])
    joined = join_blocks(padded, np.array([[False, True, True]])).pairs
    assert joined[0, 0].astype(int).tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]


@pytest.mark.parametrize("window", [None, 3])
def test_a_span_is_what_its_queries_see(window):
    """Of 5 queries behind 4 keys: cut to a span, the mask shows the same pairs."""
    mask, cached, L = Causal(window), 4, 5
    whole = np.array(mask.array(L, cached + L))
    for start, stop in ((0, 1), (4, 5), (1, 4), (0, 5)):
        span = mask.span(start, stop, cached)
        assert not whole[start:stop, : span.start].any()
        assert not whole[start:stop, span.stop :].any()
        within = mask.within(stop - start, span.stop - span.start)
        if within is None:
            assert whole[start:stop, span].all()
        elif isinstance(within, str):
            causal = np.tri(
                stop - start, span.stop - span.start, span.stop - stop + start - span.start
            )
            assert whole[start:stop, span].tolist() == causal.astype(bool).tolist()
        else:
            assert np.array(within).tolist() == whole[start:stop, span].tolist()


def test_a_part_of_seen_pairs_has_the_keys_that_it_sees_and_no_more():
    rows = [[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    pairs = np.array(rows, dtype=bool)[None, None]
    for (start, stop), keys in (
        ((0, 1), slice(0, 4)),  # padding
        ((1, 2), slice(0, 2)),
        ((2, 4), slice(1, 4)),
        ((0, 4), slice(0, 4)),
    ):
        span, mask = Seen(pairs).part(start, stop, cached=1)
        assert span == keys
        assert np.array(mask).tolist() == pairs[..., start:stop, span].tolist()
