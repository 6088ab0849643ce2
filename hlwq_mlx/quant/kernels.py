"""The Metal kernels under the names of the twins that define them: codec says what they compute.

The one caller of `mx.fast.metal_kernel`. The texts are in metal/; what is added here is a body that
declares threadgroup memory and makes one call, the grid, and the limits: arrays that a kernel is
not made for raise ShapeError. Which kernel runs when is backend's to say, and so is the choice
whether any of this is used: without Metal a call raises RuntimeError.

`make_kernel` is what builds a kernel: tests put a host for Linux in its place.

M rows of x, N rows and K columns of the coded matrix.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ..errors import ShapeError
from . import codec
from .packing import BLOCK, UNIT

make_kernel: Callable[..., Any] = mx.fast.metal_kernel

QMV_ROWS = 8
FLOATING = (mx.float32, mx.float16, mx.bfloat16)
SMALLEST = 8 * BLOCK  # an array of less than 8 norms would lie in another address space

_LANES = 32

Options = Sequence[tuple[str, bool | int | mx.Dtype]]
Size = tuple[int, int, int]


class Body(NamedTuple):
    """What makes a kernel of the functions in a .metal file."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    text: str


BODIES = {
    "qmv": Body(
        "qmv",
        ("x", "codes", "norms", "centroids"),
        ("y",),
        """
threadgroup vec<E, 2> tables[SIMDGROUPS * hlwq::table_size(B)];
hlwq::qmv<E, B, ROWS, LANES, SIMDGROUPS, TOKENS, GEGLU>(
    x, codes, norms, centroids, y, tables, uint(x_shape[0]), uint(x_shape[1]),
    uint(norms_shape[0]), threadgroup_position_in_grid, simdgroup_index_in_threadgroup,
    thread_index_in_simdgroup);""",
    ),
}


class Coded(NamedTuple):
    """A coded matrix, as the twins take it."""

    codes: mx.array
    norms: mx.array
    centroids: mx.array
    bits: int


class Tile(NamedTuple):
    """How qmv is cut: rows a lane, lanes a row, simdgroups a threadgroup, rows of x at once."""

    rows: int
    lanes: int
    simdgroups: int
    tokens: int


def qmv_tile(bits: int, M: int, N: int, K: int) -> Tile:
    """Choose a tile, after a model of the M1: nothing here was measured.

    More rows a lane share a load of x; too many leave cores idle where N is small, and need
    registers, of which more tokens leave fewer. Lanes have to divide the units of a row.
    """
    lanes = next(lanes for lanes in (16, 8, 4) if K // UNIT % lanes == 0)
    tokens = M if M <= 5 else -(-M // 2)
    rows = 8 if bits <= 3 else 4
    if tokens > 1:
        rows //= 2
    if N < 1024 or tokens > 2:
        rows = 2
    return Tile(rows, lanes, 4, tokens)


def qmv(
    x: mx.array,
    codes: mx.array,
    norms: mx.array,
    centroids: mx.array,
    bits: int,
    *,
    dtype: mx.Dtype | None = None,
    tile: Tile | None = None,
    entries: mx.Dtype = mx.float16,
) -> mx.array:
    """Multiply up to 8 rotated rows by a coded matrix.

    Sums are float32, rounded once to `dtype`, x's by default. Centroids are rounded to `entries`:
    float32 is exact and twice the traffic.

    Shapes: as codec.qmv.
    Raises: ShapeError when an array does not fit the others or the limits of qmv.metal.
    """
    matrix = Coded(codes, norms, centroids, bits)
    check_matrix("kernels.qmv", matrix)
    return _qmv("kernels.qmv", x, matrix, dtype or x.dtype, tile, entries, is_geglu=False)


def geglu(
    x: mx.array,
    codes: mx.array,
    norms: mx.array,
    centroids: mx.array,
    bits: int,
    *,
    dtype: mx.Dtype | None = None,
    tile: Tile | None = None,
    entries: mx.Dtype = mx.float16,
) -> mx.array:
    """Multiply up to 8 rotated rows by gate|up and return gelu(gate) * up, as `qmv` does.

    Shapes: as codec.geglu.
    Raises: ShapeError when an array does not fit the others or the limits of qmv.metal.
    """
    matrix = Coded(codes, norms, centroids, bits)
    check_matrix("kernels.geglu", matrix)
    codec.check_halves("kernels.geglu", norms)
    return _qmv("kernels.geglu", x, matrix, dtype or x.dtype, tile, entries, is_geglu=True)


def _qmv(
    where: str,
    x: mx.array,
    matrix: Coded,
    dtype: mx.Dtype,
    tile: Tile | None,
    entries: mx.Dtype,
    is_geglu: bool,
) -> mx.array:
    N, K = matrix.norms.shape[0], matrix.norms.shape[1] * BLOCK
    rows = _rows(where, x, K)
    M = rows.shape[0]
    if not 1 <= M <= QMV_ROWS:
        raise ShapeError(
            f"[{where}] needed 1 to {QMV_ROWS} rows, got {M}. Use qmm, or split the rows."
        )
    tile = tile or qmv_tile(matrix.bits, M, N, K)
    halves = 2 if is_geglu else 1
    if K // UNIT % tile.lanes or tile.rows % halves:
        raise ShapeError(
            f"[{where}] needed lanes that divide the {K // UNIT} units of a row, and an even "
            f"number of rows for gate|up, got {tile}. Let qmv_tile choose."
        )
    outputs_per_group = tile.simdgroups * (_LANES // tile.lanes) * (tile.rows // halves)
    groups = -(-(N // halves) // outputs_per_group)
    (y,) = _run(
        "qmv",
        (rows, matrix.codes, matrix.norms, matrix.centroids),
        [
            ("E", entries),
            ("B", matrix.bits),
            ("ROWS", tile.rows),
            ("LANES", tile.lanes),
            ("SIMDGROUPS", tile.simdgroups),
            ("TOKENS", tile.tokens),
            ("GEGLU", is_geglu),
        ],
        grid=(_LANES * -(-M // tile.tokens), tile.simdgroups * groups, 1),
        group=(_LANES, tile.simdgroups, 1),
        outputs=[((M, N // halves), dtype)],
    )
    return y.reshape(*x.shape[:-1], N // halves)


def check_matrix(where: str, matrix: Coded) -> None:
    """Refuse a coded matrix that the kernels cannot address, naming `where`.

    Raises: ShapeError.
    """
    codec.check_coded(where, *matrix)
    _, norms, centroids, _ = matrix
    if norms.dtype != mx.float16 or centroids.dtype != mx.float32:
        raise ShapeError(
            f"[{where}] needed norms of float16 and centroids of float32, "
            f"got {norms.dtype} and {centroids.dtype}. Cast them."
        )
    if norms.size * BLOCK < SMALLEST or matrix.codes.size >= 1 << 32 or centroids.size < 8:
        raise ShapeError(
            f"[{where}] needed from {SMALLEST} weights to 2**32 words of codes, and 8 centroids, "
            f"got {norms.size * BLOCK}, {matrix.codes.size} and {centroids.size}. "
            "Use the twin in codec, or split the matrix by rows; pad the table."
        )


def _rows(where: str, x: mx.array, K: int) -> mx.array:
    """Check an activation and return it as a matrix."""
    codec.check_product(where, x, K)
    if x.dtype not in FLOATING:
        raise ShapeError(
            f"[{where}] needed x of float32, float16 or bfloat16, got {x.dtype}. Cast it."
        )
    return x.reshape(-1, K)


def _run(
    name: str,
    inputs: Sequence[mx.array | float],
    options: Options,
    *,
    grid: Size,
    group: Size,
    outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
) -> list[mx.array]:
    results: list[mx.array] = _built(make_kernel, name)(
        inputs=list(inputs),
        template=list(options),
        grid=grid,
        threadgroup=group,
        output_shapes=[shape for shape, _ in outputs],
        output_dtypes=[dtype for _, dtype in outputs],
    )
    return results


@cache
def _built(make: Callable[..., Any], name: str) -> Any:
    body = BODIES[name]
    return make(
        name=f"hlwq_{name}",
        input_names=list(body.inputs),
        output_names=list(body.outputs),
        source=body.text,
        header=header(body.file),
    )


def header(file: str) -> str:
    """Return metal/common.metal and one more, as MLX takes them: no includes, no comments.

    MLX builds and hashes the whole source at every call, so its length is time.
    """
    package = Path(__file__).parent.parent
    folder = next(path for path in (package / "metal", package.parent / "metal") if path.is_dir())
    lines = [
        line.strip()
        for name in ("common", file)
        for line in (folder / f"{name}.metal").read_text(encoding="ascii").splitlines()
    ]
    kept = [line for line in lines if line and not line.startswith(("//", "#include"))]
    return "\n".join(kept) + "\n"
