"""A whole Metal source, such as MLX's headers in the installed wheel, and launching its kernels."""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from . import toolchain
from .checks import FORWARD, Checks
from .findings import KernelFault
from .kernel import from_bytes, to_bytes
from .rewrite import rewrite
from .runtime import Buffer, Program, Size

Argument = mx.array | int | float


def argument_buffer(value: Argument) -> Buffer:
    """Bind an array, or a number as int32 or float32."""
    if isinstance(value, mx.array):
        contents = to_bytes(value)
    else:
        contents = np.array(value, np.int32 if isinstance(value, int) else np.float32).tobytes()
    return Buffer(contents, len(contents))


def include(*headers: str) -> str:
    """Include headers of MLX's kernels, named relative to their folder."""
    return "".join(f'#include "{toolchain.MLX_KERNELS}/{header}"\n' for header in headers)


class Library:
    """The kernels of a Metal source."""

    def __init__(self, source: str) -> None:
        self._unit = rewrite(toolchain.preprocess(source))

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
) -> mx.array:
    """Run a kernel on arrays, in one order of lanes; return its one output.

    Raises: KernelFault when a checker found something.
    """
    name, shape, dtype = output
    buffers = {key: argument_buffer(value) for key, value in arguments.items()}
    buffers[name] = Buffer(None, int(np.prod(shape)) * dtype.size, is_writable=True)
    x, y, z = (groups * size for groups, size in zip(threadgroups, threadgroup, strict=True))
    outcome = program.launch(buffers, (x, y, z), threadgroup, Checks(), FORWARD)
    if outcome.findings:
        raise KernelFault(outcome.findings)
    return from_bytes(outcome.outputs[name], shape, dtype)
