from fractions import Fraction
from itertools import pairwise as neighbours
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from golden import GOLDEN, MULTI, read
from pairwise import in_turn, pairwise
from scipy.stats import norm

from hlwq_mlx.errors import ShapeError
from hlwq_mlx.quant import codec
from hlwq_mlx.quant.matrix import CodedMatrix
from hlwq_mlx.quant.packing import pack_p32, unpack
from hlwq_mlx.quant.tables import CENTROIDS, centroids

WIDTHS = range(1, 9)
# A table is data to all but the tests of its values: every width meets one of them.
EACH_WIDTH = pytest.mark.parametrize(("bits", "table"), in_turn(WIDTHS, list(CENTROIDS)))
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
# |twin - float64| / |float64|: float32 sums of at most 384 products; half a step of a narrow dtype.
TOL = {mx.float32: 5e-7, mx.float16: 5e-4, mx.bfloat16: 4e-3}


def natural_hadamard():
    """H128 by Sylvester's doubling, not by the bit count that the codec uses."""
    h = np.ones((1, 1))
    for _ in range(7):
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(128)


def coded(bits, rows, columns, table="clip4_100", seed=0):
    """Random codes and norms, as numpy arrays and as the twins take them."""
    rng = np.random.default_rng(1000 * seed + bits)
    codes = rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    norms = rng.uniform(0.1, 2.0, (rows, columns // 128)).astype(np.float16)
    levels = centroids(table, bits)
    padded = np.pad(levels, (0, max(0, 8 - levels.size)), mode="edge")
    arrays = mx.array(pack_p32(codes, bits)), mx.array(norms), mx.array(padded)
    return codes, norms, levels, CodedMatrix(*arrays, bits)


def rotated(codes, norms, levels):
    """The weight in the rotated basis, in float64, one block at a time."""
    weight = np.empty(codes.shape)
    for row, block in np.ndindex(norms.shape):
        columns = slice(128 * block, 128 * block + 128)
        weight[row, columns] = (
            float(norms[row, block]) * levels[codes[row, columns]].astype(np.float64) / np.sqrt(128)
        )
    return weight


def relative_error(got, expected):
    got = np.array(got.astype(mx.float32)).astype(np.float64)
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


class Golden(NamedTuple):
    """One coded tensor of the golden samples."""

    name: str
    codes: np.ndarray
    norms: np.ndarray
    bits: int
    expected: np.ndarray

    @property
    def levels(self):
        return centroids("clip4_100", self.bits)


def golden_tensors(variant):
    folder = GOLDEN / "multi" / variant
    stored = read(folder / "codes.safetensors")
    expected = read(folder / "expected_f32.safetensors")
    prefixes = [key.removesuffix("__packed") for key in sorted(stored) if key.endswith("__packed")]
    assert prefixes
    for prefix in prefixes:
        name, norms = prefix.replace("__", "."), stored[f"{prefix}__norms"]
        packed, count = stored[f"{prefix}__packed"], 128 * norms.size
        bits = 8 * packed.size // count
        codes = unpack(packed, bits, count, "msb").reshape(norms.shape[0], -1)
        yield Golden(name, codes, norms, bits, expected[name])


@pytest.mark.parametrize("variant", MULTI)
def test_encode_reproduces_golden_codes_and_norms(variant):
    weights = read(GOLDEN / "source_bf16.safetensors")
    for golden in golden_tensors(variant):
        codes, norms = codec.encode(weights[golden.name], golden.levels)
        assert codes.dtype == np.uint8
        assert norms.dtype == np.float16
        np.testing.assert_array_equal(codes, golden.codes, golden.name)
        np.testing.assert_array_equal(norms, golden.norms, golden.name)


@pytest.mark.parametrize("variant", MULTI)
def test_decode_and_dequantize_give_golden_weights(variant):
    """To the last float32 bit but one; golden sums that cancel are 1e-17 off the exact zero."""
    for name, codes, norms, bits, expected in golden_tensors(variant):
        levels = centroids("clip4_100", bits)
        weight = codec.decode(codes, norms, levels)[:, : expected.shape[1]]
        assert weight.dtype == np.float32
        assert weight.shape == expected.shape
        step = np.maximum(np.spacing(np.abs(expected)), 1e-17)
        assert (np.abs(weight - expected) <= step).all(), name
        assert np.count_nonzero((weight != expected) & (weight != 0)) <= 3, name
        levels = mx.array(np.pad(levels, (0, max(0, 8 - levels.size)), mode="edge"))
        weight = codec.dequantize(
            CodedMatrix(mx.array(pack_p32(codes, bits)), mx.array(norms), levels, bits)
        )
        assert weight.dtype == mx.float32
        assert relative_error(weight[:, : expected.shape[1]], expected.astype(np.float64)) < 2e-7


@EACH_WIDTH
def test_decode_is_the_exact_value_rounded_once(table, bits):
    """Against rational arithmetic, where 1/128 replaces the two irrational square roots."""
    codes, norms, levels, _ = coded(bits, 1, 256, table)
    signs = np.rint(natural_hadamard() * np.sqrt(128)).astype(int)
    weight = codec.decode(codes, norms, levels)
    for block in range(2):
        exact_levels = [
            Fraction(float(levels[c])) for c in codes[0, 128 * block : 128 * block + 128]
        ]
        scale = Fraction(float(norms[0, block])) / 128
        for k in range(0, 128, 5):
            exact = scale * sum(
                level * int(sign) for level, sign in zip(exact_levels, signs[k], strict=True)
            )
            assert Fraction(float(exact)) == exact
            assert weight[0, 128 * block + k] == np.float32(float(exact))


@pytest.mark.parametrize("bits", WIDTHS)
def test_encode_takes_the_nearest_centroid(bits):
    """Against plain searchsorted on float64 midpoints, for every table, ends and midpoints too."""
    for table in CENTROIDS:
        levels = centroids(table, bits)
        midpoints = (levels[1:].astype(np.float64) + levels[:-1]) / 2
        values = np.concatenate(
            [
                np.random.default_rng(bits).normal(scale=2.0, size=50_000),
                midpoints,
                np.nextafter(midpoints, np.inf),
                np.nextafter(midpoints, -np.inf),
                [-1e4, 0.0, 1e4],
            ]
        )
        np.testing.assert_array_equal(
            codec._nearest(values, levels), np.searchsorted(midpoints, values, side="left")
        )


def test_encode_takes_the_lower_code_half_way():
    """A single weight rotates to 128 values of exactly 1 or -1."""
    weight = np.zeros((1, 128), np.float32)
    weight[0, 0] = 0.25
    codes, norms = codec.encode(weight, np.array([-2, 0, 2], np.float32))
    assert (codes == 1).all()
    assert norms == 0.25
    just_below_two = np.nextafter(np.float32(2), np.float32(0))
    codes, _ = codec.encode(weight, np.array([-2, 0, just_below_two], np.float32))
    assert (codes == 2).all()
    codes, _ = codec.encode(-weight, np.array([-2, 0, 2], np.float32))
    assert (codes == 0).all()


@pytest.mark.parametrize("fit", [codec.OWN_NORM, codec.BEST_NORM])
def test_block_of_zeros(fit):
    for bits in WIDTHS:
        levels = centroids("converged", bits)
        codes, norms = codec.encode(np.zeros((2, 128), np.float32), levels, fit)
        assert (codes == (1 << bits - 1) - 1).all()
        assert (norms == 0).all()
        np.testing.assert_array_equal(codec.decode(codes, norms, levels), np.zeros((2, 128)))


@pytest.mark.parametrize("columns", [1, 127, 128, 129, 300])
def test_columns_are_padded_with_zero_weights(columns):
    weight = np.random.default_rng(columns).normal(size=(3, columns)).astype(np.float32)
    levels = centroids("converged", 5)
    width = -(-columns // 128) * 128
    padded = np.pad(weight, ((0, 0), (0, width - columns)))
    codes, norms = codec.encode(weight, levels)
    assert codes.shape == (3, width)
    np.testing.assert_array_equal(codes, codec.encode(padded, levels)[0])
    np.testing.assert_array_equal(norms, codec.encode(padded, levels)[1])


def test_slices_of_rows_are_slices_of_the_result(monkeypatch):
    weight = np.random.default_rng(7).normal(size=(23, 384)).astype(np.float32)
    levels = centroids("clip4_100", 6)
    codes, norms = codec.encode(weight, levels)
    decoded = codec.decode(codes, norms, levels)
    monkeypatch.setattr(codec, "_SLICE_WEIGHTS", 5 * 384)
    for rows in (slice(0, 23), slice(3, 4), slice(4, 23)):
        slice_codes, slice_norms = codec.encode(weight[rows], levels)
        np.testing.assert_array_equal(slice_codes, codes[rows])
        np.testing.assert_array_equal(slice_norms, norms[rows])
        np.testing.assert_array_equal(codec.decode(codes[rows], norms[rows], levels), decoded[rows])


@pytest.mark.parametrize("table", CENTROIDS)
def test_coding_error_is_what_the_table_promises(table):
    """A normal weight loses what a normal variable loses to the table, or little less.

    Less, because 128 values of a given norm are not quite normal: their tails are shorter.
    """
    for bits in WIDTHS:
        weight = np.random.default_rng(bits).normal(size=(256, 1024)).astype(np.float32)
        levels = centroids(table, bits)
        decoded = codec.decode(*codec.encode(weight, levels), levels)
        edges = np.array([-np.inf, *((levels[1:].astype(np.float64) + levels[:-1]) / 2), np.inf])
        mass, moment = np.diff(norm.cdf(edges)), -np.diff(norm.pdf(edges))
        promised = 1 - 2 * (moment * levels).sum() + (mass * levels.astype(np.float64) ** 2).sum()
        measured = ((weight - decoded) ** 2).sum() / (weight**2).sum()
        assert 0.96 < measured / promised < 1.003, bits


@pytest.mark.parametrize(("shape", "dtype"), in_turn([(128,), (3, 384), (2, 5, 256)], DTYPES))
def test_hadamard(shape, dtype):
    x = mx.random.normal(shape, key=mx.random.key(1)).astype(dtype)
    y = codec.hadamard(x)
    assert y.dtype == dtype
    assert y.shape == shape
    blocks = np.array(x.astype(mx.float32)).astype(np.float64).reshape(-1, 128)
    assert relative_error(y, (blocks @ natural_hadamard()).reshape(shape)) < TOL[dtype]


def test_hadamard_twice_is_the_identity():
    x = mx.random.normal((7, 256), key=mx.random.key(2))
    assert relative_error(codec.hadamard(codec.hadamard(x)), np.array(x, np.float64)) < 3e-7


def exact_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_gelu_mul_rotates_its_product():
    gate, up = (3 * mx.random.normal((2, 256), key=mx.random.key(n)) for n in (1, 2))
    wide = exact_gelu(np.array(gate, np.float64)) * np.array(up, np.float64)
    product, y = codec.gelu_mul(gate, up)
    assert relative_error(product, wide) < 5e-7
    assert relative_error(y, (wide.reshape(-1, 128) @ natural_hadamard()).reshape(2, 256)) < 5e-7
    with pytest.raises(
        ShapeError, match=r"\[codec\.gelu_mul\] needed gate and up of one shape, got"
    ):
        codec.gelu_mul(gate, up[:, :128])


@pytest.mark.parametrize("dtype", DTYPES)
def test_geglu_gates_the_second_half_of_the_rows(dtype):
    codes, norms, levels, matrix = coded(5, 14, 256)
    x = mx.random.normal((3, 256), key=mx.random.key(5)).astype(dtype)
    y = codec.geglu(x, matrix)
    assert y.dtype == dtype
    weight = rotated(codes, norms, levels)
    gate, up = np.split(np.array(x.astype(mx.float32), np.float64) @ weight.T, 2, axis=-1)
    assert relative_error(y, exact_gelu(gate) * up) < 2 * TOL[dtype]
    with pytest.raises(ShapeError, match=r"\[codec\.geglu\] needed as many rows of gate as of up"):
        codec.geglu(x, coded(5, 7, 256)[3])


@pytest.mark.parametrize(("dtype", "is_normed"), in_turn(DTYPES, [True, False]))
def test_residual_norm_norms_adds_scales_norms_and_rotates(is_normed, dtype):
    x, update, weight, following = (
        (n * mx.random.normal((2, 256), key=mx.random.key(n))).astype(dtype) for n in (1, 2, 3, 4)
    )
    arguments = (weight[0], mx.array([0.7]), 1e-6, following[0] if is_normed else None)
    h, got_normed, y = codec.residual_norm(x, update, *arguments)
    assert (h.dtype, got_normed.dtype, y.dtype) == (dtype, dtype, mx.float32)

    def normed(values, scale):
        root = np.sqrt((values**2).mean(axis=-1, keepdims=True) + 1e-6)
        return values / root * np.array(scale.astype(mx.float32), np.float64)

    wide_x, wide_update, wide_h = (
        np.array(a.astype(mx.float32), np.float64) for a in (x, update, h)
    )
    assert relative_error(h, (wide_x + normed(wide_update, weight[0])) * 0.7) < TOL[dtype]
    expected = normed(wide_h, following[0]) if is_normed else wide_h
    assert relative_error(got_normed, expected) < TOL[dtype]
    rotated = (expected.reshape(-1, 128) @ natural_hadamard()).reshape(2, 256)
    assert relative_error(y, rotated) < 5e-7


@pytest.mark.parametrize(
    ("bits", "dtype", "shape"),
    [
        tuple(case.values())
        for case in pairwise(
            bits=list(WIDTHS), dtype=list(DTYPES), shape=[(1, 128), (7, 384), (33, 256)]
        )
    ],
)
def test_products(bits, dtype, shape):
    rows, columns = shape
    codes, norms, levels, matrix = coded(bits, rows, columns)
    x = mx.random.normal((2, 3, columns), key=mx.random.key(bits)).astype(dtype)
    exact = np.array(x.astype(mx.float32)).astype(np.float64) @ rotated(codes, norms, levels).T
    for product in (codec.qmv, codec.qmm):
        y = product(x, matrix)
        assert y.dtype == dtype
        assert y.shape == (2, 3, rows)
        assert relative_error(y, exact) < TOL[dtype]


def test_product_with_a_rotated_x_is_the_product_with_the_weight():
    *_, matrix = coded(5, 9, 256)
    x = mx.random.normal((5, 256), key=mx.random.key(5))
    y = codec.qmv(codec.hadamard(x), matrix)
    weight = np.array(codec.dequantize(matrix)).astype(np.float64)
    assert relative_error(y, np.array(x).astype(np.float64) @ weight.T) < 6e-7


@EACH_WIDTH
def test_the_weight_whole_in_both_bases_and_by_rows(bits, table):
    codes, norms, levels, matrix = coded(bits, 11, 384, table)
    whole = codec.dequantize(matrix)
    assert whole.dtype == mx.float32
    assert relative_error(whole, codec.decode(codes, norms, levels).astype(np.float64)) < 2e-7
    assert relative_error(codec.rotated_weight(matrix), rotated(codes, norms, levels)) < 1e-7
    for ids in (mx.array([4]), mx.array([[0, 10, 3], [3, 3, 7]], dtype=mx.int32)):
        rows = codec.embed(ids, matrix)
        assert rows.dtype == mx.float32
        assert rows.shape == (*ids.shape, 384)
        assert mx.array_equal(rows, whole[ids])


X = mx.zeros((2, 256))
CODES = mx.zeros((3, 40), dtype=mx.uint32)
NORMS = mx.zeros((3, 2), dtype=mx.float16)
LEVELS = mx.zeros((32,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: codec.encode(np.zeros(128, np.float32), centroids("converged", 2)),
            "[codec.encode] needed a weight [N, columns], got shape (128,). "
            "Only matrices are coded; keep other tensors as they are.",
        ),
        (
            lambda: codec.encode(np.full((1, 128), 1e4, np.float32), centroids("converged", 2)),
            "[codec.encode] needed finite weights with block norms up to 65504, "
            "got 113137. Look for infinities and NaN, or scale the weight down.",
        ),
        (
            lambda: codec.encode(np.full((1, 128), np.nan, np.float32), centroids("converged", 2)),
            "[codec.encode] needed finite weights with block norms up to 65504, "
            "got nan. Look for infinities and NaN, or scale the weight down.",
        ),
        (
            lambda: codec.decode(
                np.zeros((3, 128), np.int8), np.zeros((3, 1), np.float16), np.zeros(4, np.float32)
            ),
            "[codec.decode] needed uint8 codes [N, K] for norms [N, K/128], got "
            "int8 (3, 128) for (3, 1). Check how the codes were unpacked.",
        ),
        (
            lambda: codec.decode(
                np.zeros((3, 256), np.uint8), np.zeros((3, 1), np.float16), np.zeros(4, np.float32)
            ),
            "[codec.decode] needed uint8 codes [N, K] for norms [N, K/128], got "
            "uint8 (3, 256) for (3, 1). Check how the codes were unpacked.",
        ),
        (
            lambda: codec.decode(
                np.full((3, 128), 4, np.uint8),
                np.zeros((3, 1), np.float16),
                np.zeros(4, np.float32),
            ),
            "[codec.decode] needed codes below 4, got 4. "
            "Take the table of the width that the codes were packed with.",
        ),
        (
            lambda: codec.hadamard(mx.zeros((2, 200))),
            "[codec.hadamard] needed x [..., K] with K a multiple of 128, got (2, 200). "
            "Pad the last axis with zeros.",
        ),
        (
            lambda: codec.hadamard(mx.zeros((2, 128), dtype=mx.int32)),
            "[codec.hadamard] needed a floating x [..., K], got mlx.core.int32 (2, 128). "
            "Cast it, or pass the embeddings.",
        ),
        (
            lambda: codec.qmv(mx.zeros((2, 128)), CodedMatrix(CODES, NORMS, LEVELS, 5)),
            "[codec.qmv] needed x [..., 256], got (2, 128). "
            "Pad the last axis with zeros to the columns of the coded matrix.",
        ),
        (
            lambda: codec.qmm(mx.array(1.0), CodedMatrix(CODES, NORMS, LEVELS, 5)),
            "[codec.qmm] needed a floating x [..., K], got mlx.core.float32 (). "
            "Cast it, or pass the embeddings.",
        ),
        (
            lambda: codec.qmv(X, CodedMatrix(CODES, NORMS, LEVELS, 9)),
            "[codec.qmv] needed 1 to 8 bits, got 9. Check the manifest.",
        ),
        (
            lambda: codec.qmm(X, CodedMatrix(CODES, NORMS.reshape(-1), LEVELS, 5)),
            "[codec.qmm] needed norms [N, K/128], got shape (6,). "
            "Reshape them to one row of blocks for each row of the weight.",
        ),
        (
            lambda: codec.dequantize(CodedMatrix(CODES, NORMS, LEVELS, 4)),
            "[codec.dequantize] needed uint32 codes (3, 32) for 4 bits and norms (3, 2), got "
            "mlx.core.uint32 (3, 40). Pack them with packing.pack_p32 at that width.",
        ),
        (
            lambda: codec.rotated_weight(CodedMatrix(CODES.astype(mx.int32), NORMS, LEVELS, 5)),
            "[codec.rotated_weight] needed uint32 codes (3, 40) for 5 bits and norms (3, 2), got "
            "mlx.core.int32 (3, 40). Pack them with packing.pack_p32 at that width.",
        ),
        (
            lambda: codec.embed(mx.array([0]), CodedMatrix(CODES, NORMS, LEVELS[:31], 5)),
            "[codec.embed] needed at least 32 centroids for 5 bits, got shape (31,). "
            "Take the table of that width.",
        ),
        (
            lambda: codec.embed(mx.array([0.0]), CodedMatrix(CODES, NORMS, LEVELS, 5)),
            "[codec.embed] needed integer ids, got mlx.core.float32. "
            "Pass token ids, not embeddings.",
        ),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ShapeError) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize(("bits", "table"), in_turn(WIDTHS, ["clip4_100", "converged"]))
def test_refits_only_lower_the_error(bits, table):
    rng = np.random.default_rng(bits)
    weight = rng.standard_t(5, (64, 256)).astype(np.float32)
    values = centroids(table, bits)
    errors = []
    for refits in range(5):
        codes, norms = codec.encode(weight, values, codec.Fit(refits=refits))
        errors.append(float(np.square(codec.decode(codes, norms, values) - weight).sum()))
    # Storing a norm as float16 moves it by up to 2**-11 of itself, at the foot of a parabola.
    assert all(after <= before * (1 + 1e-5) for before, after in neighbours(errors))
    assert bits == 1 or errors[-1] < 0.999 * errors[0]


@pytest.mark.parametrize(("bits", "table"), in_turn(WIDTHS, ["clip4_100", "converged"]))
def test_a_search_of_norms_lowers_the_error_of_refits(bits, table):
    weight = np.random.default_rng(bits).standard_t(5, (16, 256)).astype(np.float32)
    values = centroids(table, bits)
    refits, search = (
        np.square(codec.decode(*codec.encode(weight, values, fit), values) - weight).sum()
        for fit in (codec.Fit(refits=4), codec.BEST_NORM)
    )
    assert bits == 1 or search < (1 if bits == 2 else 0.99) * refits


def test_a_strong_mean_is_not_cut_off_by_the_norm_that_fits_best():
    rng = np.random.default_rng(3)
    weight = (1 + 0.3 * rng.standard_normal((8, 128))).astype(np.float32)
    values = centroids("clip4_100", 5)
    own, best = (
        np.square(codec.decode(*codec.encode(weight, values, fit), values) - weight).sum()
        for fit in (codec.OWN_NORM, codec.BEST_NORM)
    )
    assert best < 0.1 * own


def test_a_fitted_norm_is_one_that_float16_holds():
    weight = np.zeros((1, 128), np.float32)
    weight[0, 0] = 65504
    _, norms = codec.encode(weight, np.array([-0.9, 0.9], np.float32), codec.BEST_NORM)
    assert norms == np.float16(65504)
