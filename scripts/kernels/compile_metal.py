"""Compile the kernels by Apple's compiler, where it is installed; elsewhere say that it is not.

What is compiled is what MLX would build, every kernel at every width and dtype, products at one row
and at eight, collected into one translation unit a kernel: the texts come from tests/metal_host,
which is compared with MLX's own.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from scripts.kernels.kernel_mutants import ROOT

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT))

import mlx.core as mx
from metal_host.kernel import PREAMBLE
from metal_host.source import Call, Definition, generate
from metal_host.toolchain import MLX_INCLUDE

from hlwq_mlx.quant import expert_kernels, kernels, selftest

XCRUN = ("xcrun", "-sdk", "macosx")


def units() -> dict[str, str]:
    """Return the translation units by kernel."""
    texts: dict[Definition, dict[str, None]] = {}

    def metal_kernel(
        name: str, input_names: Sequence[str], output_names: Sequence[str], source: str, header: str
    ) -> Callable[..., list[mx.array]]:
        definition = Definition(name, tuple(input_names), tuple(output_names), source, header)

        def note(
            *, inputs: Any, output_shapes: Any, output_dtypes: Any, template: Any, **_: Any
        ) -> Any:
            arrays = [mx.array(item) for item in inputs]
            text = generate(definition, Call(arrays, output_dtypes, template)).text
            texts.setdefault(definition, {})[text.removeprefix(header)] = None
            return list(map(mx.zeros, output_shapes, output_dtypes))

        return note

    with mock.patch.object(mx.fast, "metal_kernel", metal_kernel):
        for call in calls():
            call()
    return {
        definition.name: PREAMBLE + definition.header + "".join(variants)
        for definition, variants in texts.items()
    }


def calls() -> Iterator[Callable[[], Any]]:
    """Call every kernel, at every width and dtype."""
    for dtype in kernels.FLOATING:
        x, weight, scale = mx.zeros((8, 2560), dtype), mx.zeros(2560, dtype), mx.zeros(1, dtype)
        yield lambda x=x: kernels.hadamard(x, dtype=mx.float32)
        yield lambda x=x: kernels.gelu_mul(x, x)
        for following in (weight, None):
            yield lambda x=x, w=weight, s=scale, n=following: kernels.residual_norm(
                x, x, w, s, 1e-6, n
            )
    for bits, dtype in product(range(1, 9), kernels.FLOATING):
        matrix = selftest.random_matrix(bits)
        for M in (1, kernels.QMV_ROWS):
            x = mx.zeros((M, selftest.COLUMNS))
            for kernel in (kernels.qmv, kernels.geglu, kernels.qmm):
                yield lambda k=kernel, x=x, m=matrix, d=dtype: k(x, m, dtype=d)
        for kernel in (kernels.dequantize, kernels.rotated_weight):
            yield lambda k=kernel, m=matrix, d=dtype: k(m, dtype=d)
        yield lambda m=matrix, d=dtype: kernels.embed(mx.array([1]), m, dtype=d)
        row, starts = mx.zeros((1, selftest.COLUMNS)), mx.zeros(8, mx.uint32)
        yield lambda x=row, s=starts, m=matrix, d=dtype: expert_kernels.gather_qmm(
            x, s, m, 7, dtype=d
        )
        for k in (1, 8):  # fewer than eight are in another address space
            chosen = mx.zeros((1, k), mx.uint32)
            yield lambda x=row, e=chosen, m=matrix, d=dtype: expert_kernels.gather_qmv(
                x, e, m, 7, dtype=d
            )


def command(source: Path) -> list[str]:
    """Return the compiler's command for one file."""
    output = source.with_suffix(".air")
    return [*XCRUN, "metal", "-c", "-I", str(MLX_INCLUDE), str(source), "-o", str(output)]


def has_compiler() -> bool:
    """Return whether there is Xcode with the Metal toolchain."""
    found = [*XCRUN, "--find", "metal"]
    return (
        bool(shutil.which(XCRUN[0])) and not subprocess.run(found, capture_output=True).returncode
    )


def main() -> int:
    if not has_compiler():
        print("compile_metal: skipped, there is no Metal compiler (xcrun -sdk macosx metal)")
        return 0
    failed = 0
    with TemporaryDirectory() as folder:
        for name, text in units().items():
            source = Path(folder) / f"{name}.metal"
            source.write_text(text, "ascii")
            failed += subprocess.run(command(source)).returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
