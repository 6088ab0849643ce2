"""Caches on several machines that stay one: what rank 0 does to its own, the others do to theirs.

The engine sees rank 0's, of every layer. What it does to one is noted down and goes out before the
next pass. A layer that another machine holds has a stand-in here, of one number a position, which
knows what its cache would.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any
from weakref import finalize

import mlx.core as mx

from ..gemma4.caches import Arrays, Caching, Rows, make_caches
from ..gemma4.config import TextConfig
from .shares import Run

Operation = Sequence[Any]  # a name, and the numbers that it needs
_numbers = itertools.count()


class _Token:
    """What lives as long as somebody holds it."""


class Kept(tuple[mx.array, ...]):
    """A snapshot of rank 0's arrays, which has a number that the other machines know it by."""

    number: int
    token: _Token


class LedCache:
    """One layer's cache of a sequence, as the engine handles it."""

    # A snapshot's arrays are not all here, so that no part of them can be joined to another's.
    snapshots_join = False

    def __init__(self, inner: Any, layer: int, sequence: "Numbered", notes: "Notes") -> None:
        self.inner = inner
        self.layer = layer
        self.sequence = sequence
        self._notes = notes

    @property
    def offset(self) -> int:
        """How many positions the cache has taken."""
        return int(self.inner.offset)

    @property
    def state(self) -> Any:
        """The arrays that are here, to be evaluated."""
        return self.inner.state

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are here."""
        return int(self.inner.nbytes)

    @property
    def room(self) -> int:
        """As the cache's own."""
        return int(self.inner.room)

    def rewind(self, count: int) -> None:
        """Drop the last `count` positions."""
        if count:
            self.inner.rewind(count)
            self._note("rewind", count)

    def snapshot(self, start: int, end: int) -> Arrays | None:
        """Copy what a cache of the first `end` positions holds, or None when it is forgotten."""
        arrays = self.inner.snapshot(0, end)
        if arrays is None:
            return None
        kept = Kept(arrays)
        kept.number, kept.token = next(_numbers), _Token()
        self._note("snapshot", end, kept.number)
        finalize(kept.token, self._notes.append, ("drop", kept.number))
        return kept

    def restore(self, snapshots: Sequence[Arrays], end: int) -> None:
        """Make an empty cache one of the first `end` positions."""
        [kept] = snapshots
        assert isinstance(kept, Kept)
        self.inner.restore([kept], end)
        self._note("restore", kept.number, end)

    def _note(self, name: str, *numbers: int) -> None:
        self._notes.append((name, self.sequence.number, self.layer, *numbers))


class Numbered:
    """A sequence's number, which the others forget when nobody holds its caches."""

    def __init__(self, notes: "Notes") -> None:
        self.number = next(_numbers)
        finalize(self, notes.append, ("forget", self.number))


class Notes:
    """What was done to caches since the last pass; a collector of garbage may write, too."""

    def __init__(self) -> None:
        self._waiting: deque[Operation] = deque()

    def append(self, operation: Operation) -> None:
        """Note something down."""
        self._waiting.append(operation)

    def take(self) -> list[Operation]:
        """Return all that waits, in order."""
        return [self._waiting.popleft() for _ in range(len(self._waiting))]


def make_led(config: TextConfig, caching: Caching, own: Run, notes: Notes) -> list[LedCache]:
    """Make rank 0's caches of a new sequence; it holds the layers `own`.

    Raises: RequestError when they cannot be kept so.
    """
    real = make_caches(config, caching)
    # Codes of a stand-in's single number would need a group of them.
    standing = make_caches(config, replace(caching, kv_bits=None))
    sequence = Numbered(notes)
    stated = caching.kv_bits, caching.kv_group_size, caching.max_kv_size
    notes.append(("make", sequence.number, *stated))
    return [
        LedCache((real if own.start <= at < own.stop else standing)[at], at, sequence, notes)
        for at in range(len(real))
    ]


def sequences_of(cache: Sequence[Any]) -> list[int]:
    """Return the numbers of the sequences that step together."""
    return [entry.sequence.number for entry in _entries(cache[0])]


def inner(cache: Iterable[Any]) -> list[Any]:
    """Return the caches that a model's layers take."""
    return [
        Rows([each.inner for each in _entries(entry)]) if isinstance(entry, Rows) else entry.inner
        for entry in cache
    ]


def advance(cache: Iterable[Any], length: int) -> None:
    """Let stand-ins take as many positions as their caches elsewhere take."""
    position = mx.zeros((1, 1, length, 1))
    for entry in cache:
        for each in _entries(entry):
            each.update_and_fetch(position, position)
            mx.eval(each.state)


def _entries(entry: Any) -> Sequence[Any]:
    """Return a layer's caches, of each sequence that steps."""
    return entry.entries if isinstance(entry, Rows) else [entry]


class Mirror:
    """Another machine's caches, of the layers that it holds."""

    def __init__(self, config: TextConfig, own: Run) -> None:
        self._config = config
        self._own = own
        self._sequences: dict[int, list[Any]] = {}
        self._kept: dict[int, Arrays] = {}

    def apply(self, operations: Iterable[Operation]) -> None:
        """Do what rank 0 did."""
        for name, number, *numbers in operations:
            if name == "make":
                bits, group, size = numbers
                self._sequences[number] = make_caches(self._config, Caching(bits, group, size))
            elif name == "forget":
                self._sequences.pop(number, None)
            elif name == "drop":
                self._kept.pop(number, None)
            else:
                layer, *rest = numbers
                self._apply_to_layer(name, number, layer, rest)

    def together(self, sequences: Sequence[int]) -> list[Any]:
        """Return the caches of sequences as those of one step."""
        own = [self._sequences[number] for number in sequences]
        return own[0] if len(own) == 1 else [Rows(entries) for entries in zip(*own, strict=True)]

    def _apply_to_layer(self, name: str, sequence: int, layer: int, rest: list[int]) -> None:
        if not self._own.start <= layer < self._own.stop:
            return
        cache = self._sequences[sequence][layer - self._own.start]
        if name == "rewind":
            cache.rewind(*rest)
        elif name == "snapshot":
            end, number = rest
            self._kept[number] = cache.snapshot(0, end)
            mx.eval(self._kept[number])
        elif name == "restore":
            number, end = rest
            cache.restore([self._kept[number]], end)
            mx.eval(cache.state)
