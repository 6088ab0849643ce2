"""The source text of each kernel: its .metal file, and the body that MLX makes a kernel of.

A body declares threadgroup memory, which Metal allows nowhere else, and makes one call. MLX looks
for names such as x_shape and for Metal's attributes in the body alone, so a body passes on whatever
a function needs of them. Grids and limits are in kernels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Body(NamedTuple):
    """The text that calls a function of a .metal file, with its inputs and outputs: a kernel."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    text: str

    def header(self) -> str:
        """Return the kernel's file and those it includes as MLX takes them, without comments.

        MLX builds and hashes the whole source at every call, so its length is time.
        """
        return "\n".join(_lines(self.file, set())) + "\n"


def _lines(file: str, included: set[str]) -> Iterator[str]:
    if file in included:
        return
    included.add(file)
    for raw in (metal_folder() / f"{file}.metal").read_text("ascii").splitlines():
        line = raw.strip()
        if line.startswith('#include "'):
            yield from _lines(line.split('"')[1].removesuffix(".metal"), included)
        elif line and not line.startswith(("//", "#include <", "#pragma")):
            yield line


def metal_folder() -> Path:
    """Return where the .metal files are: in the package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    return next(path for path in (package / "metal", package.parent / "metal") if path.is_dir())


_MATRIX = ("codes", "norms", "centroids")

BODIES = {
    "qmv": Body(
        "qmv",
        ("x", *_MATRIX),
        ("y",),
        """
threadgroup vec<E, 2> tables[SIMDGROUPS * hlwq::table_size(B)];
hlwq::qmv<E, B, ROWS, LANES, SIMDGROUPS, TOKENS, GEGLU>(
    x, codes, norms, centroids, y, tables, uint(x_shape[0]), uint(x_shape[1]),
    uint(norms_shape[0]), uint(norms_shape[0]), 0u, threadgroup_position_in_grid,
    simdgroup_index_in_threadgroup, thread_index_in_simdgroup);""",
    ),
    "gather_qmv": Body(
        "gather_qmv",
        ("x", "experts", *_MATRIX),
        ("y",),
        """
threadgroup vec<E, 2> tables[SIMDGROUPS * hlwq::table_size(B)];
hlwq::gather_qmv<E, B, ROWS, LANES, SIMDGROUPS, EXPERTS>(
    x, experts, codes, norms, centroids, y, tables, uint(x_shape[0]), uint(x_shape[1]),
    uint(experts_shape[0]), uint(norms_shape[0]), threadgroup_position_in_grid,
    simdgroup_index_in_threadgroup, thread_index_in_simdgroup);""",
    ),
    "qmm": Body(
        "qmm",
        ("x", *_MATRIX),
        ("y",),
        """
threadgroup float4 tile[512];
threadgroup float powers[32];
threadgroup float2 table[hlwq::table_size(B)];
hlwq::qmm<B>(
    x, codes, norms, centroids, y, tile, powers, table, uint(x_shape[0]), uint(x_shape[1]),
    uint(norms_shape[0]), uint(norms_shape[0]), 0u, threadgroup_position_in_grid,
    thread_index_in_threadgroup, simdgroup_index_in_threadgroup);""",
    ),
    "gather_qmm": Body(
        "gather_qmm",
        ("x", "starts", *_MATRIX),
        ("y",),
        """
threadgroup float4 tile[512];
threadgroup float powers[32];
threadgroup float2 table[hlwq::table_size(B)];
hlwq::gather_qmm<B, EXPERTS>(
    x, starts, codes, norms, centroids, y, tile, powers, table, uint(x_shape[1]),
    uint(norms_shape[0]), threadgroup_position_in_grid, thread_index_in_threadgroup,
    simdgroup_index_in_threadgroup);""",
    ),
    "dequantize": Body(
        "dequantize",
        _MATRIX,
        ("y",),
        """
threadgroup float2 table[hlwq::table_size(B)];
hlwq::dequantize<B, BACK>(
    codes, norms, centroids, y, table, uint(norms_shape[0]) * uint(norms_shape[1]) * 4u,
    thread_position_in_grid.x, thread_index_in_threadgroup, thread_index_in_simdgroup);""",
    ),
    "embed": Body(
        "embed",
        ("ids", *_MATRIX),
        ("y",),
        """
threadgroup float2 table[hlwq::table_size(B)];
hlwq::embed<B>(
    ids, codes, norms, centroids, y, table, uint(ids_shape[0]), uint(norms_shape[0]),
    uint(norms_shape[1]) * 4u, thread_position_in_grid.x, thread_index_in_threadgroup,
    thread_index_in_simdgroup);""",
    ),
    "hadamard": Body(
        "hadamard",
        ("x",),
        ("y",),
        """
hlwq::hadamard(
    x, y, uint(x_shape[0]) * (uint(x_shape[1]) / 128u), thread_position_in_grid.x / 32u,
    thread_index_in_simdgroup);""",
    ),
    "gelu_mul": Body(
        "hadamard",
        ("gate", "up"),
        ("product", "y"),
        """
hlwq::gelu_mul(
    gate, up, product, y, uint(gate_shape[0]) * (uint(gate_shape[1]) / 128u),
    thread_position_in_grid.x / 32u, thread_index_in_simdgroup);""",
    ),
    "residual_norm": Body(
        "residual_norm",
        ("x", "update", "weight", "next", "scale", "epsilon"),
        ("h", "normed", "y"),
        """
threadgroup float sums[2 * SIMDGROUPS];
hlwq::residual_norm<SIMDGROUPS, BLOCKS, NORMED>(
    x, update, weight, next, scale, epsilon, h, normed, y, sums, uint(weight_shape[0]),
    threadgroup_position_in_grid.x, simdgroup_index_in_threadgroup, thread_index_in_simdgroup);""",
    ),
}
