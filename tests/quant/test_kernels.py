"""Every kernel against float64 and against its twin, watched by the Metal host's checkers.

On a Mac the same cases run on the GPU.
"""

from itertools import product
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_host import FORWARD, REVERSE, Checks, device
from pairwise import in_turn, pairwise

from hlwq_mlx.quant import codec, expert_kernels, kernels
from hlwq_mlx.quant.bodies import BODIES, metal_folder
from hlwq_mlx.quant.kernels import qmv_tile
from hlwq_mlx.quant.matrix import CodedMatrix
from hlwq_mlx.quant.packing import pack_p32
from hlwq_mlx.quant.tables import centroids

WIDTHS = range(1, 9)
F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
DTYPES = [(F32, F32), (F32, F16), (F32, BF16), (F16, F16), (BF16, BF16), (F16, F32), (BF16, F32)]

# |got - expected| / |expected| in float64, without the rounding of the result.
TOL = {
    "qmv": 1e-6,  # sums of up to 1024 products in float32; seen 5e-7
    "gather_qmv": 1e-6,
    "gather_qmm": 5e-6,
    "geglu": 3e-6,  # the same twice, and a tanh that may be 4 units in the last place off
    "qmm": 5e-6,  # against tiles rounded in float64; halves below 6e-5 of the largest may be 0
    "dequantize": 3e-7,  # seven additions a value
    "embed": 3e-7,
    "hadamard": 3e-7,
    "gelu_mul": 1e-6,
    "residual_norm": 1e-6,  # sums of K squares
}
# What the float16 of tables and tiles costs against the twin, which has neither: up to 4.9e-4 of
# each centroid, and more of few outputs that have cancelled (seen 6e-4 of 9).
HALF_TABLE = 1e-3
HALF_TILES = 5e-4
ROUNDING = {F32: 0.0, F16: 2**-11, BF16: 2**-8}  # half a step at most

ORDERS = (FORWARD, REVERSE, 2)
ALIGNED = Checks(lane_orders=ORDERS, flush_to_zero=True, misalign=16)
JITTERED = Checks(lane_orders=ORDERS, flush_to_zero=True, jitter_ulp=4, misalign=16)


def sliced(dtype, jitter_ulp=0):
    """Checks for kernels that promise to take slices, which are aligned to an element.

    The host moves all inputs by as many bytes: those of the widest dtype.
    """
    return Checks(
        lane_orders=ORDERS, flush_to_zero=True, jitter_ulp=jitter_ulp, misalign=dtype.size
    )


def coded(bits, rows, columns):
    """A coded matrix as numpy arrays, and as the kernels take it."""
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    norms = rng.uniform(0.1, 2.0, (rows, columns // 128)).astype(np.float16)
    levels = centroids("clip4_100", bits)
    padded = np.pad(levels, (0, max(0, 8 - levels.size)), constant_values=9)
    arrays = mx.array(pack_p32(codes, bits)), mx.array(norms), mx.array(padded)
    return (codes, norms, levels), CodedMatrix(*arrays, bits)


def rotated_weight(codes, norms, levels):
    """The weight in the basis of its codes, in float64."""
    blocks = levels.astype(np.float64)[codes].reshape(*norms.shape, 128)
    return (blocks * norms.astype(np.float64)[..., None] / np.sqrt(128)).reshape(codes.shape)


def half_weight(codes, norms, levels):
    """The same rounded to float16 as qmm does, by way of float32."""
    scales = norms.astype(np.float32) * np.float32(128**-0.5)
    blocks = levels[codes].reshape(*norms.shape, 128) * scales[..., None]
    return blocks.reshape(codes.shape).astype(np.float16).astype(np.float64)


def hadamard(x):
    """Sylvester's doubling, in float64."""
    h = np.ones((1, 1))
    for _ in range(7):
        h = np.block([[h, h], [h, -h]])
    return (x.reshape(-1, 128) @ h / np.sqrt(128)).reshape(x.shape)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rms_norm(x, weight, epsilon):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weight


def wide(array):
    return np.array(array.astype(mx.float32)).astype(np.float64)


def random(*shape, dtype=F32, seed=0):
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def assert_close(got, expected, tolerance):
    expected = wide(expected) if isinstance(expected, mx.array) else expected
    difference = wide(got) - expected
    error = np.linalg.norm(difference) / np.linalg.norm(expected)
    assert error <= tolerance + ROUNDING[got.dtype], (
        f"relative error {error:.3g}, at most {abs(difference).max():.3g}, "
        f"{abs(difference).mean():.3g} on average, of values up to {abs(expected).max():.3g}"
    )


def named(cases):
    def name(value):
        if isinstance(value, tuple):
            return "_".join(map(name, value))
        return str(value).removeprefix("mlx.core.")

    return [
        pytest.param(*case.values(), id="-".join(name(value) for value in case.values()))
        for case in cases
    ]


FEW = [1, 2, 3, 5, 7, 8]
# Rows of one simdgroup, of whole and broken numbers of blocks for each, and the longest.
RESIDUAL_NORM_CASES = [
    (128, (F32, F32), True, 3),
    (384, (F16, F32), False, 1),
    (1024, (F32, BF16), False, 3),
    (1152, (BF16, BF16), True, 1),
    (2560, (F16, F16), True, 2),
    (2560, (BF16, BF16), False, 1),
    (8192, (F32, F16), True, 1),
]
# The arguments of test_qmv and so on: here in part, all of their products by kernel_matrix.py.
# Tiles of qmv for few and for many rows, whatever the number of rows is: N straddles their edges.
FACTORS: dict[str, dict[str, list[Any]]] = {
    "qmv": {
        "bits": list(WIDTHS),
        "M": FEW,
        "dtypes": DTYPES,
        "K": [128, 256, 384, 512, 1024],
        "N": [9, 31, 33, 65],
        "N_of_tile": [256, 4096],
    },
    "geglu": {"bits": list(WIDTHS), "M": FEW},
    # M rows of x, each with k of the experts.
    "gather_qmv": {
        "bits": list(WIDTHS),
        "M": [1, 3, 9],
        "k": [1, 2, 8],
        "dtypes": DTYPES,
        "K": [128, 384],
        "N": [9, 33],
    },
    # Its kernel takes seconds to compile: test_qmm does so once a width.
    "qmm": {
        "bits": list(WIDTHS),
        "M": [1, 9, 16, 31, 33, 64],
        "dtypes": [(F32, F32), (F16, F16), (BF16, BF16)],
        "K": [128, 384],
        "N": [9, 63, 65],
    },
    # Rows of three experts.
    "gather_qmm": {
        "bits": list(WIDTHS),
        "rows": [(33, 0, 5), (1, 64, 31), (0, 0, 2)],
        "dtypes": [(F32, F32), (F16, F16), (BF16, BF16)],
        "K": [128, 384],
        "N": [9, 65],
    },
    "dequantize": {"bits": list(WIDTHS), "dtype": [F32, F16, BF16], "N": [8, 9, 35, 11]},
    "embed": {
        "bits": list(WIDTHS),
        "dtype": [F32, F16, BF16],
        "shape": [(1,), (2, 3), (9,), (7,)],
        "ids_dtype": [mx.int32, mx.uint32, mx.int64],
    },
    "hadamard": {"shape": [(128,), (2, 3, 128), (3, 640)], "dtypes": DTYPES},
    "gelu_mul": {"dtypes": DTYPES},
    "residual_norm": {
        "K": sorted({K for K, *_ in RESIDUAL_NORM_CASES}),
        "dtypes": DTYPES,
        "is_normed": [False, True],
        "M": [1, 2, 3],
    },
}


@pytest.mark.parametrize(
    ("bits", "M", "dtypes", "K", "N", "N_of_tile"), named(pairwise(**FACTORS["qmv"]))
)
def test_qmv(bits, M, dtypes, K, N, N_of_tile):
    (codes, norms, levels), matrix = coded(bits, N, K)
    x = random(M, K, dtype=dtypes[0])
    tile = qmv_tile(bits, M, N_of_tile, K)
    with device(ALIGNED):
        y = kernels.qmv(x, matrix, dtype=dtypes[1], tile=tile)
    assert y.dtype == dtypes[1]
    entries = levels if bits == 1 else levels.astype(np.float16)
    assert_close(y, wide(x) @ rotated_weight(codes, norms, entries).T, TOL["qmv"])
    assert_close(y, codec.qmv(x.astype(F32), matrix), TOL["qmv"] + HALF_TABLE)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_qmv_with_exact_tables(bits):
    parts, matrix = coded(bits, 9, 256)
    x = random(1, 256)
    with device(ALIGNED):
        y = kernels.qmv(x, matrix, entries=F32)
    assert_close(y, wide(x) @ rotated_weight(*parts).T, TOL["qmv"])


@pytest.mark.parametrize(("bits", "M"), [*product((3, 5), (1, 2, 7)), (1, 1), (8, 3)])
def test_geglu(bits, M):
    (codes, norms, levels), matrix = coded(bits, 66, 384)
    x = random(2, M, 384)[0]
    tile = qmv_tile(bits, M, 4096, 384)
    with device(JITTERED):
        y = kernels.geglu(x, matrix, tile=tile)
    entries = levels if bits == 1 else levels.astype(np.float16)
    gate, up = np.split(wide(x) @ rotated_weight(codes, norms, entries).T, 2, axis=-1)
    assert_close(y, gelu(gate) * up, TOL["geglu"])
    assert_close(y, codec.geglu(x, matrix), TOL["geglu"] + 3 * HALF_TABLE)


@pytest.mark.parametrize(
    ("bits", "M", "k", "dtypes", "K", "N"), in_turn(*FACTORS["gather_qmv"].values())
)
def test_gather_qmv(bits, M, k, dtypes, K, N):
    count = 3
    (codes, norms, levels), matrix = coded(bits, count * N, K)
    x = random(M, K, dtype=dtypes[0])
    experts = mx.random.randint(0, count, (M, k), key=mx.random.key(K)).astype(mx.uint32)
    with device(ALIGNED):
        y = expert_kernels.gather_qmv(x, experts, matrix, count, dtype=dtypes[1])
    assert y.dtype == dtypes[1]
    entries = levels if bits == 1 else levels.astype(np.float16)
    stack = rotated_weight(codes, norms, entries).reshape(count, N, K)
    expected = np.einsum("mk,menk->men", wide(x), stack[np.array(experts)])
    assert_close(y, expected, TOL["gather_qmv"])
    twin = codec.gather_qmv(x.astype(F32), experts, matrix, count)
    assert_close(y, twin, TOL["gather_qmv"] + HALF_TABLE)


def test_gather_qmv_takes_the_last_expert_for_one_that_is_none():
    _, matrix = coded(4, 3 * 9, 256)
    x = random(1, 256)
    with device(ALIGNED):
        y = expert_kernels.gather_qmv(x, mx.array([[3, 1 << 31, 2]], mx.uint32), matrix, 3)
    assert mx.array_equal(y[:, :2], mx.concatenate([y[:, 2:]] * 2, axis=1))
    wanted = codec.gather_qmv(x, mx.array([[2, 2, 2]]), matrix, 3)
    assert_close(y, wanted, TOL["gather_qmv"] + HALF_TABLE)


def rounded_tile(x):
    """Rows as qmm multiplies them: scaled by a power of two, rounded to float16, scaled back."""
    power = 2.0 ** np.floor(np.log2(abs(x).max(axis=-1, keepdims=True)))
    return (x / power).astype(np.float16).astype(np.float64) * power


def qmm_cases():
    """Every pair of M, K and N, and three of them for each width, with dtypes in turn."""
    factors = FACTORS["qmm"]
    sizes = pairwise(M=factors["M"], K=factors["K"], N=factors["N"])
    kernels_built = in_turn(factors["bits"], factors["dtypes"])
    count = max(len(sizes), 3 * len(kernels_built))
    return [
        {"bits": bits, "dtypes": dtypes, **size}
        for _, (bits, dtypes), size in in_turn(range(count), kernels_built, sizes)
    ]


@pytest.mark.parametrize(("bits", "dtypes", "M", "K", "N"), named(qmm_cases()))
def test_qmm(bits, dtypes, M, K, N):
    parts, matrix = coded(bits, N, K)
    x = random(M, K, dtype=dtypes[0])
    with device(ALIGNED):
        y = kernels.qmm(x, matrix, dtype=dtypes[1])
    assert y.dtype == dtypes[1]
    assert_close(y, rounded_tile(wide(x)) @ half_weight(*parts).T, TOL["qmm"])
    assert_close(y, codec.qmm(x.astype(F32), matrix), TOL["qmm"] + HALF_TILES)


@pytest.mark.parametrize(
    ("bits", "rows", "dtypes", "K", "N"), in_turn(*FACTORS["gather_qmm"].values())
)
def test_gather_qmm(bits, rows, dtypes, K, N):
    parts, matrix = coded(bits, len(rows) * N, K)
    x = random(sum(rows), K, dtype=dtypes[0])
    starts = mx.array(np.cumsum([0, *rows]))
    with device(ALIGNED):
        y = expert_kernels.gather_qmm(x, starts, matrix, len(rows), dtype=dtypes[1])
    assert y.dtype == dtypes[1]
    stack = half_weight(*parts).reshape(len(rows), N, K)
    ends = np.cumsum(rows)[:-1]
    each = zip(np.split(rounded_tile(wide(x)), ends), stack, strict=True)
    expected = np.concatenate([rows @ weight.T for rows, weight in each])
    assert_close(y, expected, TOL["gather_qmm"])
    twin = codec.gather_qmm(x.astype(F32), starts, matrix, len(rows))
    assert_close(y, twin, TOL["gather_qmm"] + HALF_TILES)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1e6, 1e30])
def test_qmm_holds_rows_that_float16_does_not(scale):
    _, matrix = coded(4, 9, 128)
    x = random(3, 128) * mx.array([[1.0], [scale], [3.0]])
    with device(ALIGNED):
        y = kernels.qmm(x, matrix)
    expected = codec.qmm(x, matrix)
    for row in (0, 2) if scale == 0 else (0, 1, 2):
        assert_close(y[row], expected[row], TOL["qmm"] + HALF_TILES)
    assert scale or not y[1].any()


def test_qmm_holds_the_largest_rows():
    """The inverse of the power of two below 3e38 is not normal, so the next smaller one is used."""
    parts, matrix = coded(4, 9, 128)
    x = mx.zeros((1, 128))
    x[0, 127] = 3e38
    with device(ALIGNED):
        y = kernels.qmm(x, matrix)
    assert_close(y, rounded_tile(wide(x)) @ half_weight(*parts).T, TOL["qmm"])


@pytest.mark.parametrize(("bits", "dtype", "N"), in_turn(*FACTORS["dequantize"].values()))
def test_dequantize(bits, dtype, N):
    parts, matrix = coded(bits, N, 384)
    with device(ALIGNED):
        weight = kernels.dequantize(matrix, dtype=dtype)
        rotated = kernels.rotated_weight(matrix, dtype=dtype)
    assert weight.dtype == rotated.dtype == dtype
    assert_close(weight, hadamard(rotated_weight(*parts)), TOL["dequantize"])
    assert_close(weight, codec.dequantize(matrix), TOL["dequantize"])
    assert_close(rotated, rotated_weight(*parts), TOL["dequantize"])
    assert_close(rotated, codec.rotated_weight(matrix), TOL["dequantize"])


@pytest.mark.parametrize(
    ("bits", "dtype", "shape", "ids_dtype"), in_turn(*FACTORS["embed"].values())
)
def test_embed(bits, dtype, shape, ids_dtype):
    parts, matrix = coded(bits, 19, 256)
    ids = mx.random.randint(0, 19, shape, key=mx.random.key(bits)).astype(ids_dtype)
    with device(ALIGNED):
        rows = kernels.embed(ids, matrix, dtype=dtype)
    assert rows.dtype == dtype
    assert_close(rows, hadamard(rotated_weight(*parts))[np.array(ids)], TOL["embed"])
    assert_close(rows, codec.embed(ids, matrix), TOL["embed"])


def test_embed_reads_the_last_row_for_an_id_that_is_none():
    _, matrix = coded(4, 19, 256)
    with device(ALIGNED):
        rows = kernels.embed(mx.array([19, -1, 18]), matrix)
    assert_close(rows, codec.embed(mx.array([18, 18, 18]), matrix), TOL["embed"])


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("shape", FACTORS["hadamard"]["shape"])
def test_hadamard(shape, dtypes):
    x = random(*shape, dtype=dtypes[0])
    with device(sliced(dtypes[0])):
        y = kernels.hadamard(x, dtype=dtypes[1])
    assert y.dtype == dtypes[1]
    assert y.shape == shape
    assert_close(y, hadamard(wide(x)), TOL["hadamard"])
    assert_close(y, codec.hadamard(x.astype(F32)), TOL["hadamard"])


@pytest.mark.parametrize("dtypes", DTYPES)
def test_gelu_mul(dtypes):
    gate, up = random(3, 384, dtype=dtypes[0]) * 3, random(3, 384, dtype=dtypes[1], seed=1)
    with device(sliced(max(dtypes, key=lambda dtype: dtype.size), jitter_ulp=4)):
        product, y = kernels.gelu_mul(gate, up)
    assert (product.dtype, y.dtype) == (dtypes[0], F32)
    expected = gelu(wide(gate)) * wide(up)
    assert_close(product, expected, TOL["gelu_mul"])
    assert_close(y, hadamard(expected), TOL["gelu_mul"])
    twin_product, twin_y = codec.gelu_mul(gate, up)
    assert_close(product, twin_product, TOL["gelu_mul"] + ROUNDING[dtypes[0]])
    assert_close(y, twin_y, TOL["gelu_mul"])


@pytest.mark.parametrize(("K", "dtypes", "is_normed", "M"), RESIDUAL_NORM_CASES)
def test_residual_norm(K, dtypes, is_normed, M):
    x, update = random(M, K, dtype=dtypes[0]) * 8, random(M, K, dtype=dtypes[1], seed=1) * 3
    weights = [(1 + random(K, seed=seed) / 4).astype(dtypes[1]) for seed in (2, 3)]
    scale = mx.array([0.7]).astype(dtypes[1])
    arguments = (x, update, weights[0], scale, 1e-6, weights[1] if is_normed else None)
    with device(sliced(max(dtypes, key=lambda dtype: dtype.size), jitter_ulp=4)):
        h, normed, y = kernels.residual_norm(*arguments)
    assert (h.dtype, normed.dtype, y.dtype) == (dtypes[0], dtypes[0], F32)
    sums = wide(x) + rms_norm(wide(update), wide(weights[0]), 1e-6)
    assert_close(h, sums * wide(scale), TOL["residual_norm"])
    # From h as it is: a sum next to the middle between two float16 may be rounded either way.
    expected = rms_norm(wide(h), wide(weights[1]), 1e-6) if is_normed else wide(h)
    assert_close(normed, expected, TOL["residual_norm"])
    assert_close(y, hadamard(expected), TOL["residual_norm"])
    twin_h, twin_normed, twin_y = codec.residual_norm(*arguments)
    assert_close(h, twin_h, TOL["residual_norm"])
    assert_close(normed, twin_normed, TOL["residual_norm"] + ROUNDING[dtypes[0]])
    assert_close(y, twin_y, TOL["residual_norm"] + ROUNDING[dtypes[0]])


def test_every_kernel_has_a_contract_a_twin_and_a_short_text():
    for name, body in BODIES.items():
        first = (metal_folder() / f"{body.file}.metal").read_text("ascii").splitlines()[0]
        assert first.startswith(f"// {body.file}: ")
        assert callable(getattr(codec, name))
        assert callable(getattr(expert_kernels if "gather" in name else kernels, name))
        # What a decoded token calls is built and hashed at every call.
        most = {"gather_qmm": 9500, "gather_qmv": 9100}.get(name, 8500)
        assert len(body.header()) + len(body.text) < most


def test_mlx_takes_the_kernels_as_they_are(tmp_path):
    """Exported, a call goes through MLX's own generator without needing a GPU."""
    _, matrix = coded(5, 9, 256)

    def run(x, *arrays):
        matrix = CodedMatrix(*arrays, 5)
        few = kernels.qmv(x, matrix)
        rows = kernels.embed(mx.array([1, 2]), matrix)
        h, _, y = kernels.residual_norm(rows, rows, rows[0], mx.array([1.0]), 1e-6)
        decoded = kernels.dequantize(matrix)
        return few, kernels.qmm(y, matrix), *kernels.gelu_mul(h, y), decoded

    mx.export_function(str(tmp_path / "kernels.mlxfn"), run, random(3, 256), *matrix.arrays)
