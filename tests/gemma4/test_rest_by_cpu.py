"""A layer behind its attention, by one native call: the bits of its parts, and when it is left."""

import mlx.core as mx
import numpy as np
import oracle
import pytest
from mlx import nn

from hlwq_mlx.errors import ShapeError
from hlwq_mlx.gemma4.config import Gemma4Config
from hlwq_mlx.gemma4.text import DecoderLayer
from hlwq_mlx.quant.backends.native import library as native
from hlwq_mlx.quant.backends.native.library import Norm, Rest, Weight
from hlwq_mlx.quant.fuse import blocks, fuse
from hlwq_mlx.quant.layers import HLWQLinear
from hlwq_mlx.quant.plain import keep_plain


def coded(linear, bits=5):
    rows, columns = linear.weight.shape
    layer = HLWQLinear(columns, rows, bits)
    layer.codes = mx.random.randint(0, 1 << 31, layer.codes.shape, mx.uint32, mx.random.key(rows))
    layer.norms = mx.random.uniform(0.01, 0.02, layer.norms.shape, mx.float16, mx.random.key(1))
    layer.centroids = mx.linspace(-3, 3, 1 << bits)
    return layer


@pytest.fixture(params=[5, 8], ids=["gate|up", "gate of another width"])
def layer(request):
    """A layer of the tiny model, its MLP coded and the matrices of its own input plain."""
    native.require_library()
    found = DecoderLayer(Gemma4Config.from_dict(oracle.config()).text_config, 0)
    for name, bits in {"gate_proj": request.param, "up_proj": 5, "down_proj": 5}.items():
        found.mlp[name] = coded(found.mlp[name], bits)
    for index, module in enumerate(found.leaf_modules().values()):
        if isinstance(module, nn.RMSNorm):
            module.weight = mx.random.normal(module.weight.shape, key=mx.random.key(index))
    found.layer_scalar = mx.array([0.7])
    keep_plain(found)
    for block in blocks(found):
        fuse(block)
    assert ("gate_up" in found.mlp) == (request.param == 5)
    return found


def inputs(layer, rows=3):
    H, d = layer.input_layernorm.weight.size, layer.per_layer_input_gate.weight.shape[0]
    return [mx.random.normal((2, rows, width), key=mx.random.key(width)) for width in (H, H, d)]


def apart(layer, *arguments):
    rest, layer._rest = layer._rest, lambda *_: None
    try:
        return layer._finish(*arguments)
    finally:
        layer._rest = rest


def same(found, wanted):
    np.testing.assert_array_equal(np.array(found[0]), np.array(wanted[0]))
    np.testing.assert_array_equal(np.array(found[1].plain), np.array(wanted[1].plain))


@pytest.mark.parametrize("has_own", [True, False])
@pytest.mark.parametrize("has_following", [True, False])
@pytest.mark.parametrize("rows", [1, 40, 70])  # of two sequences: 140 take two slices
def test_one_call_has_the_bits_of_the_parts(has_own, has_following, rows, layer):
    x, attended, own = inputs(layer, rows)
    arguments = x, attended, own if has_own else None
    following = nn.RMSNorm(x.shape[-1]) if has_following else None
    found = layer._rest(layer, *arguments, following)
    assert found is not None
    same(found, apart(layer, *arguments, following))


def test_it_follows_what_is_loaded_later(layer):
    arguments = (*inputs(layer), None)
    layer._finish(*arguments)
    layer.layer_scalar = mx.array([1.3])
    layer.mlp.down_proj.norms = 2 * layer.mlp.down_proj.norms
    layer.per_layer_projection.weight = layer.per_layer_projection.weight + 1
    same(layer._finish(*arguments), apart(layer, *arguments))


def test_what_is_not_all_native_is_left_to_the_parts(layer):
    x, attended, own = inputs(layer)
    assert layer._rest(layer, x.astype(mx.bfloat16), attended, own, None) is None
    layer.mlp.down_proj = nn.Identity()
    assert layer._rest(layer, x, attended, own, None) is None


def test_what_does_not_fit_is_refused():
    library = native.require_library()
    norm = Norm(np.ones(512, np.float32), 1e-6)
    weights = [Weight.plain(mx.zeros(shape)) for shape in ((64, 512), (512, 32))]
    with pytest.raises(ShapeError, match=r"needed a weight \[512, 32\], got \[64, 512\]"):
        Rest([norm, norm], weights[:1] * 2, [])
    with pytest.raises(ShapeError, match=r"needed a weight \[48, 512\], got \[64, 512\]"):
        Rest([norm, norm], [weights[0], Weight.plain(mx.zeros((32, 512))), weights[1]], [])
    rest, x = Rest([norm, norm], weights, []), np.ones((2, 512), np.float32)
    with pytest.raises(ShapeError, match="needed x, attended"):
        library.finish(rest, x, x[:1], None)
