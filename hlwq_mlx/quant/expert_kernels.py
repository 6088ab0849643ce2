"""The Metal kernels for stacks of experts, under the names of their twins in codec.

A stack is one coded matrix, an expert's rows below the other's. Grids and limits as in kernels,
which is the file that calls MLX.

M rows of x, P rows of x times experts, N rows of an expert and K columns.
"""

import mlx.core as mx

from ..errors import ShapeError
from . import codec
from .chips import Tile
from .kernels import GROUP, LANES, as_rows, check_matrix, qmv_tile, run
from .matrix import CodedMatrix
from .packing import UNIT


def gather_qmv(
    x: mx.array,
    experts: mx.array,
    matrix: CodedMatrix,
    count: int,
    *,
    dtype: mx.Dtype | None = None,
    tile: Tile | None = None,
) -> mx.array:
    """Multiply each rotated row by some of a stack of `count` coded matrices, one below the other.

    Sums are float32, rounded once to `dtype`, x's by default. Experts must be below `count`; any
    other is the last, as a kernel cannot raise an error.

    Shapes: as codec.gather_qmv.
    Raises: ShapeError when an array does not fit the others or the limits of gather_qmv.metal.
    """
    where = "expert_kernels.gather_qmv"
    check_matrix(where, matrix)
    height, K = matrix.shape
    rows = as_rows(where, x, K)
    codec.check_experts(where, x, experts, height, count)
    N = height // count
    tile = tile or gather_tile(matrix.bits, N, K)
    if K // UNIT % tile.lanes or tile.tokens != 1 or experts.size * N >= 1 << 32:
        raise ShapeError(
            f"[{where}] needed lanes that divide the {K // UNIT} units of a row, one row of x at "
            f"once and less than 2**32 results, got {tile} and {experts.shape} experts. "
            "Let gather_tile choose, or split the rows."
        )
    groups = -(-N // (tile.simdgroups * (LANES // tile.lanes) * tile.rows))
    (y,) = run(
        "gather_qmv",
        [rows, experts.reshape(-1).astype(mx.uint32), *matrix.arrays],
        [
            ("E", mx.float16),
            ("B", matrix.bits),
            ("ROWS", tile.rows),
            ("LANES", tile.lanes),
            ("SIMDGROUPS", tile.simdgroups),
            ("EXPERTS", count),
        ],
        grid=(LANES * experts.size, tile.simdgroups * groups, 1),
        group=(LANES, tile.simdgroups, 1),
        shapes=[(*experts.shape, N)],
        dtypes=[dtype or x.dtype],
    )
    return y


def gather_qmm(
    x: mx.array,
    starts: mx.array,
    matrix: CodedMatrix,
    count: int,
    *,
    dtype: mx.Dtype | None = None,
) -> mx.array:
    """Multiply rotated rows, in the order of their experts, by a stack of `count` coded matrices.

    Numbers are rounded as by `qmm`. `starts` must rise from 0 to the number of rows.

    Shapes: as codec.gather_qmm.
    Raises: ShapeError when an array does not fit the others or the limits of gather_qmm.metal.
    """
    where = "expert_kernels.gather_qmm"
    check_matrix(where, matrix)
    height, K = matrix.shape
    rows = as_rows(where, x, K)
    P, N = rows.shape[0], height // count
    codec.check_ids(where, starts)
    if P < 1 or height % count or starts.shape != (count + 1,):
        raise ShapeError(
            f"[{where}] needed rows of x, {count} matrices of one height and their {count + 1} "
            f"starts, got {P} rows, {height} and {starts.shape}. Sort the rows by expert."
        )
    (y,) = run(
        "gather_qmm",
        [rows, starts.astype(mx.uint32), *matrix.arrays],
        [("B", matrix.bits), ("EXPERTS", count)],
        # A threadgroup computes 64 outputs of 32 rows of one expert.
        grid=(GROUP * -(-N // 64), P // 32 + count, 1),
        group=(GROUP, 1, 1),
        shapes=[(P, N)],
        dtypes=[dtype or x.dtype],
    )
    return y


def gather_tile(bits: int, N: int, K: int) -> Tile:
    """Return the tile of this machine's chip for one row and matrices [N, K] of a stack."""
    return qmv_tile(bits, 1, N, K)
