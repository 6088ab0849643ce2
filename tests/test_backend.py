import mlx.core as mx
import numpy as np
import pytest
from pairwise import in_turn

from hlwq_mlx.errors import ShapeError
from hlwq_mlx.quant import backend, codec
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
    arguments = (mx.array(pack_p32(codes, bits)), mx.array(norms), mx.array(padded), bits)
    return weight, codes, norms, arguments


def activations(columns, dtype=mx.float32):
    return mx.random.normal((3, 5, columns), key=mx.random.key(4)).astype(dtype)


def twin(x, arguments):
    """What a product must be: everything in float32, one rounding to x.dtype."""
    return codec.qmv(codec.hadamard(x.astype(mx.float32)), *arguments).astype(x.dtype)


def relative_error(got, expected):
    got, expected = (np.array(a.astype(mx.float32)).astype(np.float64) for a in (got, expected))
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("bits", "dtype"), in_turn(WIDTHS, DTYPES))
def test_dense_is_the_twin(bits, dtype):
    *_, arguments = coded("clip4_100", bits, 37, 384)
    x = activations(384, dtype)
    y = backend.Dense(*arguments)(x)
    assert y.dtype == dtype
    assert mx.array_equal(y, twin(x, arguments))


@pytest.mark.parametrize("table", CENTROIDS)
def test_image_is_within_its_bound(table):
    for bits in WIDTHS:
        *_, arguments = coded(table, bits, 256, 512)
        x = activations(512)
        error = relative_error(backend.AffineImage(*arguments)(x), twin(x, arguments))
        bound = backend.IMAGE_ERROR[table][bits - 1]
        assert error <= bound, bits
        assert bits == 1 or error > 0.6 * bound, f"{bits}: the bound is looser than it has to be"


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_image_rounds_once_to_a_narrow_dtype(dtype):
    *_, arguments = coded("clip4_100", 5, 64, 384)
    x = activations(384, dtype)
    y = backend.AffineImage(*arguments)(x)
    assert y.dtype == dtype
    wide = backend.AffineImage(*arguments)(x.astype(mx.float32))
    assert mx.array_equal(y, wide.astype(dtype))


@pytest.mark.parametrize("table", CENTROIDS)
def test_image_raises_the_coding_error_no_more_than_stated(table):
    for bits in WIDTHS:
        weight, codes, norms, arguments = coded(table, bits, 128, 512)
        image = np.array(backend.AffineImage(*arguments)(mx.eye(512))).T
        decoded = codec.decode(codes, norms, centroids(table, bits))
        rise = ((image - weight) ** 2).sum() / ((decoded - weight) ** 2).sum()
        assert rise <= IMAGE_RISE[table][bits - 1], bits


@pytest.mark.parametrize("table", CENTROIDS)
def test_affine_grid_keeps_the_order_and_the_symmetry_of_a_table(table):
    for bits in WIDTHS:
        levels, step = backend.affine_grid(centroids(table, bits).astype(np.float64))
        assert levels.dtype == np.uint8
        assert step > 0
        assert (np.diff(levels.astype(int)) >= 0).all()
        np.testing.assert_array_equal(levels.astype(int) + levels[::-1], 255)


def test_one_bit_grid_is_exact():
    table = centroids("clip4_100", 1).astype(np.float64)
    levels, step = backend.affine_grid(table)
    np.testing.assert_allclose(step * (levels - 127.5), table, rtol=1e-15)


def test_only_a_slice_of_an_image_is_decoded_at_a_time():
    codes = mx.random.randint(0, 1 << 16, (16384, 160), mx.uint32)
    norms = mx.ones((16384, 8), mx.float16)
    image = backend.AffineImage(codes, norms, mx.array(centroids("clip4_100", 5)), 5)
    x = mx.random.normal((backend.DECODED_ROWS, 1024))
    mx.eval(x)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(image(x))
    products = 2 * 4 * backend.DECODED_ROWS * 16384
    assert mx.get_peak_memory() - before < products + 2 * 4 * backend._SLICE_WEIGHTS


@pytest.mark.parametrize("bits", [5, 8])
def test_image_in_slices_is_the_image(bits, monkeypatch):
    *_, arguments = coded("converged", bits, 11, 256)
    x = activations(256)
    whole = backend.AffineImage(*arguments)(x)
    monkeypatch.setattr(backend, "_SLICE_WEIGHTS", 3 * 256)
    assert mx.array_equal(backend.AffineImage(*arguments)(x), whole)


@pytest.mark.parametrize(
    ("rows", "path"), [(7, backend.Dense), (8, backend.Dense), (9, backend.AffineImage)]
)
def test_small_weights_are_dense_and_large_ones_images(rows, path, monkeypatch):
    monkeypatch.setattr(backend, "DENSE_WEIGHTS", 8 * 256)
    *_, arguments = coded("clip4_100", 4, rows, 256)
    product = backend.prepare(*arguments)
    assert type(product) is path
    x = activations(256)
    assert relative_error(product(x), twin(x, arguments)) < 4e-3


def test_activations_are_float32_on_a_cpu_and_bfloat16_on_a_gpu(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert backend.activation_dtype() == mx.float32
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert backend.activation_dtype() == mx.bfloat16


@pytest.mark.parametrize(
    ("architecture", "dtype", "qmm_rows"),
    [
        ("applegpu_g13g", mx.float16, 512),
        ("applegpu_g14x", mx.float16, 512),
        ("applegpu_g15d", mx.bfloat16, 512),
        ("applegpu_g16p", mx.bfloat16, 512),
        ("applegpu_g17s", mx.bfloat16, 8),
        ("applegpu_g21x", mx.bfloat16, 8),
        ("a chip", mx.bfloat16, 8),
    ],
)
def test_chips(architecture, dtype, qmm_rows, monkeypatch):
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": architecture})
    assert backend.chip() == backend.Chip(dtype, qmm_rows)


def test_no_kernels_on_a_cpu(monkeypatch):
    assert not backend.has_metal() or mx.default_device() == mx.Device(mx.gpu)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert not backend.has_metal()
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert backend.has_metal()


def test_misuse_is_refused():
    codes, norms, levels, _ = coded("clip4_100", 5, 9, 256)[3]
    with pytest.raises(ShapeError, match=r"\[backend\.prepare\] needed uint32 codes \(9, 32\) for"):
        backend.prepare(codes, norms, levels, 4)
    with pytest.raises(ShapeError, match=r"\[backend\.prepare\] needed at least 32 centroids"):
        backend.prepare(codes, norms, levels[:8], 5)
    for path in (backend.Dense, backend.AffineImage):
        product = path(codes, norms, levels, 5)
        with pytest.raises(ShapeError) as caught:
            product(mx.zeros((2, 128)))
        assert str(caught.value) == (
            f"[backend.{path.__name__}] needed x [..., 256], got (2, 128). "
            "Pad the last axis with zeros to the columns of the coded matrix."
        )
        with pytest.raises(
            ShapeError, match=r"needed a floating x \[\.\.\., K\], got mlx.core.int"
        ):
            product(mx.zeros((2, 256), dtype=mx.int32))


@pytest.mark.parametrize("columns", [128, 384])
def test_an_image_is_decoded_for_many_rows_alone(monkeypatch, columns):
    """By blocks of rows whose last is short; the product is the same."""
    _, _, _, arguments = coded("clip4_100", 5, 37, columns)
    image = backend.AffineImage(*arguments)
    x = mx.random.normal((2, backend.DECODED_ROWS, columns), key=mx.random.key(1))
    few = mx.concatenate([image(x[:, start : start + 8]) for start in range(0, 64, 8)], axis=1)
    calls = []
    monkeypatch.setattr(backend, "_SLICE_WEIGHTS", 10 * columns)
    dequantize = mx.dequantize
    monkeypatch.setattr(
        mx, "dequantize", lambda *parts, **options: calls.append(1) or dequantize(*parts, **options)
    )
    np.testing.assert_allclose(np.array(image(x)), np.array(few), rtol=0, atol=2e-5)
    assert len(calls) == 4
