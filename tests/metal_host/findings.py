"""What the checkers report: the kinds of finding, one finding, and the error that carries them.

`Kind` is the one place that numbers the kinds: the runtime and the Metal library are compiled with
these numbers as KIND_* macros.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """A class of defect that running a kernel can show."""

    READ_BOUNDS = 1
    WRITE_BOUNDS = 2
    WILD = 3
    INPUT_WRITTEN = 4
    UNINITIALISED_THREADGROUP = 5
    UNINITIALISED_OUTPUT = 6
    RACE_THREADGROUP = 7
    RACE_DEVICE = 8
    RACE_BETWEEN_GROUPS = 9
    SAME_VALUE = 10
    THREADGROUP_BOUNDS = 11
    BARRIER_DIVERGENCE = 12
    BARRIER_EXIT = 13
    BARRIER_FLAGS = 14
    DIVERGED_SIMDGROUP_BARRIER = 15
    PARTIAL_SIMD = 16
    INACTIVE_LANE = 17
    PARTIAL_MATRIX = 18
    BIT_FIELD_RANGE = 19
    UNDEFINED = 20
    FAULT = 21
    STACK_OVERFLOW = 22
    THREADGROUP_MEMORY = 23
    UNWRITTEN_OUTPUT = 24
    REDZONE = 25
    ORDER_DEPENDENT = 26


MEANINGS = {
    Kind.READ_BOUNDS: "read out of a buffer's bounds",
    Kind.WRITE_BOUNDS: "write out of a buffer's bounds",
    Kind.WILD: "access through a wild pointer",
    Kind.INPUT_WRITTEN: "write to an input",
    Kind.UNINITIALISED_THREADGROUP: "read of uninitialised threadgroup memory",
    Kind.UNINITIALISED_OUTPUT: "read of an output that nobody has written",
    Kind.RACE_THREADGROUP: "data race in threadgroup memory",
    Kind.RACE_DEVICE: "data race in device memory",
    Kind.RACE_BETWEEN_GROUPS: "data race between threadgroups",
    Kind.SAME_VALUE: "unordered writes of one value",
    Kind.THREADGROUP_BOUNDS: "access out of a threadgroup variable's bounds",
    Kind.BARRIER_DIVERGENCE: "threads wait at different barriers",
    Kind.BARRIER_EXIT: "barrier that some threads returned before",
    Kind.BARRIER_FLAGS: "barriers of different mem_flags met",
    Kind.DIVERGED_SIMDGROUP_BARRIER: "simdgroup_barrier under divergence",
    Kind.PARTIAL_SIMD: "SIMD operation under divergence",
    Kind.INACTIVE_LANE: "value taken from an inactive or absent lane",
    Kind.PARTIAL_MATRIX: "matrix operation without all 32 lanes",
    Kind.BIT_FIELD_RANGE: "bit field out of range",
    Kind.UNDEFINED: "undefined behaviour",
    Kind.FAULT: "fault",
    Kind.STACK_OVERFLOW: "stack overflow (recursion?)",
    Kind.THREADGROUP_MEMORY: "too much threadgroup memory",
    Kind.UNWRITTEN_OUTPUT: "output not fully written",
    Kind.REDZONE: "write out of a buffer's bounds, found afterwards",
    Kind.ORDER_DEPENDENT: "result depends on the order of threads",
}

# Legal in Metal, and hardly ever meant. Our kernels have none; other people's may be allowed them.
NOTES = frozenset({Kind.PARTIAL_SIMD, Kind.SAME_VALUE})


@dataclass(frozen=True)
class Finding:
    """A defect, where it lies in the source, and how many times it was met."""

    kind: Kind
    detail: str
    where: str
    count: int = 1

    def __str__(self) -> str:
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{MEANINGS[self.kind]}: {self.detail}, at {self.where}{times}"


class KernelFault(AssertionError):
    """A kernel ran and a checker found something."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(map(str, self.findings)))

    @property
    def kinds(self) -> set[Kind]:
        return {finding.kind for finding in self.findings}


class CompileError(AssertionError):
    """A kernel that Apple's compiler would refuse, as far as we can tell."""
