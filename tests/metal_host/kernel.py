"""The stand-in for `mx.fast.metal_kernel`: the same arguments, refusals and results."""

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from . import checks, conversions, toolchain
from .findings import CompileError, Finding, KernelFault, Kind
from .rewrite import rewrite
from .runtime import MOST_THREADS, Buffer, Program, Size
from .source import Call, Definition, KernelText, TemplateValue, generate

PREAMBLE = f'#include <metal_stdlib>\n#include "{toolchain.MLX_KERNELS}/utils.h"\n'
MATH_MODES = ("safe", "relaxed", "fast")


def to_bytes(array: mx.array) -> bytes:
    """Return the elements of an array in row-major order."""
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.array(array).tobytes()


def from_bytes(contents: bytes, shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    stored = mx.uint16 if dtype == mx.bfloat16 else dtype
    flat = np.frombuffer(contents, np.array(mx.zeros(0, dtype=stored)).dtype)
    return mx.array(flat).view(dtype).reshape(shape)


def storage(array: mx.array) -> tuple[bytes, list[int]]:
    """Return an array's elements as they lie in memory, and its strides in elements."""
    raw = mx.view(array, mx.uint16) if array.dtype == mx.bfloat16 else array
    view = np.asarray(memoryview(raw))  # type: ignore[arg-type]
    strides = [stride // view.itemsize for stride in view.strides]
    if not view.size:
        return b"", strides
    if min(strides, default=0) < 0:
        raise NotImplementedError(
            "[metal_host] needed strides of at least 0, got a reversed array."
        )
    count = 1 + sum((n - 1) * stride for n, stride in zip(view.shape, strides, strict=True))
    span = np.lib.stride_tricks.as_strided(view, (count,), (view.itemsize,))
    return span.tobytes(), strides


def check_sizes(name: str, got: Sequence[Any], wanted: Sequence[str]) -> None:
    if len(got) != len(wanted):
        raise ValueError(
            f"[metal_kernel] Expected `{name}` to have size {len(wanted)} but got size {len(got)}."
        )


class HostKernel:
    """What `metal_kernel` returns. `findings` holds those of the last call, tolerated ones too."""

    def __init__(self, definition: Definition, *, is_contiguous: bool, math_mode: str) -> None:
        self._definition = definition
        self._is_contiguous = is_contiguous
        self._math_mode = math_mode
        self._programs: dict[tuple[str, toolchain.Build], Program] = {}
        self.findings: list[Finding] = []

    def __call__(
        self,
        *,
        inputs: Sequence[mx.array | int | float | bool],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: Size,
        threadgroup: Size,
        template: Sequence[tuple[str, TemplateValue]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: mx.Stream | mx.Device | None = None,
    ) -> list[mx.array]:
        """Run the kernel now, once for each order of lanes asked for; return its outputs.

        Raises: KernelFault when a checker found something, CompileError when Metal would refuse
        the text, ValueError when MLX would refuse the call.
        """
        definition = self._definition
        check_sizes("inputs", inputs, definition.input_names)
        check_sizes("output_shapes", output_shapes, definition.output_names)
        check_sizes("output_dtypes", output_dtypes, definition.output_names)
        where = stream.device if isinstance(stream, mx.Stream) else stream
        if where is not None and where == mx.Device(mx.cpu):
            raise ValueError("[metal_kernel] Only supports the GPU.")
        arrays = [item if isinstance(item, mx.array) else mx.array(item) for item in inputs]
        mx.eval(arrays)
        call = Call(arrays, output_dtypes, template or ())
        text = generate(definition, call)
        if verbose:
            print(f"Generated source code for `{definition.name}`:\n```\n{text.text}\n```")  # noqa: T201
        buffers = self._input_buffers(arrays)
        for name, shape, dtype in zip(
            definition.output_names, output_shapes, output_dtypes, strict=True
        ):
            filled = None if init_value is None else to_bytes(mx.full(shape, init_value, dtype))
            buffers[name] = Buffer(filled, int(np.prod(shape)) * dtype.size, is_writable=True)
        contents = self._run(text, buffers, grid, self._fit(grid, threadgroup))
        return [
            from_bytes(contents[name], shape, dtype)
            for name, shape, dtype in zip(
                definition.output_names, output_shapes, output_dtypes, strict=True
            )
        ]

    def _fit(self, grid: Size, threadgroup: Size) -> Size:
        threads = int(np.prod(threadgroup))
        if not 0 < threads <= MOST_THREADS or min(*grid, *threadgroup) < 1:
            raise ValueError(
                f"Thread group size ({threads}) is greater than  the maximum allowed threads per "
                f"threadgroup ({MOST_THREADS})."
            )
        x, y, z = (min(pair) for pair in zip(grid, threadgroup, strict=True))
        return x, y, z

    def _input_buffers(self, arrays: Sequence[mx.array]) -> dict[str, Buffer]:
        """Bind each input and what a body may ask about it."""
        buffers: dict[str, Buffer] = {}
        for name, array in zip(self._definition.input_names, arrays, strict=True):
            if self._is_contiguous:
                contents = to_bytes(array)
                strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
            else:
                contents, strides = storage(array)
            extras = {
                name: contents,
                f"{name}_shape": np.array(array.shape, np.int32).tobytes(),
                f"{name}_strides": np.array(strides, np.int64).tobytes(),
                f"{name}_ndim": np.array(array.ndim, np.int32).tobytes(),
            }
            buffers |= {key: Buffer(value, len(value)) for key, value in extras.items()}
        return buffers

    def _run(
        self, text: KernelText, buffers: Mapping[str, Buffer], grid: Size, threadgroup: Size
    ) -> dict[str, bytes]:
        wanted = checks.current()
        program = self._program(text, wanted)
        outputs: dict[str, bytes] = {}
        findings: dict[tuple[Kind, str], Finding] = {}
        for order in wanted.lane_orders:
            outcome = program.launch(buffers, grid, threadgroup, wanted, order)
            found = list(outcome.findings)
            is_exact = not wanted.jitter_ulp and not self._definition.has_atomic_outputs
            if outputs and is_exact and outcome.outputs != outputs:
                found.append(
                    Finding(Kind.ORDER_DEPENDENT, f"lane order {order} differs", "the whole kernel")
                )
            for finding in found:
                findings.setdefault((finding.kind, finding.where), finding)
            outputs = outputs or outcome.outputs
        self.findings = list(findings.values())
        faults = [finding for finding in self.findings if finding.kind not in wanted.tolerated]
        if faults:
            raise KernelFault(faults)
        return outputs

    def _program(self, text: KernelText, wanted: checks.Checks) -> Program:
        build = toolchain.Build(
            wanted.is_watched, self._math_mode == "safe", has_jitter=wanted.jitter_ulp > 0
        )
        key = text.text, build
        if key not in self._programs:
            self._programs[key] = self._compile(text, build)
        return self._programs[key]

    def _compile(self, text: KernelText, build: toolchain.Build) -> Program:
        """Compile and check a text, or take what passed the checks of an earlier process."""
        file = f"{self._definition.name}.metal"
        path = toolchain.program_path(file, *text, *build.flags())
        program = Program.kept(path)
        if program is None:
            program = self._check(text, build, file)
            program.keep(path)
        return program

    def _check(self, text: KernelText, build: toolchain.Build, file: str) -> Program:
        unit = rewrite(toolchain.preprocess(f'{PREAMBLE}#line 1 "{file}"\n{text.text}'))
        complaints = list(filter(toolchain.is_about_kernel, unit.complaints))
        if complaints:
            raise CompileError("\n".join(complaints))
        program = Program(unit, text.name + text.arguments, build, file=file)
        conversions_found = conversions.lossy(program.warnings)
        if not conversions_found and "bfloat" in text.text:
            conversions_found = conversions.hidden(program)
        if conversions_found:
            raise CompileError("\n".join(conversions_found))
        return program


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: Mapping[str, str] | None = None,
) -> HostKernel:
    """Make a kernel that runs here, with the signature of `mx.fast.metal_kernel`."""
    options = dict(compile_options or {})
    math_mode = options.pop("math_mode", "safe")
    if options or math_mode not in MATH_MODES:
        raise ValueError(f"[metal_kernel] needed math_mode in {MATH_MODES}, got {compile_options}.")
    if not output_names:
        raise ValueError("[metal_kernel] Must specify at least one output.")
    definition = Definition(
        name, tuple(input_names), tuple(output_names), source, header, atomic_outputs
    )
    return HostKernel(definition, is_contiguous=ensure_row_contiguous, math_mode=math_mode)
