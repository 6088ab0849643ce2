from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from pairwise import in_turn

from hlwq_mlx.errors import ShapeError
from hlwq_mlx.quant import codec, device
from hlwq_mlx.quant.activation import Activation
from hlwq_mlx.quant.backends import affine, choose
from hlwq_mlx.quant.backends.affine import Affine
from hlwq_mlx.quant.backends.dense import Dense
from hlwq_mlx.quant.matrix import CodedMatrix
from hlwq_mlx.quant.packing import pack_p32
from hlwq_mlx.quant.tables import CENTROIDS, centroids

WIDTHS = range(1, 9)
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
HALF_STEP = {mx.float32: 0.0, mx.float16: 5e-4, mx.bfloat16: 4e-3}
# Energy of image - weight over energy of decoded - weight, at most.
IMAGE_RISE = {
    "clip4_100": (1.001, 1.001, 1.001, 1.002, 1.011, 1.004, 1.002, 1.01),
    "inf_100": (1.001, 1.001, 1.001, 1.002, 1.009, 1.005, 1.004, 1.4),
    "converged": (1.001, 1.001, 1.001, 1.003, 1.01, 1.05, 1.2, 1.8),
}


def coded(table, bits, rows, columns):
    weight = np.random.default_rng(bits).normal(size=(rows, columns)).astype(np.float32)
    levels = centroids(table, bits)
    codes, norms = codec.encode(weight, levels)
    padded = np.pad(levels, (0, max(0, 8 - levels.size)), mode="edge")
    arrays = mx.array(pack_p32(codes, bits)), mx.array(norms), mx.array(padded)
    return weight, codes, norms, CodedMatrix(*arrays, bits)


def activations(columns, dtype=mx.float32):
    return mx.random.normal((3, 5, columns), key=mx.random.key(4)).astype(dtype)


def twin(x, matrix):
    """What a product must be: everything in float32, one rounding to x.dtype."""
    return codec.qmv(codec.hadamard(x.astype(mx.float32)), matrix).astype(x.dtype)


def relative_error(got, expected):
    got, expected = (np.array(a.astype(mx.float32)).astype(np.float64) for a in (got, expected))
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("bits", "dtype"), in_turn(WIDTHS, DTYPES))
def test_dense_is_the_twin(bits, dtype):
    *_, matrix = coded("clip4_100", bits, 37, 384)
    x = activations(384, dtype)
    y = Dense(matrix)(Activation(x))
    assert y.dtype == dtype
    assert mx.array_equal(y, twin(x, matrix))


@pytest.mark.parametrize("table", CENTROIDS)
def test_image_is_within_its_bound(table):
    for bits in WIDTHS:
        *_, matrix = coded(table, bits, 256, 512)
        x = activations(512)
        error = relative_error(Affine(matrix)(Activation(x)), twin(x, matrix))
        bound = affine.IMAGE_ERROR[table][bits - 1]
        assert error <= bound, bits
        assert bits == 1 or error > 0.6 * bound, f"{bits}: the bound is looser than it has to be"


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_image_rounds_once_to_a_narrow_dtype(dtype):
    *_, matrix = coded("clip4_100", 5, 64, 384)
    x = activations(384, dtype)
    y = Affine(matrix)(Activation(x))
    assert y.dtype == dtype
    wide = Affine(matrix)(Activation(x.astype(mx.float32)))
    assert mx.array_equal(y, wide.astype(dtype))


@pytest.mark.parametrize("table", CENTROIDS)
def test_image_raises_the_coding_error_no_more_than_stated(table):
    for bits in WIDTHS:
        weight, codes, norms, matrix = coded(table, bits, 128, 512)
        image = np.array(Affine(matrix)(Activation(mx.eye(512)))).T
        decoded = codec.decode(codes, norms, centroids(table, bits))
        rise = ((image - weight) ** 2).sum() / ((decoded - weight) ** 2).sum()
        assert rise <= IMAGE_RISE[table][bits - 1], bits


@pytest.mark.parametrize("table", CENTROIDS)
def test_affine_grid_keeps_the_order_and_the_symmetry_of_a_table(table):
    for bits in WIDTHS:
        levels, step = affine.affine_grid(centroids(table, bits).astype(np.float64))
        assert levels.dtype == np.uint8
        assert step > 0
        assert (np.diff(levels.astype(int)) >= 0).all()
        np.testing.assert_array_equal(levels.astype(int) + levels[::-1], 255)


def test_one_bit_grid_is_exact():
    table = centroids("clip4_100", 1).astype(np.float64)
    levels, step = affine.affine_grid(table)
    np.testing.assert_allclose(step * (levels - 127.5), table, rtol=1e-15)


def test_only_a_slice_of_an_image_is_decoded_at_a_time():
    codes = mx.random.randint(0, 1 << 16, (16384, 160), mx.uint32)
    norms = mx.ones((16384, 8), mx.float16)
    image = Affine(CodedMatrix(codes, norms, mx.array(centroids("clip4_100", 5)), 5))
    x = mx.random.normal((affine.DECODED_ROWS, 1024))
    mx.eval(x)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(image(Activation(x)))
    products = 2 * 4 * affine.DECODED_ROWS * 16384
    assert mx.get_peak_memory() - before < products + 2 * 4 * affine._SLICE_WEIGHTS


@pytest.mark.parametrize("bits", [5, 8])
def test_image_in_slices_is_the_image(bits, monkeypatch):
    *_, matrix = coded("converged", bits, 11, 256)
    x = activations(256)
    whole = Affine(matrix)(Activation(x))
    monkeypatch.setattr(affine, "_SLICE_WEIGHTS", 3 * 256)
    assert mx.array_equal(Affine(matrix)(Activation(x)), whole)


@pytest.mark.usefixtures("by_stock")
@pytest.mark.parametrize(("rows", "path"), [(7, Dense), (8, Dense), (9, Affine)])
def test_small_weights_are_dense_and_large_ones_images(rows, path, monkeypatch):
    monkeypatch.setattr(choose, "DENSE_WEIGHTS", 8 * 256)
    *_, matrix = coded("clip4_100", 4, rows, 256)
    product = choose.prepare(matrix)
    assert type(product) is path
    x = activations(256)
    assert relative_error(product(Activation(x)), twin(x, matrix)) < 4e-3


def test_activations_are_float32_on_a_cpu_and_bfloat16_on_a_gpu(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert device.activation_dtype() == mx.float32
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert device.activation_dtype() == mx.bfloat16


def test_no_kernels_on_a_cpu(monkeypatch):
    assert not device.has_metal() or mx.default_device() == mx.Device(mx.gpu)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert not device.has_metal()
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert device.has_metal()


def test_misuse_is_refused():
    *_, matrix = coded("clip4_100", 5, 9, 256)
    with pytest.raises(ShapeError, match=r"\[choose\.prepare\] needed uint32 codes \(9, 32\) for"):
        choose.prepare(replace(matrix, bits=4))
    with pytest.raises(ShapeError, match=r"\[choose\.prepare\] needed at least 32 centroids"):
        choose.prepare(replace(matrix, centroids=matrix.centroids[:8]))
    for path in (Dense, Affine):
        product = path(matrix)
        with pytest.raises(ShapeError) as caught:
            product(Activation(mx.zeros((2, 128))))
        assert str(caught.value) == (
            f"[{path.__name__.lower()}.{path.__name__}] needed x [..., 256], got (2, 128). "
            "Pad the last axis with zeros to the columns of the coded matrix."
        )
        with pytest.raises(
            ShapeError, match=r"needed a floating x \[\.\.\., K\], got mlx.core.int"
        ):
            product(Activation(mx.zeros((2, 256), dtype=mx.int32)))


@pytest.mark.parametrize("columns", [128, 384])
def test_an_image_is_decoded_for_many_rows_alone(monkeypatch, columns):
    """By blocks of rows whose last is short; the product is the same."""
    _, _, _, matrix = coded("clip4_100", 5, 37, columns)
    image = Affine(matrix)
    x = mx.random.normal((2, affine.DECODED_ROWS, columns), key=mx.random.key(1))
    few = mx.concatenate(
        [image(Activation(x[:, start : start + 8])) for start in range(0, 64, 8)], axis=1
    )
    calls = []
    monkeypatch.setattr(affine, "_SLICE_WEIGHTS", 10 * columns)
    dequantize = mx.dequantize
    monkeypatch.setattr(
        mx, "dequantize", lambda *parts, **options: calls.append(1) or dequantize(*parts, **options)
    )
    np.testing.assert_allclose(np.array(image(Activation(x))), np.array(few), rtol=0, atol=2e-5)
    assert len(calls) == 4
