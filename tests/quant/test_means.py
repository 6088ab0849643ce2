"""Matrices with strong means: codes and means together are the weight, whoever multiplies."""

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from test_rows_in_company import assert_rows_are_alone, on_metal_host

from hlwq_mlx.errors import ShapeError
from hlwq_mlx.quant import codec, fuse, means
from hlwq_mlx.quant.activation import Activation
from hlwq_mlx.quant.backends import base, choose
from hlwq_mlx.quant.layers import HLWQEmbedding, HLWQExperts, HLWQLinear, pad_table
from hlwq_mlx.quant.packing import pack_p32
from hlwq_mlx.quant.tables import centroids

TOL = 8e-7  # float32 against float64, as in test_layers
METAL = pytest.mark.skipif(mx.metal.is_available(), reason="a GPU is asked by tests of its own")


def weight_of(rows, columns, mean=1.0):
    rng = np.random.default_rng(rows)
    weight = rng.standard_normal((rows, columns)) + mean * rng.standard_normal((rows, 1))
    return weight.astype(np.float32)


def filled(layer, weight):
    """Give a layer the codes and means of a weight; return it and what they stand for."""
    table = centroids("converged", layer.code_bits)
    taken, deviations = means.part(weight)
    codes, norms = codec.encode(deviations, table)
    layer.add_means()
    parameters = {
        "codes": mx.array(pack_p32(codes, layer.code_bits)),
        "norms": mx.array(norms),
        "centroids": mx.array(pad_table(table)),
        "means": mx.array(taken),
    }
    layer.load_weights(list(parameters.items()), strict=True)
    decoded = codec.decode(codes, norms, table)[:, : weight.shape[1]]
    return layer, (decoded + means.spread(taken, weight.shape[1])).astype(np.float64)


def random(*shape):
    return mx.random.normal(shape, key=mx.random.key(3))


def error(got, wanted):
    return np.linalg.norm(np.array(got, dtype=np.float64) - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("columns", [128, 200, 384])
def test_means_and_deviations_are_the_weight(columns):
    weight = weight_of(9, columns)
    taken, deviations = means.part(weight)
    blocks = [weight[:, at : at + 128].mean(axis=1) for at in range(0, columns, 128)]
    np.testing.assert_allclose(taken, np.stack(blocks, axis=1), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(deviations + means.spread(taken, columns), weight, rtol=0, atol=1e-6)


def test_codes_lose_no_more_than_those_of_a_weight_without_a_mean():
    def lost(mean):
        weight = weight_of(32, 384, mean)
        _, decoded = filled(HLWQLinear(384, 32, 5), weight)
        return np.square(decoded - weight).sum()

    assert lost(mean=8) < 1.05 * lost(mean=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_means_that_float16_cannot_hold_are_refused(value):
    with pytest.raises(ShapeError, match="means of blocks up to 65504"):
        means.part(np.full((2, 128), value, np.float32))


def check_products(columns=384):
    linear, weight = filled(HLWQLinear(columns, 70, 5), weight_of(70, columns))
    for count in (1, 3, 20):
        x = random(count, columns)
        assert error(linear(x), np.array(x, dtype=np.float64) @ weight.T) < TOL
    table, weight = filled(HLWQEmbedding(70, columns, 4), weight_of(70, columns))
    ids = mx.array([[3, 69], [0, 3]])
    for rows in (table(ids), table.decoded(ids.reshape(-1)).reshape(2, 2, -1)):
        assert error(rows, weight[np.array(ids)]) < TOL
    assert error(table.as_linear(x), np.array(x, dtype=np.float64) @ weight.T) < TOL


def check_experts(columns=384):
    stack, weight = filled(HLWQExperts(5, columns, 12, 4), weight_of(60, columns))
    x, chosen = random(7, columns), mx.array([[0, 4], [1, 2], [4, 3]] * 3, mx.uint32)[:7]
    wide = np.array(x, dtype=np.float64)
    wanted = np.einsum("rekc,rc->rek", weight.reshape(5, 12, -1)[np.array(chosen)], wide)
    assert error(stack(x, chosen), wanted) < TOL
    for i in range(7):
        alone = stack(x[i : i + 1], chosen[i : i + 1])
        assert mx.array_equal(alone[0], stack(x, chosen)[i])


class Nothing(base.ExpertProduct):
    """A product with codes that stand for zeros."""

    def __call__(self, x, experts):
        return mx.zeros((*experts.shape, 512))


def check_memory():
    """Multiply one row by means of which it meets a sixteenth: they alone become float32."""
    stack = mx.zeros((64 * 512, 32), mx.float16)
    product = means.ExpertsWithMeans(Nothing(), stack, 64)
    x, chosen = Activation(random(1, 32 * 128)), mx.array([[0, 9, 63, 5]], mx.uint32)
    mx.eval(x.rotated(base.rotate), product(x, chosen))
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(product(x, chosen))
    assert mx.get_peak_memory() - before < stack.nbytes


def check_expert_rows(count):
    stack, _ = filled(HLWQExperts(5, 384, 12, 4), weight_of(60, 384))
    x, chosen = random(count, 384), mx.random.randint(0, 5, (count, 2)).astype(mx.uint32)
    together = stack(x, chosen)
    for i in range(count):
        assert mx.array_equal(stack(x[i : i + 1], chosen[i : i + 1])[0], together[i])


def check_rows(counts):
    linear, _ = filled(HLWQLinear(384, 70, 5), weight_of(70, 384))
    assert_rows_are_alone(linear, random(max(counts), 384), counts=counts)


def test_by_the_library():
    check_products()
    check_products(200)
    check_experts()
    check_expert_rows(30)
    check_memory()
    check_rows((2, 3, 8, 20, 70))


@pytest.mark.usefixtures("by_stock")
def test_by_stock_mlx():
    check_products()
    check_products(200)
    check_experts()
    check_expert_rows(30)
    check_memory()
    check_rows((2, 3, 8, 20))


@pytest.mark.usefixtures("by_stock")
def test_rows_by_the_image(monkeypatch):
    monkeypatch.setattr(choose, "DENSE_WEIGHTS", 0)
    check_rows((2, 3, 8, 20))


@METAL
def test_by_kernels():
    with on_metal_host():
        check_rows((2, 8))


def test_layers_with_means_stay_apart():
    block = nn.Module()
    for name in fuse.GATE_UP:
        block[name], _ = filled(HLWQLinear(128, 64, 4), weight_of(64, 128))
    assert fuse.fuse(block) == []
    assert all(name in block for name in fuse.GATE_UP)
