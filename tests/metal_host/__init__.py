"""Runs Metal kernels on the CPU, in place of `mx.fast.metal_kernel`, with checkers that watch.

For tests alone. README.md says how it works, what it finds and what it cannot find.
"""

from .checks import FORWARD, REVERSE, Checks, checked
from .findings import NOTES, CompileError, Finding, KernelFault, Kind
from .kernel import metal_kernel
from .library import Library
from .stand_in import device
from .toolchain import missing

__all__ = [
    "FORWARD",
    "NOTES",
    "REVERSE",
    "Checks",
    "CompileError",
    "Finding",
    "KernelFault",
    "Kind",
    "Library",
    "checked",
    "device",
    "metal_kernel",
    "missing",
]
