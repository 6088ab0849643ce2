"""The programs that are counted: our kernels with the options that they run with, and MLX's.

A kernel's text is the one that MLX would build, rewritten to C++ for OpenCL by the Metal host; what
stands around it here is an entry that Mesa knows, and gives it what Metal gives a kernel.
"""

import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from scripts.kernels.kernel_mutants import ROOT

sys.path.insert(0, str(ROOT / "tests"))

from metal_host.rewrite import rewrite
from metal_host.toolchain import MLX_INCLUDE, MLX_KERNELS, preprocess

from hlwq_mlx.quant import kernels
from hlwq_mlx.quant.bodies import BODIES
from hlwq_mlx.quant.chips import Tile, chips

WIDTHS = range(1, 9)
MLX_WIDTHS = (1, 2, 3, 4, 5, 6, 8)
TYPES = ("float", "half", "bfloat")
UNIT = 32  # weights of a row that a lane multiplies at a time
QMM_WEIGHTS = 2 * UNIT  # that a lane decodes for 32 rows of x, of which it multiplies some
EXPERTS = 128  # of 26B-A4B
EXPERT_SIZES = ((1408, 2816), (2816, 768))  # gate|up and down
MLX_ROWS, MLX_GROUP = 4, 64

PREAMBLE = "#include <metal_stdlib>\nusing namespace metal;\n"
ATTRIBUTES = """
  const uint3 threadgroup_position_in_grid = nir_load_workgroup_id();
  const uint simdgroup_index_in_threadgroup = nir_load_subgroup_id();
  const uint thread_index_in_simdgroup = nir_load_subgroup_invocation();
  const uint thread_index_in_threadgroup = nir_load_local_invocation_index();
  const uint3 thread_position_in_grid =
      {threadgroup_position_in_grid.x * %du + thread_index_in_threadgroup, 0u, 0u};
"""
# Inputs that do not have the type of the activation.
FIXED = {
    **{"codes": "uint", "norms": "half", "centroids": "float"},
    **dict.fromkeys(("ids", "experts", "starts"), "uint"),
}
MLX_ENTRY = """
__kernel __attribute__((reqd_work_group_size(32, 2, 1)))
void program(const __global uint* w, const __global {x}* scales, const __global {x}* biases,
             const __global {x}* x, __global {x}* y, const __constant int* sizes) {{
  qmv_fast_impl<{x}, {group}, {bits}>(w, scales, biases, x, y, sizes[0], sizes[1],
      nir_load_workgroup_id(), nir_load_subgroup_id(), nir_load_subgroup_invocation());
}}
"""
MLX_FUNCTIONS = ("get_pack_factor(", "get_bytes_per_pack(", "load_vector(", "qdot(")


class Program(NamedTuple):
    """A kernel with its options. weights: those of a lane, in a turn of its loop if it has one."""

    name: str
    kernel: str
    options: dict[str, str | int]
    x: str
    y: str
    group: tuple[int, int]
    weights: int = 0
    is_loop: bool = False
    is_mlx: bool = False

    def text(self) -> str:
        """Return the text for the compiler, less the Metal library's part."""
        if self.is_mlx:
            entry = MLX_ENTRY.format(x=self.x, group=MLX_GROUP, **self.options)
            return mlx_library() + entry
        return library(self.kernel) + self._entry()

    def _entry(self) -> str:
        body = BODIES[self.kernel]
        parameters = [
            *(self._parameter(name) for name in body.inputs),
            *(f"__global {self.y}* {name}" for name in body.outputs),
            *(f"const __constant int* {name}_shape" for name in body.inputs),
        ]
        options = "".join(
            f"  typedef {value} {name};\n"
            if isinstance(value, str)
            else f"  constexpr int {name} = {value};\n"
            for name, value in self.options.items()
        )
        return (
            f"__kernel __attribute__((reqd_work_group_size({self.group[0]}, {self.group[1]}, 1)))\n"
            f"void program({', '.join(parameters)}) {{\n{options}"
            + ATTRIBUTES % (self.group[0] * self.group[1])
            + body.text.replace("threadgroup ", "__local ")
            + "\n}\n"
        )

    def _parameter(self, name: str) -> str:
        if name == "epsilon":
            return "float epsilon"
        space = "__constant" if name == "scale" else "__global"
        return f"const {space} {FIXED.get(name, self.x)}* {name}"


@cache
def library(kernel: str) -> str:
    """Return a kernel's file as C++ for OpenCL."""
    return rewrite(preprocess(PREAMBLE + BODIES[kernel].header())).text


@cache
def mlx_library() -> str:
    """Return what MLX's affine product of a row needs, from the header in its wheel."""
    text = (MLX_INCLUDE / MLX_KERNELS / "quantized.h").read_text()
    head, *functions = re.split(r"(?m)^(?=template <)", text)
    wanted = [f for f in functions if any(f" {name}" in f for name in MLX_FUNCTIONS)]
    wanted += [f for f in functions if "void qmv_fast_impl(" in f]
    constants = re.sub(r"(?m)^(#include|constant bool).*\n", "", head)
    return rewrite(preprocess(PREAMBLE + constants + "".join(wanted))).text


def qmv(bits: int, tile: Tile, x: str = "float", *, is_geglu: bool = False) -> Program:
    name = "geglu" if is_geglu else "qmv"
    tokens = f"{tile.tokens} token{'s' * (tile.tokens > 1)}"
    shape = f"{bits}-bit, {tile.rows} rows, {tile.lanes} lanes, {tokens}"
    return Program(
        f"{name} {shape}" + (f", {x}" if x != "float" else ""),
        "qmv",
        {
            "E": "half",
            "B": bits,
            "ROWS": tile.rows,
            "LANES": tile.lanes,
            "SIMDGROUPS": tile.simdgroups,
            "TOKENS": tile.tokens,
            "GEGLU": int(is_geglu),
        },
        x,
        x,
        (32, tile.simdgroups),
        UNIT * tile.rows,
        is_loop=True,
    )


def gathered(bits: int) -> Iterator[Program]:
    """One row of x by experts of 26B-A4B's sizes, at each tile that they take, and 32 rows."""
    for tile in sorted({chips()["M1"].tile(bits, 1, *size) for size in EXPERT_SIZES}):
        options = {"E": "half", "B": bits, "ROWS": tile.rows, "LANES": tile.lanes}
        options |= {"SIMDGROUPS": tile.simdgroups, "EXPERTS": EXPERTS}
        group, weights = (32, tile.simdgroups), UNIT * tile.rows
        name = f"gather_qmv {bits}-bit, {tile.rows} rows, {tile.lanes} lanes"
        yield Program(name, "gather_qmv", options, "float", "float", group, weights, is_loop=True)
    yield qmm("gather_qmm", bits, {"EXPERTS": EXPERTS})


def qmm(kernel: str, bits: int, more: Mapping[str, int]) -> Program:
    """Many rows of x, 32 at a time; `more` are the options beside the width."""
    options: dict[str, str | int] = {"B": bits, **more}
    name = f"{kernel} {bits}-bit"
    return Program(name, kernel, options, "half", "half", (128, 1), QMM_WEIGHTS, is_loop=True)


def affine(bits: int, x: str = "half") -> Program:
    """MLX's product of one row, whose lanes take four rows of one or two packs each."""
    power = bits & (bits - 1) == 0
    values = (1 if bits <= 2 else 2) * (UNIT // bits if power else 4 if bits == 6 else 8)
    return Program(
        f"MLX affine {bits}-bit, {x}",
        "",
        {"bits": bits},
        x,
        x,
        (32, 2),
        MLX_ROWS * values,
        is_loop=True,
        is_mlx=True,
    )


def chosen_tiles(bits: int) -> list[Tile]:
    """Return every tile that an M1 can take at a width."""
    sizes = itertools.product(range(1, kernels.QMV_ROWS + 1), (256, 4096), (512, 256, 128))
    tiles = {chips()["M1"].tile(bits, M, N, K) for M, N, K in sizes}
    return sorted(tiles, key=lambda tile: (tile.tokens, -tile.rows, -tile.lanes))


def usual_tile(bits: int, tokens: int) -> Tile:
    """Return the tile of a large matrix for so many tokens."""
    return chips()["M1"].tile(bits, tokens, 4096, 2560)


def products(bits: Iterable[int], tiles: Sequence[Tile] = ()) -> Iterator[Program]:
    for width in bits:
        yield from (qmv(width, tile) for tile in tiles or chosen_tiles(width))


def others() -> Iterator[Program]:
    """Our other kernels."""
    for bits in WIDTHS:
        yield from (qmv(bits, tile, is_geglu=True) for tile in chosen_tiles(bits))
        for x in ("half", "bfloat"):
            yield qmv(bits, usual_tile(bits, 1), x)
        yield qmm("qmm", bits, {})
        yield from gathered(bits)
        options: dict[str, str | int] = {"B": bits}
        for back, kind in ((1, "dequantize"), (0, "rotated_weight")):
            both = {**options, "BACK": back}
            yield Program(f"{kind} {bits}-bit", "dequantize", both, "", "half", (128, 1), UNIT)
        yield Program(f"embed {bits}-bit", "embed", options, "", "float", (128, 1), UNIT)
    for x in TYPES:
        yield Program(f"hadamard {x}", "hadamard", {}, x, "float", (128, 1))
        yield Program(f"gelu_mul {x}", "gelu_mul", {}, x, x, (128, 1))
        for columns in (2560, kernels.LONGEST_RESIDUAL):
            simdgroups, blocks = kernels.residual_tile(columns)
            sizes = {"SIMDGROUPS": simdgroups, "BLOCKS": blocks, "NORMED": 1}
            name = f"residual_norm {columns} columns, {x}"
            yield Program(name, "residual_norm", dict(sizes), x, x, (32 * simdgroups, 1))


def controls() -> Iterator[Program]:
    for bits in MLX_WIDTHS:
        yield from (affine(bits, x) for x in TYPES)
