"""Kernels are used after they were tried, and are done without when they fail."""

import mlx.core as mx
import numpy as np
import pytest
from metal_host import Checks, device

from hlwq_mlx.quant import backend, codec, kernels, selftest
from hlwq_mlx.quant.selftest import random_matrix

MATRIX = random_matrix(5)
DECODED = backend.Chip(mx.float16, 8)
FUSED = backend.Chip(mx.float16, 64)
TOL = 1.5e-3  # tables, tiles and results of float16


@pytest.fixture(autouse=True)
def metal(monkeypatch):
    """Kernels run, and nothing is known about them yet."""
    selftest.forget()
    with device(Checks(is_watched=False)):
        monkeypatch.setattr(backend, "has_metal", lambda: True)
        monkeypatch.setattr(backend, "chip", lambda: FUSED)
        yield
        monkeypatch.undo()  # what a test put in the place of the host's kernel, before it is gone
    selftest.forget()


def activations(rows, dtype=mx.float16):
    return mx.random.normal((rows, 512), key=mx.random.key(rows)).astype(dtype)


def relative_error(got, expected):
    got, expected = (np.array(a.astype(mx.float32)).astype(np.float64) for a in (got, expected))
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def record(monkeypatch, names=("qmv", "geglu", "qmm", "rotated_weight", "embed")):
    """The kernels called from here on, with how many rows each was given."""
    calls = []

    def recorded(name):
        kernel = getattr(kernels, name)

        def call(x, *arguments, **options):
            calls.append((name, len(x)))
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
    monkeypatch.setattr(backend, "chip", lambda: chip)
    product = backend.prepare(*MATRIX)
    calls = record(monkeypatch)
    x = activations(rows)
    y = product(x)
    assert type(product) is backend.Kernels
    assert y.dtype == mx.float16
    assert {name for name, _ in calls} == {kernel}
    assert len(calls) == 2, "once in the self-test, once for x"
    assert relative_error(y, backend.rotated_product(x, *MATRIX)) < TOL
    product(x)
    assert len(calls) == 3


def test_rows_that_float16_does_not_hold_are_scaled():
    x = activations(9, mx.float32) * mx.array([1e-9, 1, 1e9] * 3)[:, None]
    y = backend.decoded(x, MATRIX)
    expected = backend.rotated_product(x, *MATRIX)
    for got, wanted in zip(y, expected, strict=True):
        assert relative_error(got, wanted) < TOL


def test_leading_axes_are_rows(monkeypatch):
    calls = record(monkeypatch)
    x = activations(6).reshape(2, 3, 512)
    assert backend.prepare(*MATRIX)(x).shape == (2, 3, 70)
    assert calls[0][0] == "qmv"


@pytest.mark.parametrize("rows", [2, 9])
def test_gate_up(rows, monkeypatch):
    calls = record(monkeypatch)
    x = activations(rows)
    y = backend.geglu(backend.prepare(*MATRIX), x)
    assert y.shape == (rows, 35)
    assert calls[-1][0] == ("geglu" if rows == 2 else "qmm")
    assert relative_error(y, backend.rotated_geglu(x, *MATRIX)) < 3 * TOL


def test_embed(monkeypatch):
    monkeypatch.setattr(backend, "activation_dtype", lambda: mx.bfloat16)
    calls = record(monkeypatch)
    ids = mx.array([[3, 9]])
    rows = backend.embed(ids, *MATRIX)
    assert calls == [("embed", 3), ("embed", 1)]
    assert rows.dtype == mx.bfloat16
    assert relative_error(rows, codec.embed(ids, *MATRIX)) < 4e-3


def test_small_matrices_need_no_kernel():
    small = (MATRIX.codes[:1, :20], MATRIX.norms[:1, :1], MATRIX.centroids, 5)
    assert type(backend.prepare(*small)) is backend.Dense


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
    product = backend.prepare(*MATRIX)
    x = activations(1)
    with pytest.warns(RuntimeWarning) as caught:
        y = product(x)
    assert [str(warning.message).split(" to work")[0] for warning in caught] == [
        f"[selftest] needed {path} at 5 bits in mlx.core.float16"
        for path in ("few_rows", "decoded")
    ]
    assert fault in str(caught[0].message)
    assert relative_error(y, backend.rotated_product(x, *MATRIX)) < TOL
    assert mx.array_equal(product(x), y)
    with pytest.warns(RuntimeWarning, match="needed rows_of at 5 bits"):
        rows = backend.embed(mx.array([3]), *MATRIX)
    assert mx.array_equal(rows, codec.embed(mx.array([3]), *MATRIX))


def between(x):
    """What lies between products: a gate, and the end of a part of a layer."""
    weight = mx.ones(512, mx.float16)
    h, opened = backend.tail(x, x[::-1], weight, None, 1e-6, weight)
    return h, opened, backend.gated(x, x[::-1])


def test_what_lies_between_products_rotates_their_input():
    x = activations(3)
    h, *rotated = between(x)
    weight = mx.ones(512, mx.float16)
    twins = codec.tail(x, x[::-1], weight, mx.ones(1), 1e-6, weight)
    assert relative_error(h, twins[0]) < TOL
    for got, (plain, rotation) in zip(rotated, (twins[1:], codec.gated(x, x[::-1])), strict=True):
        assert relative_error(got.plain, plain) < TOL
        assert relative_error(got.rotated, rotation) < TOL
    assert (
        relative_error(
            backend.prepare(*MATRIX)(rotated[0]), backend.rotated_product(twins[1], *MATRIX)
        )
        < TOL
    )


@pytest.mark.parametrize("make", [refusing, wrong])
def test_what_lies_between_products_does_without_a_kernel(make, monkeypatch):
    x = activations(3)
    expected = [h if isinstance(h, mx.array) else h.plain for h in between(x)]
    selftest.forget()
    monkeypatch.setattr(mx.fast, "metal_kernel", make)
    with pytest.warns(RuntimeWarning) as caught:
        got = between(x)
    tried = [str(warning.message).split(" on ((2, 512), ")[0] for warning in caught]
    assert tried == ["[selftest] needed tail", "[selftest] needed gated"]
    for result, wanted in zip(got, expected, strict=True):
        assert relative_error(result, wanted) < TOL
    between(x)


def test_tried_within_a_compiled_function():
    """The first product may happen while MLX traces; a trial needs arrays evaluated."""
    mx.enable_compile()
    tried = []

    def trace(x):
        tried.append(selftest.is_sound(_twin_as_path, backend.rotated_product, 5, mx.float32))
        return x + 1

    mx.compile(trace)(mx.zeros(3))
    assert tried == [True]


def _twin_as_path(x, matrix, tile):
    return backend.rotated_product(x, *matrix)
