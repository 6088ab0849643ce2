"""The text stack's own formulas: scales and their rounding, gating, per-layer inputs, the head."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from oracle import fresh_model, model

from hlwq_mlx.folder import published
from hlwq_mlx.gemma4.config import Gemma4Config
from hlwq_mlx.gemma4.text import TextModel, scaled
from hlwq_mlx.quant.ops import gelu_mul

E4B = published.e4b_config()


def bfloat16(x):
    """Round float64 values to bfloat16 once, as float32."""
    return np.array(mx.array(x.astype(np.float32)).astype(mx.bfloat16).astype(mx.float32))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_gelu_mul_follows_the_tanh_approximation():
    gate = np.linspace(-8, 8, 1001, dtype=np.float32)
    got = gelu_mul(mx.array(gate), mx.full(gate.shape, 2.0))
    np.testing.assert_allclose(np.array(got), 2 * gelu(gate.astype(np.float64)), rtol=0, atol=2e-6)


def test_gelu_mul_rounds_gelu_to_bfloat16_once():
    gate = mx.array(np.linspace(-4, 4, 801)).astype(mx.bfloat16)
    got = gelu_mul(gate, mx.ones_like(gate))
    assert got.dtype == mx.bfloat16
    wanted = gelu(np.array(gate.astype(mx.float32), np.float64))
    # One bfloat16 ulp where float32 falls on the other side of a rounding border, which is rare.
    off = np.array(got.astype(mx.float32)) != bfloat16(wanted)
    assert off.mean() < 0.01
    np.testing.assert_allclose(
        np.array(got.astype(mx.float32)), bfloat16(wanted), rtol=2**-7, atol=1e-5
    )


def test_scaled_rounds_the_product_not_the_factor():
    x = mx.array(np.linspace(1, 2, 129)).astype(mx.bfloat16)
    got = np.array(scaled(x, 2**-0.5).astype(mx.float32))
    wide = np.array(x.astype(mx.float32), np.float64)
    np.testing.assert_array_equal(got, bfloat16(wide * 2**-0.5))
    assert (got != np.array((x * 2**-0.5).astype(mx.float32))).any()


@pytest.mark.parametrize(("hidden_size", "scale"), [(2560, 50.5), (1536, 39.25)])
def test_the_embedding_scale_is_rounded_to_bfloat16(hidden_size, scale):
    e4b = Gemma4Config.from_dict(E4B).text_config
    text = TextModel(replace(e4b, hidden_size=hidden_size, vocab_size=8))
    text.set_dtype(mx.bfloat16)
    weight = mx.random.normal((8, hidden_size), key=mx.random.key(0)).astype(mx.bfloat16)
    text.embed_tokens.weight = weight
    x = text.embed(mx.array([[3]]))[0, 0]
    assert x.dtype == mx.bfloat16
    row = np.array(weight[3].astype(mx.float32), np.float64)
    np.testing.assert_array_equal(np.array(x.astype(mx.float32)), bfloat16(row * scale))
    assert (bfloat16(row * scale) != bfloat16(row * hidden_size**0.5)).any()


def test_activations_take_the_dtype_of_the_norms():
    tiny = fresh_model()
    tiny.set_dtype(mx.bfloat16)
    text = tiny.model.language_model
    text.embed_tokens.weight = text.embed_tokens.weight.astype(mx.float32)
    x = text.embed(mx.array([[3, 4]]))
    assert x.dtype == mx.bfloat16
    rows = mx.ones((1, 2, 64), mx.float32)
    assert {part.dtype for part in text.per_layer_inputs(x, rows)} == {mx.bfloat16}


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_per_layer_inputs_follow_the_formula(size):
    text = model().model.language_model
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 64)) * size
    rows = rng.normal(size=(2, 3, 64))
    projection = np.array(text.per_layer_model_projection.weight, np.float64)
    weight = np.array(text.per_layer_projection_norm.weight, np.float64)
    context = ((x @ projection.T) * 64**-0.5).reshape(2, 3, 8, 8)
    context /= np.sqrt((context**2).mean(-1, keepdims=True) + 1e-6)
    wanted = (context * weight + rows.reshape(2, 3, 8, 8) * 8**0.5) * 2**-0.5
    got = text.per_layer_inputs(mx.array(x.astype(np.float32)), mx.array(rows.astype(np.float32)))
    assert [part.shape for part in got] == [(2, 3, 8)] * 8
    np.testing.assert_allclose(np.array(mx.stack(got, 2)), wanted, rtol=0, atol=3e-6)


def test_the_head_is_tied_unscaled_and_capped_in_float32():
    tiny = fresh_model()
    text = tiny.model.language_model
    h = mx.random.normal((1, 2, 64), key=mx.random.key(0)) * 9
    raw = np.array(h, np.float64) @ np.array(text.embed_tokens.weight, np.float64).T
    assert np.abs(raw).max() > 30
    np.testing.assert_allclose(np.array(text.logits(h)), 30 * np.tanh(raw / 30), rtol=0, atol=2e-5)
    text.config = replace(text.config, final_logit_softcapping=None)
    np.testing.assert_allclose(np.array(text.logits(h)), raw, rtol=0, atol=5e-5)


def test_layer_scalar_multiplies_the_whole_stream():
    tiny = fresh_model()
    layer = tiny.layers[5]
    x = mx.random.normal((1, 3, 64), key=mx.random.key(1))
    cache = tiny.make_cache()
    _, views = tiny.model.language_model.run_kv_layers(
        x, [mx.zeros((1, 3, 8))] * 8, dict.fromkeys(("full_attention", "sliding_attention")), cache
    )
    arguments = (x, None, views["sliding_attention"], mx.ones((1, 3, 8)), None)
    once, _ = layer(*arguments)
    layer.layer_scalar = layer.layer_scalar * 2
    twice, _ = layer(*arguments)
    np.testing.assert_array_equal(np.array(twice), 2 * np.array(once))
