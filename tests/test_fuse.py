import mlx.core as mx
import numpy as np
import pytest
from metal_host import Checks, device
from mlx import nn

from hlwq_mlx.gemma4.text import MLP
from hlwq_mlx.quant import backend, codec, selftest
from hlwq_mlx.quant.fuse import fuse_gate_up
from hlwq_mlx.quant.layers import HLWQLinear, pad_table
from hlwq_mlx.quant.packing import pack_p32
from hlwq_mlx.quant.tables import centroids


def linear(columns, rows, bits=5, table="converged", seed=0, bias=False):
    weight = np.random.default_rng(seed).normal(size=(rows, columns)) / np.sqrt(columns)
    codes, norms = codec.encode(weight, centroids(table, bits))
    layer = HLWQLinear(columns, rows, bits, bias)
    layer.codes, layer.norms = mx.array(pack_p32(codes, bits)), mx.array(norms)
    layer.centroids = mx.array(pad_table(centroids(table, bits)))
    return layer


def mlp(columns=200, **of_up):
    block = MLP(columns, 96)
    block.gate_proj = linear(columns, 96)
    block.up_proj = linear(columns, 96, **{"seed": 1, **of_up})
    block.down_proj = linear(96, columns, seed=2)
    return block


def holder(*blocks):
    model = nn.Module()
    model.layers = list(blocks)
    return model


def test_a_fused_block_computes_the_same():
    block = mlp()
    x = mx.random.normal((2, 3, 200), key=mx.random.key(0))
    before = block(x)
    assert fuse_gate_up(holder(block, nn.RMSNorm(4))) == 1
    assert "gate_proj" not in block
    assert "up_proj" not in block
    assert block.gate_up.codes.shape == (192, 256 * 5 // 32)
    assert mx.allclose(block(x), before, rtol=1e-5, atol=1e-6)


def test_a_fused_block_on_metal(monkeypatch):
    block = mlp(columns=256)
    x = mx.random.normal((1, 1, 256), key=mx.random.key(0))
    before = block(x)
    fuse_gate_up(holder(block))
    selftest.is_sound.cache_clear()
    with device(Checks(is_watched=False)):
        monkeypatch.setattr(backend, "has_metal", lambda: True)
        after = block(x)
    assert type(block.gate_up.prepare()) is backend.Kernels
    difference = mx.linalg.norm(after - before) / mx.linalg.norm(before)
    assert difference < 2e-3, "tables of float16"
    selftest.is_sound.cache_clear()


@pytest.mark.parametrize(
    "of_up", [{"bits": 4}, {"table": "clip4_100"}, {"bias": True}], ids=["bits", "table", "bias"]
)
def test_layers_coded_differently_stay_apart(of_up):
    block = mlp(**of_up)
    assert fuse_gate_up(holder(block)) == 0
    assert "gate_up" not in block


def test_plain_layers_stay_apart():
    block = mlp()
    block.gate_proj = nn.Linear(200, 96, bias=False)
    assert fuse_gate_up(holder(block, MLP(8, 8))) == 0
