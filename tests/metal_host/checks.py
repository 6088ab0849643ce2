"""How kernels are run: which checkers watch, in which order threads run, what is tolerated."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from .findings import Kind

FORWARD = 0
REVERSE = 1


@dataclass(frozen=True)
class Checks:
    """One way of running kernels; the default is every checker and one order of threads.

    lane_orders: FORWARD, REVERSE, or the seed (from 2 on) of a random order; the kernel runs once
    for each, and its results have to agree. jitter_ulp: by how much exp, sin and other functions
    that a GPU approximates are moved at random. misalign: bytes by which every input's address
    misses a page; an array that is a slice is aligned to its elements only.
    `is_watched=False` builds without checkers, for large sizes: many times faster.
    """

    lane_orders: tuple[int, ...] = (FORWARD,)
    flush_to_zero: bool = False
    jitter_ulp: int = 0
    misalign: int = 0
    is_watched: bool = True
    tolerated: frozenset[Kind] = frozenset()


_default = Checks()
_current = ContextVar("checks", default=_default)


def current() -> Checks:
    return _current.get()


@contextmanager
def checked(checks: Checks) -> Iterator[None]:
    """Run the kernels of a block in this way."""
    token = _current.set(checks)
    try:
        yield
    finally:
        _current.reset(token)
