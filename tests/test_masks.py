"""Masks against their definition, position by position."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache
from oracle import config

from hlwq_mlx.gemma4.config import FULL, SLIDING, Gemma4Config
from hlwq_mlx.gemma4.masks import attention_masks, join_blocks, last_row

TEXT = Gemma4Config.from_dict(config("bidirectional")).text_config
WINDOW = 6


def filled(length):
    """One cache of each layer type that has seen `length` positions in one chunk."""
    caches = [RotatingKVCache(WINDOW, keep=0), RotatingKVCache(WINDOW, keep=0), KVCache()]
    for cache in caches if length else ():
        cache.update_and_fetch(mx.zeros((1, 1, length, 4)), mx.zeros((1, 1, length, 4)))
    return caches


def sees(query, key, window, runs):
    """Whether absolute position `query` sees `key`, as the specification says it."""
    in_block = runs.get(query) is not None and runs.get(query) == runs.get(key)
    return (key <= query or in_block) and (window is None or key > query - window)


def expand(mask, length, keys):
    """A mask as booleans [length, keys]."""
    if isinstance(mask, mx.array):
        return np.broadcast_to(np.array(mask), (1, 1, length, keys))[0, 0]
    rows = np.arange(keys - length, keys)[:, None]
    return (np.arange(keys) <= rows) if mask == "causal" else np.full((length, keys), True)


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
    joined = np.array(join_blocks(causal, vision))
    assert joined.shape == (2, 1, 3, 3)
    assert joined[0, 0].astype(int).tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert joined[1, 0].astype(int).tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]


def test_blocks_leave_padding_hidden():
    padded = mx.array([[[[False] * 3, [False, True, False], [False, True, True]]]])
    joined = np.array(join_blocks(padded, np.array([[False, True, True]])))
    assert joined[0, 0].astype(int).tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]


def test_last_row_is_what_the_last_query_sees():
    mask = mx.array([[True, False], [False, True]])
    assert np.array(last_row(mask)).tolist() == [[False, True]]
    assert last_row("causal") is None
    assert last_row(None) is None
