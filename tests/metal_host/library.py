"""A whole Metal source, such as MLX's headers in the installed wheel, and launching its kernels."""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from . import toolchain
from .checks import Checks
from .findings import Finding
from .kernel import from_bytes, to_bytes
from .rewrite import rewrite
from .runtime import Buffer, Outcome, Program, Size

Argument = mx.array | int | float


def argument_buffer(value: Argument) -> Buffer:
    """Bind an array, or a number as int32 or float32."""
    if isinstance(value, mx.array):
        contents = to_bytes(value)
    else:
        contents = np.array(value, np.int32 if isinstance(value, int) else np.float32).tobytes()
    return Buffer(contents, len(contents))


class Library:
    """Kernels out of MLX's own headers, named relative to its folder of kernels."""

    def __init__(self, headers: Sequence[str]) -> None:
        lines = [f'#include "{toolchain.MLX_KERNELS}/{header}"\n' for header in headers]
        self._unit = rewrite(toolchain.preprocess("".join(lines)))

    def kernel(
        self,
        template_id: str,
        constants: Mapping[int, bool | int] | None = None,
        build: toolchain.Build | None = None,
    ) -> Program:
        """Compile one kernel, as "qmv<float, 64, 4>", with its function constants."""
        return Program(self._unit, template_id, build or toolchain.Build(), constants)


def launch(
    program: Program,
    arguments: Mapping[str, Argument],
    output: tuple[str, Sequence[int], mx.Dtype],
    threadgroups: Size,
    threadgroup: Size,
) -> tuple[mx.array, list[Finding]]:
    """Run a kernel on arrays; return its one output and what the checkers found."""
    name, shape, dtype = output
    buffers = {key: argument_buffer(value) for key, value in arguments.items()}
    buffers[name] = Buffer(None, int(np.prod(shape)) * dtype.size, is_writable=True)
    x, y, z = (groups * size for groups, size in zip(threadgroups, threadgroup, strict=True))
    outcome: Outcome = program.launch(buffers, (x, y, z), threadgroup, Checks(), order=0)
    return from_bytes(outcome.outputs[name], shape, dtype), outcome.findings
