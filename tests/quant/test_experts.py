"""Products with a stack of coded matrices: the twin's numbers, each row for itself, no copies."""

import mlx.core as mx
import numpy as np
import pytest

from hlwq_mlx.errors import ShapeError
from hlwq_mlx.quant.activation import Activation
from hlwq_mlx.quant.backends import choose
from hlwq_mlx.quant.backends.affine import AffineExperts
from hlwq_mlx.quant.backends.base import reference
from hlwq_mlx.quant.backends.dense import DenseExperts
from hlwq_mlx.quant.layers import HLWQExperts, pad_table
from hlwq_mlx.quant.matrix import CodedMatrix
from hlwq_mlx.quant.packing import pack_p32, unpack_p32
from hlwq_mlx.quant.tables import centroids

E, N, K = 5, 24, 256
CHOSEN = mx.array([[[0, 3], [4, 1], [3, 3]], [[2, 0], [1, 4], [0, 1]]], mx.uint32)
TOLERANCES = {DenseExperts: 2e-6, AffineExperts: 8e-3}  # of the norm; an image is within 6e-3


def stack(bits, table="clip4_100", experts=E, rows=N, columns=K):
    words, norms = mx.random.split(mx.random.key(bits))
    return CodedMatrix(
        mx.random.randint(0, 1 << 16, (experts * rows, columns * bits // 32), mx.uint32, words)
        * 65521,
        mx.random.uniform(0.5, 1.5, (experts * rows, columns // 128), mx.float16, norms),
        mx.array(pad_table(centroids(table, bits))),
        bits,
    )


def one(matrix, expert, count=E):
    """One matrix of a stack, coded by itself."""
    rows = matrix.shape[0] // count
    codes = unpack_p32(np.array(matrix.codes), matrix.bits, expert * rows, rows)
    norms = matrix.norms[expert * rows : (expert + 1) * rows]
    return CodedMatrix(mx.array(pack_p32(codes, matrix.bits)), norms, matrix.centroids, matrix.bits)


def wanted(x, chosen, matrix):
    """By the twin, row by row and expert by expert."""
    return mx.stack(
        [
            mx.concatenate([reference(row[None], one(matrix, expert)) for expert in experts])
            for row, experts in zip(
                x.reshape(-1, K), chosen.reshape(-1, chosen.shape[-1]).tolist(), strict=True
            )
        ]
    ).reshape(*chosen.shape, -1)


@pytest.mark.parametrize("make", [DenseExperts, AffineExperts])
@pytest.mark.parametrize(("bits", "table"), [(1, "clip4_100"), (3, "clip4_100"), (7, "converged")])
def test_every_row_meets_its_experts(make, bits, table):
    matrix = stack(bits, table)
    product = make(matrix, E)
    x = mx.random.normal((2, 3, K))
    got = product(Activation(x), CHOSEN)
    expected = wanted(x, CHOSEN, matrix)
    assert got.shape == (2, 3, 2, N)
    error = mx.linalg.norm(got - expected) / mx.linalg.norm(expected)
    assert error.item() < TOLERANCES[make]
    # As the second product of an expert: each of its own x.
    each = mx.random.normal((2, 3, 2, K))
    got = product(Activation(each), CHOSEN[..., None])
    expected = wanted(each, CHOSEN[..., None], matrix)
    error = mx.linalg.norm(got - expected) / mx.linalg.norm(expected)
    assert got.shape == (2, 3, 2, 1, N)
    assert error.item() < TOLERANCES[make]


@pytest.mark.parametrize("make", [DenseExperts, AffineExperts])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_row_has_the_same_bits_alone_and_in_company(make, dtype):
    product = make(stack(4), E)
    x = mx.random.normal((1, 70, K)).astype(dtype)
    experts = mx.random.randint(0, E, (1, 70, 2)).astype(mx.uint32)
    alone = [product(Activation(x[:, i : i + 1]), experts[:, i : i + 1]) for i in range(70)]
    assert alone[0].dtype == dtype
    for count in (2, 8, 70):
        got = product(Activation(x[:, :count]), experts[:, :count])
        assert mx.array_equal(got, mx.concatenate(alone[:count], axis=1))
    turned = product(Activation(x[0][:, None]), experts[0][:, None])
    assert mx.array_equal(turned[:, 0], got[0])


def test_no_expert_is_copied():
    matrix = stack(4, experts=64, rows=512, columns=1024)
    product = AffineExperts(matrix, 64)
    x = Activation(mx.random.normal((1, 1, 1024)))
    mx.eval(x.plain)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(product(x, mx.array([[[5, 60]]], mx.uint32)))
    assert mx.get_peak_memory() - before < 512 * 1024


@pytest.mark.usefixtures("by_stock")
@pytest.mark.parametrize(("limit", "kind"), [(E * N * K, DenseExperts), (0, AffineExperts)])
def test_small_stacks_are_dense_and_large_ones_images(limit, kind, monkeypatch):
    monkeypatch.setattr(choose, "DENSE_WEIGHTS", limit)
    assert type(choose.prepare_experts(stack(4), E)) is kind


def test_a_layer_refuses_another_width():
    layer = HLWQExperts(E, 200, N, 4)
    assert layer(mx.zeros((1, 2, 200)), CHOSEN[:1, :2]).shape == (1, 2, 2, N)
    with pytest.raises(ShapeError, match=r"^\[layers.HLWQExperts\] needed x \[..., 200\], got"):
        layer(mx.zeros((1, 2, 256)), CHOSEN[:1, :2])
