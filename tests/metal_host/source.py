"""The text that MLX builds around the body of a `metal_kernel`.

Byte for byte what mlx 0.32 hands to Metal's compiler (mlx/backend/common/metal_kernel.cpp), except
for `metal::utils()` in front; test_metal_host_source.py compares it with MLX's own output.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

DTYPE_NAMES = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.float32: "float",
    mx.complex64: "complex64_t",
}

# Metal's attributes of a thread and their types; a kernel gets those that its body names.
ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}

SMALL = 8  # arrays of fewer elements lie in constant memory

TemplateValue = bool | int | mx.Dtype


class KernelText(NamedTuple):
    """A kernel's name, its template arguments as `<float, 4>` or "", and its text."""

    name: str
    arguments: str
    text: str


class Definition(NamedTuple):
    """What `mx.fast.metal_kernel` is told once."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str = ""
    has_atomic_outputs: bool = False


class Call(NamedTuple):
    """What a call adds, as far as it shapes the text."""

    inputs: Sequence[mx.array]
    output_dtypes: Sequence[mx.Dtype]
    template: Sequence[tuple[str, TemplateValue]] = ()


def template_parameters(
    template: Sequence[tuple[str, TemplateValue]],
) -> list[tuple[str, str, str]]:
    """Return template parameters as (type, name, value)."""
    parameters = []
    for name, value in template:
        if isinstance(value, bool):
            parameters.append(("bool", name, str(int(value))))
        elif isinstance(value, int):
            parameters.append(("int", name, str(value)))
        elif isinstance(value, mx.Dtype):
            parameters.append(("typename", name, DTYPE_NAMES[value]))
        else:
            raise ValueError(
                f"[metal_kernel] needed a bool, int or Dtype for template argument {name}, "
                f"got {type(value).__name__}."
            )
    return parameters


def name_kernel(name: str, arguments: str, call: Call) -> str:
    """Return the kernel's name as MLX makes it: after its template arguments and dtypes."""
    parts = [f"custom_kernel_{name}"]
    if arguments:
        flat = arguments.replace(", ", "_")[:-1]
        parts.append("".join("_" if letter in "<>-" else letter for letter in flat))
    for array in call.inputs:
        suffix = "s" if array.ndim == 0 else "c" if array.size < SMALL else ""
        parts.append(DTYPE_NAMES[array.dtype] + suffix)
    parts += [DTYPE_NAMES[dtype] for dtype in call.output_dtypes]
    return "_".join(parts)


def input_parameters(name: str, array: mx.array, body: str) -> list[str]:
    """Declare an input, and those of its shape, strides and ndim that the body mentions."""
    space = "constant" if array.size < SMALL else "device"
    mark = "*" if array.ndim else "&"
    parameters = [f"const {space} {DTYPE_NAMES[array.dtype]}{mark} {name}"]
    if array.ndim:
        extras = {"shape": "int*", "strides": "int64_t*", "ndim": "int&"}
        parameters += [
            f"const constant {kind} {name}_{extra}"
            for extra, kind in extras.items()
            if f"{name}_{extra}" in body
        ]
    return parameters


def generate(definition: Definition, call: Call) -> KernelText:
    """Build the text of one kernel for one set of dtypes and template arguments."""
    template = template_parameters(call.template)
    arguments = f"<{', '.join(value for *_, value in template)}>" if template else ""
    name = name_kernel(definition.name, arguments, call)
    buffers: list[str] = []
    for input_name, array in zip(definition.input_names, call.inputs, strict=True):
        buffers += input_parameters(input_name, array, definition.source)
    first_output = len(buffers)
    for output_name, dtype in zip(definition.output_names, call.output_dtypes, strict=True):
        kind = DTYPE_NAMES[dtype]
        kind = f"atomic<{kind}>" if definition.has_atomic_outputs else kind
        buffers.append(f"device {kind}* {output_name}")
    attributes = [
        f"  {kind} {attribute} [[{attribute}]]"
        for attribute, kind in ATTRIBUTES.items()
        if attribute in definition.source
    ]
    # MLX counts shapes as outputs when it looks for the last one: a kernel with several outputs,
    # a shape and no attribute is closed too early and compiles nowhere. Here as there.
    last = max(first_output, len(call.inputs) + len(definition.output_names) - 1)
    parameters = [
        f"  {buffer} [[buffer({index})]]" + (") {" if index >= last and not attributes else ",")
        for index, buffer in enumerate(buffers)
    ]
    parameters += [f"{attribute}," for attribute in attributes[:-1]]
    parameters += [f"{attribute}) {{" for attribute in attributes[-1:]]
    text = definition.header
    if template:
        text += f"template <{', '.join(f'{kind} {n}' for kind, n, _ in template)}>\n"
    text += "\n".join([f"[[kernel]] void {name}(", *parameters, definition.source, "}\n"])
    if template:
        full = name + arguments
        text += f'\ntemplate [[host_name("{name}")]] [[kernel]] decltype({full}) {full};\n'
    return KernelText(name, arguments, text)
