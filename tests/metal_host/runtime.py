"""Launching compiled kernels: buffers in, buffers and findings out.

The runtime is one C library with one dispatch at a time; see native/host.h for how it works.
"""

import ctypes
import os
import pickle
import re
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Self

from . import toolchain
from .checks import Checks
from .findings import Finding, Kind
from .positions import locate
from .reports import FIRST_VARIABLE, Report, Scene, describe
from .rewrite import Kernel, RewriteError, Unit
from .source import ATTRIBUTES

ARENA_BYTES = 8 << 30
THREADGROUP_BYTES = 32 << 10  # Metal's limit
MOST_THREADS = 1024
SYNONYMS = {"grid_size": "threads_per_grid", "thread_execution_width": "threads_per_simdgroup"}

ADAPTER = "launch adapter"  # the file, for messages, of what calls a kernel

Size = tuple[int, int, int]


class Buffer(NamedTuple):
    """Bytes that a kernel reads or writes; `size` stands in for contents that are not set."""

    contents: bytes | None
    size: int
    is_writable: bool = False


class Outcome(NamedTuple):
    """What the writable buffers hold after a launch, and what the checkers found."""

    outputs: dict[str, bytes]
    findings: list[Finding]


class Options(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("threadgroup", ctypes.c_uint32 * 3),
        ("lane_order", ctypes.c_uint32),
        ("flush_to_zero", ctypes.c_uint32),
        ("is_checked", ctypes.c_uint32),
        ("threadgroup_limit", ctypes.c_uint32),
        ("jitter_ulp", ctypes.c_uint32),
    )


_one_at_a_time = Lock()


@cache
def library() -> ctypes.CDLL:
    """Load the runtime; kernels find its functions and those of libm among global symbols."""
    ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)
    loaded = ctypes.CDLL(str(toolchain.build_runtime()), mode=ctypes.RTLD_GLOBAL)
    number, size, text = ctypes.c_int, ctypes.c_uint64, ctypes.c_char_p
    signatures = {
        "msl_start": (number, [size]),
        "msl_free_buffers": (None, []),
        "msl_add_buffer": (
            ctypes.c_void_p,
            [text, size, ctypes.c_uint32, ctypes.c_bool, ctypes.c_bool, ctypes.c_bool],
        ),
        "msl_launch": (number, [ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(Options)]),
        "msl_report_count": (number, []),
        "msl_reports": (ctypes.POINTER(Report), []),
        "msl_buffer_name": (text, [number]),
        "msl_buffer_size": (size, [number]),
        "msl_variable_id": (ctypes.c_uint32, [number]),
        "msl_unwritten": (size, [number, ctypes.POINTER(size)]),
        "msl_redzones_intact": (ctypes.c_bool, [number]),
        "msl_module_of": (number, [size, ctypes.POINTER(size), text, number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    if loaded.msl_start(ARENA_BYTES):
        raise MemoryError(
            "[metal_host] needed 8 GiB of address space. Raise the limit (ulimit -v)."
        )
    return loaded


def locate_code(pc: int) -> str:
    """Return the line that the call before a return address belongs to."""
    base, path = ctypes.c_uint64(), ctypes.create_string_buffer(1024)
    if library().msl_module_of(pc, ctypes.byref(base), path, len(path)):
        return hex(pc)
    return locate(path.value.decode(), pc - 1 - base.value)


def argument_text(kernel: Kernel, index: int, template_id: str) -> str:
    """Return what the adapter passes for a kernel's parameter."""
    parameter = kernel.parameters[index]
    kind = f"msl_function<decltype({template_id})>::parameter<{index}>::type"
    if parameter.attribute == "buffer":
        slot = sum(other.attribute == "buffer" for other in kernel.parameters[:index])
        return f"msl_buffer<{kind}>::at(buffers[{slot}])"
    if parameter.attribute not in ATTRIBUTES:
        raise RewriteError(
            f"[{kernel.name}] needed an attribute that the Metal host knows, "
            f"got {parameter.attribute}."
        )
    field = SYNONYMS.get(parameter.attribute, parameter.attribute)
    address = "" if ATTRIBUTES[parameter.attribute] == "uint3" else "&"
    return f"msl_id<metal::decay_t<{kind}>>({address}ids->{field})"


def define_constants(unit: Unit, values: Mapping[int, bool | int]) -> str:
    """Define the macros of function constants; those that are not given start as zero."""
    texts = {index: str(value).lower() for index, value in values.items()}
    return "".join(
        f"#define MSL_CONSTANT_{name} {texts.get(index, '{}')}\n"
        for name, index in unit.function_constants.items()
    )


class Program:
    """One kernel, with its template arguments and function constants, compiled."""

    def __init__(
        self,
        unit: Unit,
        template_id: str,
        build: toolchain.Build,
        constants: Mapping[int, bool | int] | None = None,
        file: str = ADAPTER,
    ) -> None:
        """Compile the kernel; what comes before `file` is compiled once for all that share it."""
        name = re.split(r"[ <]", template_id)[0].rpartition("::")[2]
        self.kernel = unit.kernels[name]
        self.variables = unit.variables
        self.build = build
        arguments = ",\n    ".join(
            argument_text(self.kernel, index, template_id)
            for index in range(len(self.kernel.parameters))
        )
        text = (
            f"{define_constants(unit, constants or {})}{unit.text}\n"
            f'# 1 "{ADAPTER}"\n'
            'extern "C" void msl_entry(const ulong *buffers, const msl_ids *ids) {\n'
            f"  {template_id}({arguments});\n}}\n"
        )
        self.head, marker, tail = text.partition(f'# 1 "{file}"')
        self.tail = marker + tail
        self.path, self.warnings = toolchain.compile_kernel(self.head, self.tail, build)

    @classmethod
    def kept(cls, path: Path) -> Self | None:
        """Return the program that was kept at a path, if all of it is still there."""
        if not path.exists():
            return None
        program = cls.__new__(cls)
        vars(program).update(pickle.loads(path.read_bytes()))
        return program if program.path.exists() else None

    def keep(self, path: Path) -> None:
        """Keep what a launch needs, which the texts are not."""
        needed = {name: vars(self)[name] for name in ("kernel", "variables", "build", "path")}
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(pickle.dumps(needed))
        partial.rename(path)

    @cached_property
    def entry(self) -> ctypes.c_void_p:
        library()
        return ctypes.cast(ctypes.CDLL(str(self.path)).msl_entry, ctypes.c_void_p)

    def launch(
        self,
        buffers: Mapping[str, Buffer],
        grid: Size,
        threadgroup: Size,
        checks: Checks,
        order: int,
    ) -> Outcome:
        """Run a grid of threads once, in one order of lanes."""
        parameters = [p for p in self.kernel.parameters if p.attribute == "buffer"]
        options = Options(
            grid=grid,
            threadgroup=threadgroup,
            lane_order=order,
            flush_to_zero=checks.flush_to_zero,
            is_checked=self.build.is_watched,
            threadgroup_limit=THREADGROUP_BYTES,
            jitter_ulp=checks.jitter_ulp,
        )
        with _one_at_a_time:
            library().msl_free_buffers()
            bound = [buffers.get(p.name, Buffer(b"", 0)) for p in parameters]
            may_be_slices = [
                p.space == "device" and not buffer.is_writable
                for p, buffer in zip(parameters, bound, strict=True)
            ]
            misalign = [checks.misalign if may_be else 0 for may_be in may_be_slices]
            names = [p.name for p in parameters]
            addresses = [self._place(*each) for each in zip(names, bound, misalign, strict=True)]
            pointers = (ctypes.c_uint64 * len(addresses))(*addresses)
            abandoned = library().msl_launch(self.entry, pointers, ctypes.byref(options))
            outputs = {
                name: ctypes.string_at(address, buffer.size)
                for name, buffer, address in zip(names, bound, addresses, strict=True)
                if buffer.is_writable
            }
            findings = self._reported()
            for index, buffer in enumerate(bound):
                findings += self._judge(index, names[index], buffer, is_complete=not abandoned)
        return Outcome(outputs, findings)

    def _place(self, name: str, buffer: Buffer, misalign: int) -> int:
        """Copy a buffer to where the kernel finds it; return its address."""
        is_tracked = buffer.is_writable and self.build.is_watched
        is_initialised = buffer.contents is not None
        address = library().msl_add_buffer(
            name.encode(), buffer.size, misalign, buffer.is_writable, is_initialised, is_tracked
        )
        if not address:
            raise MemoryError(
                f"[metal_host] needed {buffer.size} bytes for {name}. Use smaller ones."
            )
        if buffer.contents:
            ctypes.memmove(address, buffer.contents, buffer.size)
        return int(address)

    def _reported(self) -> list[Finding]:
        """Read the reports of the launch just made."""
        reports = library().msl_reports()
        found = []
        for report in reports[: library().msl_report_count()]:
            if report.place >= FIRST_VARIABLE:
                number = library().msl_variable_id(report.place - FIRST_VARIABLE)
                scene = Scene(self.variables[number], 0, locate_code)
            else:
                name = library().msl_buffer_name(report.place).decode()
                scene = Scene(name, library().msl_buffer_size(report.place), locate_code)
            where = locate_code(report.pc)
            if report.kind == Kind.UNDEFINED:
                where = f"{ctypes.string_at(report.address).decode()}:{report.first}"
            detail = describe(report, scene)
            found.append(Finding(Kind(report.kind), detail, where, report.count))
        return found

    def _judge(self, index: int, name: str, buffer: Buffer, *, is_complete: bool) -> list[Finding]:
        """Look at a buffer after the launch."""
        found = []
        if not self.build.is_watched and not library().msl_redzones_intact(index):
            found.append(Finding(Kind.REDZONE, name, "an unknown line"))
        first = ctypes.c_uint64()
        unwritten = library().msl_unwritten(index, ctypes.byref(first))
        if unwritten and is_complete and buffer.contents is None:
            detail = f"{unwritten} of {buffer.size} bytes of {name}, from byte {first.value} on"
            found.append(Finding(Kind.UNWRITTEN_OUTPUT, detail, "the end of the kernel"))
        return found
