"""Kernels are used after they were tried, and are done without when they fail."""

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from metal_host import Checks, device
from mlx import nn

from hlwq_mlx.quant import codec, kernels, ops, selftest
from hlwq_mlx.quant import device as computer
from hlwq_mlx.quant.activation import Activation
from hlwq_mlx.quant.backends import choose, metal
from hlwq_mlx.quant.backends.base import reference, reference_geglu
from hlwq_mlx.quant.backends.dense import Dense
from hlwq_mlx.quant.chips import chips
from hlwq_mlx.quant.matrix import CodedMatrix
from hlwq_mlx.quant.selftest import random_matrix

MATRIX = random_matrix(5)
DECODED = chips()["M1"]._replace(qmm_rows=8)
FUSED = chips()["M1"]._replace(qmm_rows=64)
TOL = 1.5e-3  # tables, tiles and results of float16


@pytest.fixture(autouse=True)
def on_metal(monkeypatch):
    """Kernels run, and nothing is known about them yet."""
    selftest.forget()
    with device(Checks(is_watched=False)):
        monkeypatch.setattr(computer, "has_metal", lambda: True)
        monkeypatch.setattr(computer, "chip", lambda: FUSED)
        monkeypatch.setattr(computer, "activation_dtype", lambda: mx.float16)
        yield
        monkeypatch.undo()  # what a test put in the place of the host's kernel, before it is gone
    selftest.forget()


def activations(rows, dtype=mx.float16):
    return mx.random.normal((rows, 512), key=mx.random.key(rows)).astype(dtype)


def relative_error(got, expected):
    got, expected = (np.array(a.astype(mx.float32)).astype(np.float64) for a in (got, expected))
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def run(product, x):
    return product(Activation(x))


def record(monkeypatch, names=("qmv", "geglu", "qmm", "rotated_weight", "embed")):
    """The kernels called from here on, with how many rows each was given."""
    calls = []

    def recorded(name):
        kernel = getattr(kernels, name)

        def call(x, *arguments, **options):
            calls.append((name, (x if name != "rotated_weight" else x.norms).shape[0]))
            return kernel(x, *arguments, **options)

        return call

    for name in names:
        monkeypatch.setattr(kernels, name, recorded(name))
    return calls


@pytest.mark.parametrize(
    ("rows", "chip", "kernel"),
    [
        (1, FUSED, "qmv"),
        (8, DECODED, "qmv"),
        (9, FUSED, "qmm"),
        (64, FUSED, "qmm"),
        (65, FUSED, "rotated_weight"),
        (9, DECODED, "rotated_weight"),
    ],
)
def test_rows_and_chip_choose_the_kernel(rows, chip, kernel, monkeypatch):
    monkeypatch.setattr(computer, "chip", lambda: chip)
    calls = record(monkeypatch)
    product = choose.prepare(MATRIX)
    assert Counter(name for name, _ in calls) == {"qmv": 5, "qmm": 1, "rotated_weight": 1}
    calls.clear()
    x = activations(rows)
    y = run(product, x)
    assert type(product) is metal.Metal
    assert y.dtype == mx.float16
    assert [name for name, _ in calls] == [kernel], "it was tried when it was prepared"
    assert relative_error(y, reference(x, MATRIX)) < TOL


def test_x_of_another_dtype_has_its_own_trial(monkeypatch):
    product = choose.prepare(MATRIX)
    calls = record(monkeypatch)
    x = activations(1, mx.bfloat16)
    assert run(product, x).dtype == mx.bfloat16
    assert Counter(name for name, _ in calls) == {"qmv": 5 + 1, "qmm": 1, "rotated_weight": 1}
    calls.clear()
    run(product, x)
    assert calls == [("qmv", 1)]


def test_a_tile_that_does_not_work_is_missed_by_all_counts_of_few_rows(monkeypatch):
    """Or a row would have other bits alone than in company."""
    qmv = kernels.qmv

    def broken_for_three(x, matrix, *, tile=None, **options):
        y = qmv(x, matrix, tile=tile, **options)
        return 2 * y if tile and tile.tokens == 3 else y

    monkeypatch.setattr(kernels, "qmv", broken_for_three)
    with pytest.warns(RuntimeWarning, match="needed few_rows at 5 bits"):
        product = choose.prepare(MATRIX)
    calls = record(monkeypatch)
    run(product, activations(1))
    assert [name for name, _ in calls] == ["rotated_weight"]


def test_rows_that_float16_does_not_hold_are_scaled():
    x = activations(9, mx.float32) * mx.array([1e-9, 1, 1e9] * 3)[:, None]
    y = metal.decoded(x, MATRIX)
    expected = reference(x, MATRIX)
    for got, wanted in zip(y, expected, strict=True):
        assert relative_error(got, wanted) < TOL


def test_leading_axes_are_rows(monkeypatch):
    product = choose.prepare(MATRIX)
    calls = record(monkeypatch)
    assert run(product, activations(6).reshape(2, 3, 512)).shape == (2, 3, 70)
    assert calls[0][0] == "qmv"


@pytest.mark.parametrize("rows", [2, 9])
def test_gate_up(rows, monkeypatch):
    product = choose.prepare_gate_up(MATRIX)
    calls = record(monkeypatch)
    x = activations(rows)
    y = run(product, x)
    assert y.shape == (rows, 35)
    assert calls[-1][0] == ("geglu" if rows == 2 else "qmm")
    assert relative_error(y, reference_geglu(x, MATRIX)) < 3 * TOL


def test_embed(monkeypatch):
    monkeypatch.setattr(computer, "activation_dtype", lambda: mx.bfloat16)
    calls = record(monkeypatch)
    ids = mx.array([[3, 9]])
    rows_of = choose.prepare_rows(MATRIX)
    assert calls == [("embed", 3)]
    rows = rows_of(ids)
    assert calls == [("embed", 3), ("embed", 1)]
    assert rows.dtype == mx.bfloat16
    assert relative_error(rows, codec.embed(ids, MATRIX)) < 4e-3


def test_small_matrices_need_no_kernel():
    small = CodedMatrix(MATRIX.codes[:1, :20], MATRIX.norms[:1, :1], MATRIX.centroids, 5)
    assert type(choose.prepare(small)) is Dense


def refusing(*_, **__):
    def kernel(**_):
        raise RuntimeError("unknown type name 'uint5'")

    return kernel


def wrong(*arguments, **options):
    from metal_host import metal_kernel

    made = metal_kernel(*arguments, **options)
    return lambda **call: [1.1 * output for output in made(**call)]


@pytest.mark.parametrize(
    ("make", "fault"), [(refusing, "fails: unknown type name"), (wrong, "is off by 0.21")]
)
def test_what_does_not_work_is_reported_once_and_not_used(make, fault, monkeypatch):
    monkeypatch.setattr(mx.fast, "metal_kernel", make)
    with pytest.warns(RuntimeWarning) as caught:
        product = choose.prepare(MATRIX)
    assert [str(warning.message).split(" to work")[0] for warning in caught] == [
        f"[selftest] needed {path} at 5 bits in mlx.core.float16"
        for path in ("few_rows", "many_rows", "decoded")
    ]
    assert fault in str(caught[0].message)
    x = activations(1)
    y = run(product, x)
    assert relative_error(y, reference(x, MATRIX)) < TOL
    assert mx.array_equal(run(choose.prepare(MATRIX), x), y)
    with pytest.warns(RuntimeWarning, match="needed rows_of at 5 bits"):
        rows_of = choose.prepare_rows(MATRIX)
    rows = rows_of(mx.array([3]))
    assert mx.array_equal(rows, codec.embed(mx.array([3]), MATRIX).astype(rows.dtype))


@pytest.mark.parametrize("make", [refusing, wrong])
def test_a_stack_does_without_its_kernel(make, monkeypatch):
    monkeypatch.setattr(mx.fast, "metal_kernel", make)
    with pytest.warns(RuntimeWarning) as caught:
        product = choose.prepare_experts(MATRIX, metal.TRIED_EXPERTS)
    assert [str(warning.message).split(" at 5 bits")[0] for warning in caught] == [
        f"[selftest] needed {path}" for path in ("tried_experts", "tried_sorted")
    ]
    x, chosen = activations(2), mx.array([[0, 5, 3], [1, 6, 4]])  # as metal.tried_experts has them
    got = product(Activation(x), chosen)
    assert (
        relative_error(got.reshape(2, -1), metal.reference_experts(x, MATRIX).reshape(2, -1)) < TOL
    )


def between(layer, x):
    """What lies between products: a gate, and the residual stream with its norms."""
    norm = nn.RMSNorm(512, 1e-6)
    norm.weight = norm.weight.astype(mx.float16)
    h, normed = layer.residual_norm(x, x[::-1], norm, norm)
    return h, normed, layer.gelu_mul(x, x[::-1])


def test_what_lies_between_products_rotates_their_input():
    x = activations(3)
    h, *activated = between(ops.fused_ops(512, 1e-6, 512), x)
    weight = mx.ones(512, mx.float16)
    twins = codec.residual_norm(x, x[::-1], weight, mx.ones(1), 1e-6, weight)
    assert relative_error(h, twins[0]) < TOL
    pairs = zip(activated, (twins[1:], codec.gelu_mul(x, x[::-1])), strict=True)
    for got, (plain, rotation) in pairs:
        assert relative_error(got.plain, plain) < TOL
        assert relative_error(got.rotated(refuse), rotation) < TOL
    got = choose.prepare(MATRIX)(activated[0])
    assert relative_error(got, reference(twins[1], MATRIX)) < TOL


def refuse(x):
    raise AssertionError("it is rotated already")


@pytest.mark.parametrize("make", [refusing, wrong])
def test_what_lies_between_products_does_without_a_kernel(make, monkeypatch):
    monkeypatch.setattr(mx.fast, "metal_kernel", make)
    with pytest.warns(RuntimeWarning) as caught:
        fused = ops.fused_ops(512, 1e-6, 512)
    tried = [str(warning.message).split(" on ((2, 512), ")[0] for warning in caught]
    assert tried == ["[selftest] needed residual_norm", "[selftest] needed gelu_mul"]
    assert fused == ops.PLAIN


def test_tried_within_a_compiled_function():
    """The first product may happen while MLX traces; a trial needs arrays evaluated."""
    mx.enable_compile()
    tried = []

    def trace(x):
        tried.append(selftest.passes(_twin_as_path, reference, 5, mx.float32))
        return x + 1

    mx.compile(trace)(mx.zeros(3))
    assert tried == [True]


def _twin_as_path(x, matrix, tile):
    return reference(x, matrix)


def evaluated(x):
    y = x * 2
    mx.eval(y)
    return y


def broken(x):
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("kernel", "is_lazy"), [(codec.hadamard, True), (evaluated, False), (broken, False)]
)
def test_a_kernel_that_reads_its_input_at_once_is_not_lazy(kernel, is_lazy):
    assert selftest.is_lazy(kernel) == is_lazy
