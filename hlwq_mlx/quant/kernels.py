"""The Metal kernels, under the names of the twins in codec that define what they compute.

Only this file calls `mx.fast.metal_kernel`. It is looked up at each call, so that tests can replace
it by a host for Linux. The texts are in metal/ and bodies; this file adds the grids and the limits:
arrays that a kernel is not made for raise ShapeError. Backends decide whether and when a kernel
runs; without Metal a call raises RuntimeError.

M rows of x, N rows and K columns of the coded matrix.
"""

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple, TypedDict, Unpack

import mlx.core as mx

from ..errors import ShapeError
from . import codec, device
from .bodies import BODIES
from .chips import Tile
from .matrix import CodedMatrix
from .packing import BLOCK, UNIT

QMV_ROWS = 8
FLOATING = (mx.float32, mx.float16, mx.bfloat16)
MIN_ENTRIES = 8  # Metal passes shorter arrays in another address space
SMALLEST = MIN_ENTRIES * BLOCK

RESIDUAL_SIMDGROUPS = 8  # of the threadgroup that holds a row; 16 where these hold too many blocks
# Of a row that one simdgroup holds, at most: 8, unrolled, do not fit a cache of 12 KB.
RESIDUAL_BLOCKS = 4
LONGEST_RESIDUAL = BLOCK * 16 * RESIDUAL_BLOCKS

LANES = 32  # threads of a simdgroup
GROUP = 128  # threads of a threadgroup

Options = list[tuple[str, Any]]
Size = tuple[int, int, int]


def qmv_tile(bits: int, M: int, N: int, K: int) -> Tile:
    """Return the tile of this machine's chip.

    With more rows a lane, more rows share a load of x, but registers hold fewer simdgroups: 24 of
    them keep a core busy. Where N is small, many rows would leave cores idle. Lanes must divide the
    units of a row. Source: scripts/kernels/agx/counts.py; nothing was timed.
    """
    return device.chip().tile(bits, M, N, K)


class KernelOptions(TypedDict, total=False):
    """Options of `qmv` and `geglu`, which choose those that are left out.

    Sums are float32, rounded once to `dtype`, x's by default. Centroids are rounded to `entries`,
    float16 by default: float32 is exact and twice the traffic. The result has the `leading` axes,
    x's by default.
    """

    dtype: mx.Dtype
    tile: Tile | None
    entries: mx.Dtype
    leading: tuple[int, ...] | None


def qmv(x: mx.array, matrix: CodedMatrix, **options: Unpack[KernelOptions]) -> mx.array:
    """Multiply up to 8 rotated rows by a coded matrix.

    Shapes: as codec.qmv.
    Raises: ShapeError when an array does not fit the others or the limits of qmv.metal.
    """
    check_matrix("kernels.qmv", matrix)
    return _qmv("kernels.qmv", x, matrix, halves=1, **options)


def geglu(x: mx.array, matrix: CodedMatrix, **options: Unpack[KernelOptions]) -> mx.array:
    """Multiply up to 8 rotated rows by gate|up and return gelu(gate) * up, as `qmv` does.

    Shapes: as codec.geglu.
    Raises: ShapeError when an array does not fit the others or the limits of qmv.metal.
    """
    check_matrix("kernels.geglu", matrix)
    matrix.check_halves("kernels.geglu")
    return _qmv("kernels.geglu", x, matrix, halves=2, **options)


def _qmv(
    where: str,
    x: mx.array,
    matrix: CodedMatrix,
    halves: int,
    *,
    dtype: mx.Dtype | None = None,
    tile: Tile | None = None,
    entries: mx.Dtype = mx.float16,
    leading: tuple[int, ...] | None = None,
) -> mx.array:
    N, K = matrix.shape
    rows = as_rows(where, x, K)
    M = rows.shape[0]
    tile = tile or qmv_tile(matrix.bits, M, N, K)
    plan = _plan_qmv(where, matrix.bits, M, N, K, tile, halves, entries)
    leading = x.shape[:-1] if leading is None else leading
    (y,) = run(
        "qmv",
        [rows, *matrix.arrays],
        plan.options,
        grid=plan.grid,
        group=plan.group,
        shapes=[(*leading, N // halves)],
        dtypes=[dtype or x.dtype],
    )
    return y


class _Plan(NamedTuple):
    options: Options
    grid: Size
    group: Size


@lru_cache(1024)
def _plan_qmv(
    where: str, bits: int, M: int, N: int, K: int, tile: Tile, halves: int, entries: mx.Dtype
) -> _Plan:
    """Return how qmv is launched, the same at each token."""
    if not 1 <= M <= QMV_ROWS:
        raise ShapeError(
            f"[{where}] needed 1 to {QMV_ROWS} rows, got {M}. Use qmm, or split the rows."
        )
    if K // UNIT % tile.lanes or tile.rows % halves:
        raise ShapeError(
            f"[{where}] needed lanes that divide the {K // UNIT} units of a row, and an even "
            f"number of rows for gate|up, got {tile}. Let qmv_tile choose."
        )
    outputs_per_group = tile.simdgroups * (LANES // tile.lanes) * (tile.rows // halves)
    groups = -(-(N // halves) // outputs_per_group)
    return _Plan(
        [
            ("E", entries),
            ("B", bits),
            ("ROWS", tile.rows),
            ("LANES", tile.lanes),
            ("SIMDGROUPS", tile.simdgroups),
            ("TOKENS", tile.tokens),
            ("GEGLU", halves == 2),
        ],
        grid=(LANES * -(-M // tile.tokens), tile.simdgroups * groups, 1),
        group=(LANES, tile.simdgroups, 1),
    )


def qmm(x: mx.array, matrix: CodedMatrix, *, dtype: mx.Dtype | None = None) -> mx.array:
    """Multiply any number of rotated rows by a coded matrix, 32 at a time.

    Weights and rows are rounded to float16, a row after it was scaled by a power of two; sums are
    float32, rounded once to `dtype`, x's by default.

    Shapes: as codec.qmm.
    Raises: ShapeError when an array does not fit the others or the limits of qmm.metal.
    """
    check_matrix("kernels.qmm", matrix)
    N, K = matrix.shape
    rows = as_rows("kernels.qmm", x, K)
    M = rows.shape[0]
    if M < 1:
        raise ShapeError("[kernels.qmm] needed at least one row, got none. Leave the call out.")
    (y,) = run(
        "qmm",
        [rows, *matrix.arrays],
        [("B", matrix.bits)],
        # A threadgroup computes 64 outputs of 32 rows.
        grid=(GROUP * -(-N // 64), -(-M // 32), 1),
        group=(GROUP, 1, 1),
        shapes=[(*x.shape[:-1], N)],
        dtypes=[dtype or x.dtype],
    )
    return y


def dequantize(matrix: CodedMatrix, *, dtype: mx.Dtype = mx.float32) -> mx.array:
    """Return the weight itself, rotated back; float32 inside, rounded once to `dtype`.

    Shapes: as codec.dequantize.
    Raises: ShapeError when an array does not fit the others or the limits of dequantize.metal.
    """
    return _dequantize("kernels.dequantize", matrix, dtype, is_rotated_back=True)


def rotated_weight(matrix: CodedMatrix, *, dtype: mx.Dtype = mx.float32) -> mx.array:
    """Return the weight in the basis of its codes; float32 inside, rounded once to `dtype`.

    Shapes: as codec.rotated_weight.
    Raises: ShapeError when an array does not fit the others or the limits of dequantize.metal.
    """
    return _dequantize("kernels.rotated_weight", matrix, dtype, is_rotated_back=False)


def _dequantize(
    where: str, matrix: CodedMatrix, dtype: mx.Dtype, is_rotated_back: bool
) -> mx.array:
    check_matrix(where, matrix)
    N, K = matrix.shape
    (y,) = run(
        "dequantize",
        [*matrix.arrays],
        [("B", matrix.bits), ("BACK", is_rotated_back)],
        grid=(_whole_groups(N * K // UNIT), 1, 1),
        group=(GROUP, 1, 1),
        shapes=[(N, K)],
        dtypes=[dtype],
    )
    return y


def embed(ids: mx.array, matrix: CodedMatrix, *, dtype: mx.Dtype = mx.float32) -> mx.array:
    """Return the rows `ids` of the weight, rotated back; float32 inside, rounded once to `dtype`.

    Ids must be below N; any other reads the last row, as a kernel cannot raise an error.

    Shapes: as codec.embed.
    Raises: ShapeError when an array does not fit the others or the limits of embed.metal.
    """
    check_matrix("kernels.embed", matrix)
    codec.check_ids("kernels.embed", ids)
    if not ids.size:
        raise ShapeError("[kernels.embed] needed at least one id, got none. Leave the call out.")
    K = matrix.shape[1]
    (y,) = run(
        "embed",
        [ids.reshape(-1).astype(mx.uint32), *matrix.arrays],
        [("B", matrix.bits)],
        grid=(_whole_groups(ids.size * K // UNIT), 1, 1),
        group=(GROUP, 1, 1),
        shapes=[(*ids.shape, K)],
        dtypes=[dtype],
    )
    return y


def hadamard(x: mx.array, *, dtype: mx.Dtype | None = None) -> mx.array:
    """Rotate every block of 128; float32 inside, rounded once to `dtype`, x's by default.

    Shapes: as codec.hadamard.
    Raises: ShapeError when x does not fit the limits of hadamard.metal.
    """
    rows = _blocks("kernels.hadamard", x)
    (y,) = run(
        "hadamard",
        [rows],
        [],
        grid=(_whole_groups(x.size // BLOCK * LANES), 1, 1),
        group=(GROUP, 1, 1),
        shapes=[x.shape],
        dtypes=[dtype or x.dtype],
    )
    return y


def gelu_mul(
    gate: mx.array, up: mx.array, *, dtype: mx.Dtype = mx.float32
) -> tuple[mx.array, mx.array]:
    """Return gelu(gate) * up in gate's dtype, and its rotation in `dtype`; float32 inside.

    Shapes: as codec.gelu_mul, but the rotation is a matrix [M, K].
    Raises: ShapeError when the arrays differ in shape or do not fit the limits of hadamard.metal.
    """
    rows, others = _blocks("kernels.gelu_mul", gate), _blocks("kernels.gelu_mul", up)
    if gate.shape != up.shape:
        raise ShapeError(
            f"[kernels.gelu_mul] needed gate and up of one shape, got {gate.shape} and {up.shape}. "
            "Give as many columns of both."
        )
    product, y = run(
        "gelu_mul",
        [rows, others],
        [],
        grid=(_whole_groups(gate.size // BLOCK * LANES), 1, 1),
        group=(GROUP, 1, 1),
        shapes=[gate.shape, rows.shape],
        dtypes=[gate.dtype, dtype],
    )
    return product, y


def residual_norm(
    x: mx.array,
    update: mx.array,
    weight: mx.array,
    scale: mx.array,
    epsilon: float,
    next_weight: mx.array | None = None,
    *,
    dtype: mx.Dtype = mx.float32,
) -> tuple[mx.array, mx.array, mx.array]:
    """Add a normed update to the residual stream, norm the sum if asked, and rotate that.

    Float32 inside; the rotation is rounded once to `dtype`, the others to x's.

    Shapes: as codec.residual_norm, but the rotation is a matrix [M, K].
    Raises: ShapeError when an array does not fit x or the limits of residual_norm.metal.
    """
    following = weight if next_weight is None else next_weight
    plan = _plan_residual_norm(
        (x.shape, update.shape, weight.shape, following.shape, scale.shape),
        (x.dtype, update.dtype),
        next_weight is not None,
    )
    h, normed, y = run(
        "residual_norm",
        [x, update, weight, following, scale, epsilon],
        plan.options,
        grid=plan.grid,
        group=plan.group,
        shapes=[x.shape, x.shape, plan.rows],
        dtypes=[x.dtype, x.dtype, dtype],
    )
    return h, normed, y


class _ResidualPlan(NamedTuple):
    options: Options
    grid: Size
    group: Size
    rows: tuple[int, int]


@lru_cache(1024)
def _plan_residual_norm(
    shapes: tuple[tuple[int, ...], ...], dtypes: tuple[mx.Dtype, mx.Dtype], is_normed: bool
) -> _ResidualPlan:
    """Return how residual_norm is launched, for x, update, two weights and a scale."""
    x, update, weight, following, scale = shapes
    _check_blocks("kernels.residual_norm", x, dtypes[0])
    _check_blocks("kernels.residual_norm", update, dtypes[1])
    K = x[-1]
    if update != x or not weight == following == (K,) or scale != (1,) or K > LONGEST_RESIDUAL:
        raise ShapeError(
            "[kernels.residual_norm] needed an update of x's shape, weights [K], a scale [1] and K "
            f"up to {LONGEST_RESIDUAL}, got {x}, {update}, {weight}, {following} and {scale}. "
            "Use codec.residual_norm for longer rows."
        )
    M = math.prod(x) // K
    simdgroups, blocks = residual_tile(K)
    return _ResidualPlan(
        [("SIMDGROUPS", simdgroups), ("BLOCKS", blocks), ("NORMED", is_normed)],
        grid=(LANES * simdgroups * M, 1, 1),
        group=(LANES * simdgroups, 1, 1),
        rows=(M, K),
    )


def residual_tile(K: int) -> tuple[int, int]:
    """Return the simdgroups of a row, and the blocks of 128 that each of them holds at most."""
    blocks = min(RESIDUAL_BLOCKS, -(-K // (BLOCK * RESIDUAL_SIMDGROUPS)))
    return -(-K // (BLOCK * blocks)), blocks


def can_rotate(K: int) -> bool:
    """Return whether rows of K columns are whole blocks, as `hadamard` and `gelu_mul` need."""
    return K % BLOCK == 0 and K > 0


def can_residual_norm(K: int) -> bool:
    """Return whether `residual_norm` takes rows of K columns, of which a threadgroup holds one."""
    return can_rotate(K) and K <= LONGEST_RESIDUAL


def can_address(matrix: CodedMatrix) -> bool:
    """Return whether a matrix is neither too small nor too large for the kernels."""
    is_large = matrix.norms.size * BLOCK >= SMALLEST and matrix.centroids.size >= MIN_ENTRIES
    return is_large and matrix.codes.size < 1 << 32


def check_matrix(where: str, matrix: CodedMatrix) -> None:
    """Raise ShapeError, whose text begins with `where`, for a matrix no kernel is made for."""
    if "kernels" in matrix.passed:
        return
    matrix.check(where)
    norms, centroids = matrix.norms, matrix.centroids
    if norms.dtype != mx.float16 or centroids.dtype != mx.float32:
        raise ShapeError(
            f"[{where}] needed norms of float16 and centroids of float32, "
            f"got {norms.dtype} and {centroids.dtype}. Cast them."
        )
    if not can_address(matrix):
        raise ShapeError(
            f"[{where}] needed at least {SMALLEST} weights, {MIN_ENTRIES} centroids and less than "
            f"2**32 words of codes, got {norms.size * BLOCK}, {centroids.size} and "
            f"{matrix.codes.size}. Use the twin in codec, pad the table, or split the matrix."
        )
    matrix.passed.add("kernels")


def as_rows(where: str, x: mx.array, K: int) -> mx.array:
    """Check an activation and return it as a matrix."""
    if x.ndim == 2 and x.shape[1] == K and x.dtype in FLOATING and x.size < 1 << 32:
        return x
    codec.check_product(where, x, K)
    if x.dtype not in FLOATING or x.size >= 1 << 32:
        raise ShapeError(
            f"[{where}] needed x of float32, float16 or bfloat16 and less than 2**32 elements, "
            f"got {x.dtype} {x.shape}. Cast it, or split the rows."
        )
    return x.reshape(-1, K)


def _blocks(where: str, x: mx.array) -> mx.array:
    """Check an activation of whole blocks and return it as a matrix."""
    _check_blocks(where, x.shape, x.dtype)
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


@lru_cache(1024)
def _check_blocks(where: str, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    is_whole = bool(shape) and shape[-1] % BLOCK == 0 and 0 < math.prod(shape) < 1 << 32
    if dtype not in FLOATING or not is_whole:
        raise ShapeError(
            f"[{where}] needed float32, float16 or bfloat16 [..., K], K a multiple of {BLOCK} and "
            f"not empty, got {dtype} {shape}. Cast it, or pad the last axis with zeros."
        )


def _whole_groups(threads: int) -> int:
    return -(-threads // GROUP) * GROUP


def run(
    name: str,
    inputs: list[Any],
    options: Options,
    *,
    grid: Size,
    group: Size,
    shapes: list[tuple[int, ...]],
    dtypes: list[mx.Dtype],
) -> list[mx.array]:
    """Return what a kernel of bodies computes, by MLX's own names for what it is given."""
    results: list[mx.array] = built(mx.fast.metal_kernel, name)(
        inputs=inputs,
        template=options,
        grid=grid,
        threadgroup=group,
        output_shapes=shapes,
        output_dtypes=dtypes,
    )
    return results


@cache
def built(make: Callable[..., Any], name: str) -> Any:
    """Return a kernel, built by `make` at its first use."""
    body = BODIES[name]
    return make(
        name=f"hlwq_{name}",
        input_names=list(body.inputs),
        output_names=list(body.outputs),
        source=body.text,
        header=body.header(),
    )
