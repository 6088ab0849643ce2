"""The runtime's reports, as laid out in native/host.h, and what they say in words."""

import ctypes
from collections.abc import Callable
from typing import NamedTuple

from .findings import Kind

FIRST_VARIABLE = 1000
NOBODY = 0xFFFFFFFF


class Report(ctypes.Structure):
    """One finding of a launch; what first and second mean goes with the kind."""

    kind: int
    count: int
    thread: int
    other: int
    size: int
    place: int
    offset: int
    pc: int
    address: int
    first: int
    second: int
    message: bytes
    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("thread", ctypes.c_uint32),
        ("other", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("place", ctypes.c_int32),
        ("offset", ctypes.c_int64),
        ("pc", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("first", ctypes.c_uint32),
        ("second", ctypes.c_uint32),
        ("message", ctypes.c_char * 96),
    )


class Scene(NamedTuple):
    """What a report refers to by number: the name and size of its place, and code addresses."""

    place: str
    place_size: int
    locate: Callable[[int], str]


def who(report: Report) -> str:
    return "an unknown thread" if report.thread == NOBODY else f"thread {report.thread}"


def describe_bounds(report: Report, scene: Scene) -> str:
    if not scene.place:
        return f"{report.size} bytes outside every buffer, by {who(report)}"
    offset = f"byte {report.offset} of {scene.place}, which has {scene.place_size}"
    return f"{report.size} bytes at {offset}, by {who(report)}"


def describe_variable_bounds(report: Report, scene: Scene) -> str:
    verb = "write" if report.first else "read"
    return f"{verb} of {describe_bounds(report, scene._replace(place_size=report.second))}"


def describe_race(report: Report, scene: Scene) -> str:
    other = "several threads" if report.other == NOBODY else f"thread {report.other}"
    return f"byte {report.offset} of {scene.place}, {who(report)} and {other}"


def describe_byte(report: Report, scene: Scene) -> str:
    return f"byte {report.offset} of {scene.place}, by {who(report)}"


def describe_divergence(report: Report, scene: Scene) -> str:
    return f"{who(report)} waits at {scene.locate(report.address)}"


def describe_exit(report: Report, scene: Scene) -> str:
    del scene
    return f"{report.first} threads wait, {report.second} have returned"


def describe_lanes(report: Report, scene: Scene) -> str:
    del scene
    return f"lanes {report.first:#010x} of {report.second:#010x}"


def describe_lane(report: Report, scene: Scene) -> str:
    del scene
    return f"lane {report.first}, by {who(report)}"


def describe_matrix(report: Report, scene: Scene) -> str:
    del scene
    return f"lanes {report.first:#010x}"


def describe_undefined(report: Report, scene: Scene) -> str:
    del scene
    return f"{report.message.decode()}, by {who(report)}"


def describe_fault(report: Report, scene: Scene) -> str:
    del scene
    return f"signal {report.other} at address {report.address:#x}, by {who(report)}"


def describe_memory(report: Report, scene: Scene) -> str:
    del scene
    return f"{report.first} bytes, the limit is {report.second}"


def describe_thread(report: Report, scene: Scene) -> str:
    del scene
    return f"by {who(report)}"


DESCRIPTIONS: dict[Kind, Callable[[Report, Scene], str]] = {
    Kind.READ_BOUNDS: describe_bounds,
    Kind.WRITE_BOUNDS: describe_bounds,
    Kind.THREADGROUP_BOUNDS: describe_variable_bounds,
    Kind.RACE_THREADGROUP: describe_race,
    Kind.RACE_DEVICE: describe_race,
    Kind.RACE_BETWEEN_GROUPS: describe_race,
    Kind.SAME_VALUE: describe_race,
    Kind.INPUT_WRITTEN: describe_byte,
    Kind.UNINITIALISED_THREADGROUP: describe_byte,
    Kind.UNINITIALISED_OUTPUT: describe_byte,
    Kind.BARRIER_DIVERGENCE: describe_divergence,
    Kind.BARRIER_EXIT: describe_exit,
    Kind.DIVERGED_SIMDGROUP_BARRIER: describe_lanes,
    Kind.PARTIAL_SIMD: describe_lanes,
    Kind.INACTIVE_LANE: describe_lane,
    Kind.PARTIAL_MATRIX: describe_matrix,
    Kind.UNDEFINED: describe_undefined,
    Kind.FAULT: describe_fault,
    Kind.STACK_OVERFLOW: describe_fault,
    Kind.THREADGROUP_MEMORY: describe_memory,
}


def describe(report: Report, scene: Scene) -> str:
    """Return in words what a report found."""
    return DESCRIPTIONS.get(Kind(report.kind), describe_thread)(report, scene)
