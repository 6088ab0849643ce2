"""Digests of a file while it is written, in whatever order its bytes come.

A large file is written in runs, side by side: the planes of a tensor of codes lie apart, and no
hash takes bytes out of order. So each run of bytes has a digest of its own.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

ALGORITHM = "sha256"

Run = tuple[int, int, str]
"""A run of bytes: where it starts and stops, and its digest."""


class Runs:
    """Digests of a file that is written in any order; a run grows where it was left off."""

    def __init__(self, done: Iterable[Run] = ()) -> None:
        """Begin, or go on: runs that are `done` stay as they are, unless they are written again."""
        self._by_stop: dict[int, tuple[int, Any]] = {}
        self._done = {start: (start, stop, digest) for start, stop, digest in done}

    def add(self, at: int, raw: bytes | memoryview) -> None:
        """Add bytes that are written at byte `at` of the file."""
        if not len(raw):
            return
        self._done.pop(at, None)
        start, digest = self._by_stop.pop(at, None) or (at, hashlib.new(ALGORITHM))
        digest.update(raw)
        self._by_stop[at + len(raw)] = start, digest

    def listed(self) -> list[Run]:
        """Return the runs in the order of the file."""
        runs = [(start, stop, made.hexdigest()) for stop, (start, made) in self._by_stop.items()]
        return sorted([*self._done.values(), *runs])
