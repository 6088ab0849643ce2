import weakref
from contextlib import contextmanager
from dataclasses import replace

import mlx.core as mx
import numpy as np
import oracle
import pytest
from metal_host import Checks, device
from mlx import nn

from hlwq_mlx.folder import published
from hlwq_mlx.gemma4.attention import Attention
from hlwq_mlx.gemma4.caches import FullCache
from hlwq_mlx.gemma4.config import Gemma4Config
from hlwq_mlx.gemma4.masks import Causal
from hlwq_mlx.gemma4.text import MLP
from hlwq_mlx.gemma4.towers.vision import VisionTower
from hlwq_mlx.quant import codec, ops, selftest
from hlwq_mlx.quant import device as computer
from hlwq_mlx.quant.backends import metal
from hlwq_mlx.quant.fuse import blocks, fuse
from hlwq_mlx.quant.layers import HLWQLinear, pad_table
from hlwq_mlx.quant.packing import pack_p32, unpack_p32
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


def attention(variant="plain", layer=0, **of_last):
    """Attention on 64 columns with its projections coded, the last of them as asked."""
    args = Gemma4Config.from_dict(oracle.config(variant))
    block = Attention(args.text_config, layer)
    names = [name for name in ("q_proj", "k_proj", "v_proj") if name in block]
    for seed, name in enumerate(names):
        how = of_last if name == names[-1] else {}
        block[name] = linear(64, block[name].weight.shape[0], **{"seed": seed, **how})
    return block


def attend(block):
    x = mx.random.normal((2, 9, 64), key=mx.random.key(0))
    return block.run_with_kv(x, Causal(None), FullCache())[0]


@contextmanager
def on_metal(monkeypatch):
    """The Metal host in place of a GPU, with nothing known about its kernels yet."""
    selftest.forget()
    with device(Checks(is_watched=False)), monkeypatch.context() as patch:
        patch.setattr(computer, "has_metal", lambda: True)
        yield
    selftest.forget()


def fuse_all(*parts):
    """Fuse what is in a model of these parts; count it."""
    model = nn.Module()
    model.layers = list(parts)
    return sum(len(fuse(block)) for block in blocks(model))


def test_a_fused_block_computes_the_same():
    block = mlp()
    x = mx.random.normal((2, 3, 200), key=mx.random.key(0))
    before = block(x)
    assert fuse_all(block, nn.RMSNorm(4)) == 1
    assert "gate_proj" not in block
    assert "up_proj" not in block
    assert block.gate_up.codes.shape == (192, 256 * 5 // 32)
    assert mx.allclose(block(x), before, rtol=1e-5, atol=1e-6)


def test_a_gate_as_wide_as_e4b_s_is_a_kernel(monkeypatch):
    block = MLP(128, 10240)
    with on_metal(monkeypatch):
        assert fuse_all(block) == 0
    assert block.ops != ops.PLAIN
    assert block.ops.residual_norm is ops.residual_norm


def test_a_fused_block_on_metal_equals_the_plain_one(monkeypatch):
    block = mlp(columns=256)
    x = mx.random.normal((1, 1, 256), key=mx.random.key(0))
    before = block(x)
    with on_metal(monkeypatch):
        fuse_all(block)
        after = block(x)
        assert type(block.gate_up.prepare()) is metal.MetalGateUp
    difference = mx.linalg.norm(after - before) / mx.linalg.norm(before)
    assert difference < 2e-3, "tables of float16"


def test_a_tower_has_nothing_to_fuse(monkeypatch):
    """Its layers are named as the text model's, and clipped."""
    config = Gemma4Config.from_dict(published.e4b_config()).vision_config
    tower = VisionTower(replace(config, num_hidden_layers=1))
    with on_metal(monkeypatch):
        assert fuse_all(tower) == 0


@pytest.mark.parametrize(
    ("variant", "layer", "rows"), [("plain", 0, 64 + 32 + 32), ("k_eq_v", 2, 128 + 32)]
)
def test_fused_attention_computes_the_same(variant, layer, rows):
    block = attention(variant, layer)
    before = attend(block)
    assert fuse_all(block) == 1
    assert not {"q_proj", "k_proj", "v_proj"} & set(block)
    assert block.qkv.norms.shape == (rows, 1)
    assert mx.allclose(attend(block), before, rtol=1e-5, atol=1e-6)


def test_a_layer_without_keys_has_nothing_to_fuse():
    block = attention(layer=5)
    assert "k_proj" not in block
    assert fuse_all(block) == 0


def test_what_is_replaced_is_freed():
    block = mlp()
    parts = [weakref.ref(block.gate_proj), weakref.ref(block.up_proj)]
    fuse(block)
    assert [part() for part in parts] == [None, None]


@pytest.mark.parametrize("make", [mlp, attention])
@pytest.mark.parametrize(
    "of_last", [{"bits": 4}, {"table": "clip4_100"}, {"bias": True}], ids=["bits", "table", "bias"]
)
def test_layers_coded_differently_stay_apart(make, of_last):
    block = make(**of_last)
    names = set(block)
    assert fuse_all(block) == 0
    assert set(block) == names


def test_plain_layers_stay_apart():
    block = mlp()
    block.gate_proj = nn.Linear(200, 96, bias=False)
    assert fuse_all(block, MLP(8, 8)) == 0


@pytest.mark.parametrize("bits", range(1, 9))
def test_joined_rows_are_those_of_the_parts(bits):
    """Of every width, since planes of the parts lie apart."""
    block = MLP(200, 96)
    block.gate_proj, block.up_proj = (linear(200, 96, bits, seed=seed) for seed in (0, 1))
    block.down_proj = linear(96, 200, seed=2)
    parts = [unpack_p32(np.array(each.codes), bits) for each in (block.gate_proj, block.up_proj)]
    (joined,) = fuse(block)
    codes = unpack_p32(np.array(joined.codes), bits)
    np.testing.assert_array_equal(codes, np.concatenate(parts))
