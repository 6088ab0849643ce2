"""Attention against its formula in float64, and views that outlive the ring buffer."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache
from oracle import model

from hlwq_mlx.gemma4.attention import BLOCK, SharedKV, attend_coded
from hlwq_mlx.gemma4.masks import Causal, Seen


def normed(x, weight=1.0):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight


def attend(attention, h, heads, kv_heads):
    """Causal attention of layer inputs h [L, H] at position 0 throughout, in float64."""
    weights = {k: np.array(v, np.float64) for k, v in tree_flatten(attention.parameters())}

    def project(name, count):
        return (h @ weights[f"{name}.weight"].T).reshape(len(h), count, -1)

    raw = project("k_proj", kv_heads)
    queries = normed(project("q_proj", heads), weights["q_norm.weight"])
    keys = normed(raw, weights["k_norm.weight"])
    values = normed(project("v_proj", kv_heads) if "v_proj.weight" in weights else raw)
    keys, values = (np.repeat(x, heads // kv_heads, axis=1) for x in (keys, values))
    scores = np.einsum("qnd,knd->nqk", queries, keys)
    scores = np.where(np.tri(len(h), dtype=bool), scores, -np.inf)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("nqk,knd->qnd", powers / powers.sum(-1, keepdims=True), values)
    return mixed.reshape(len(h), -1) @ weights["o_proj.weight"].T


@pytest.mark.parametrize(
    ("variant", "layer", "kv_heads"), [("plain", 0, 2), ("plain", 2, 2), ("k_eq_v", 2, 1)]
)
def test_attention_follows_the_formula(variant, layer, kv_heads):
    attention = model(variant).layers[layer].self_attn
    assert ("v_proj" in attention) == (variant == "plain")
    waves, attention._waves = attention._waves, mx.full(attention.head_dim // 2, mx.inf)
    h = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    x = mx.array(h)[None]
    got, view = attention.run_with_kv(x, Causal(None), KVCache())
    assert mx.array_equal(attention(x, view), got)
    attention._waves = waves
    np.testing.assert_allclose(
        np.array(got)[0], attend(attention, h.astype(np.float64), 4, kv_heads), rtol=0, atol=5e-6
    )


def test_waves_are_no_parameter():
    names = [name for name, _ in tree_flatten(model().layers[0].self_attn.parameters())]
    assert not [name for name in names if "waves" in name]


def test_a_view_holds_the_offset_before_and_the_keys_during_the_update():
    attention, cache = model().layers[0].self_attn, RotatingKVCache(6, keep=0)
    x = mx.random.normal((1, 11, 64), key=mx.random.key(0))
    attention.run_with_kv(x[:, :4], Causal(None), cache)
    _, view = attention.run_with_kv(x[:, 4:], None, cache)
    assert view.offset.item() == 4
    assert cache.offset == 11
    assert view.keys.shape == view.values.shape == (1, 2, 11, 16)
    attention.run_with_kv(x[:, :1], None, cache)
    assert cache.keys.shape[2] == 6
    assert view.keys.shape[2] == 11


@pytest.mark.parametrize("offset", [4, [4, 9]])
def test_the_last_view_is_that_of_the_last_query(offset):
    keys = mx.zeros((1, 2, 7, 16))
    view = SharedKV(keys, keys, mx.ones((3, 7), mx.bool_), mx.array(offset), KVCache()).last(3)
    assert view.keys is view.values is keys
    assert view.mask.shape == (1, 7)
    assert view.offset.tolist() == (mx.array(offset) + 2).tolist()


def test_the_last_query_alone_gives_the_last_row():
    attention = model().layers[4].self_attn
    x = mx.random.normal((1, 6, 64), key=mx.random.key(0))
    whole, view = attention.run_with_kv(x, Causal(None), KVCache())
    last = attention(x[:, -1:], view.last(6))
    np.testing.assert_allclose(np.array(whole[:, -1:]), np.array(last), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["none", "causal", "window", "batch"])
@pytest.mark.parametrize("bits", [4, 8])
def test_coded_attention_is_that_of_mlx_lm(kind, bits):
    cache = QuantizedKVCache(32, bits)
    keys, values, queries = (
        mx.random.normal((2, heads, L, 32), key=mx.random.key(heads))
        for heads, L in ((2, 9), (2, 9), (6, 7))
    )
    keys, values = cache.update_and_fetch(keys, values)
    window = mx.tri(7, 9, 2, mx.bool_) & ~mx.tri(7, 9, -2, mx.bool_)
    batch = mx.stack([window, mx.tri(7, 9, 2, mx.bool_)])[:, None]
    mask = {"none": None, "causal": "causal", "window": window, "batch": batch}[kind]
    got = attend_coded(queries, SharedKV(keys, values, mask, mx.array(2), cache), mask)
    wanted = scaled_dot_product_attention(queries, keys, values, cache, 1.0, mask)
    np.testing.assert_allclose(np.array(got), np.array(wanted), atol=1e-6)


def test_coded_keys_are_not_copied_for_the_heads_that_share_them():
    """Peak memory beside the caches: of eight heads that share one, scores and no more."""
    heads, K = 8, 8192
    cache = QuantizedKVCache(64, 8)
    kept = cache.update_and_fetch(*(mx.random.normal((1, 1, K, 512)) for _ in range(2)))
    queries = mx.random.normal((1, heads, 2, 512))
    mx.eval(kept, queries)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(attend_coded(queries, SharedKV(*kept, None, mx.array(K - 2), cache), "causal"))
    assert mx.get_peak_memory() - before < 8 * heads * 2 * K * 4


@pytest.mark.parametrize("is_array", [False, True])
@pytest.mark.parametrize("bits", [None, 8])
def test_many_queries_go_block_by_block(monkeypatch, is_array, bits):
    cache = QuantizedKVCache(32, bits) if bits else KVCache()
    keys, values, queries = (
        mx.random.normal((1, heads, L, 32), key=mx.random.key(heads))
        for heads, L in ((2, 9), (2, 9), (4, 7))
    )
    keys, values = cache.update_and_fetch(keys, values)
    row, column = mx.arange(7)[:, None] + 2, mx.arange(9)
    mask = (row >= column) & (column > row - 4) if is_array else Causal(None)
    view = SharedKV(keys, values, mask, mx.array(2), cache)
    whole = view.attend(queries)
    monkeypatch.setattr("hlwq_mlx.gemma4.attention.SCORES", 3 * 4 * 9)
    np.testing.assert_allclose(np.array(view.attend(queries)), np.array(whole), atol=1e-6)
    assert not np.allclose(np.array(whole[:, :, 1:]), np.array(whole[:, :, :-1]), atol=1e-2)


@pytest.mark.usefixtures("by_stock")
@pytest.mark.parametrize("kind", ["full", "window", "seen"])
def test_a_chunk_scores_few_keys_that_it_does_not_see(monkeypatch, kind):
    L, K, window = 3 * BLOCK, 3 * BLOCK + 40, 50
    causal = Causal(None if kind == "full" else window)
    pairs = np.array(causal.array(L, K))
    keys, values, queries = (
        mx.random.normal((1, heads, length, 16), key=mx.random.key(seed))
        for seed, (heads, length) in enumerate(((1, K), (1, K), (2, L)))
    )
    wanted = mx.fast.scaled_dot_product_attention(
        queries, keys, values, scale=1.0, mask=mx.array(pairs)
    )
    scored, run = [], mx.fast.scaled_dot_product_attention

    def spy(queries, keys, values, **options):
        scored.append(queries.shape[2] * keys.shape[2])
        return run(queries, keys, values, **options)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", spy)
    mask = Seen(pairs) if kind == "seen" else causal
    found = SharedKV(keys, values, mask, mx.array(K - L), KVCache()).attend(queries)
    np.testing.assert_allclose(np.array(found), np.array(wanted), atol=1e-6)
    # A block's queries score what any of them sees: of each, up to a block more than its own.
    assert pairs.sum() <= sum(scored) < pairs.sum() + L * BLOCK
