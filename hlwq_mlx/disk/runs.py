"""Digests of a file while it is written, in whatever order its bytes come.

A large file is written in runs, side by side: the planes of a tensor of codes lie apart, and no
hash takes bytes out of order. So each run of bytes has a digest of its own.
"""

import hashlib
from typing import Any

ALGORITHM = "sha256"

Run = tuple[int, int, str]
"""A run of bytes: where it starts and stops, and its digest."""


class Runs:
    """Digests of a file that is written in any order; a run grows where it was left off."""

    def __init__(self) -> None:
        self._by_stop: dict[int, tuple[int, Any]] = {}

    def add(self, at: int, raw: bytes | memoryview) -> None:
        """Add bytes that are written at byte `at` of the file."""
        if not len(raw):
            return
        start, digest = self._by_stop.pop(at, None) or (at, hashlib.new(ALGORITHM))
        digest.update(raw)
        self._by_stop[at + len(raw)] = start, digest

    def listed(self) -> list[Run]:
        """Return the runs in the order of the file."""
        runs = self._by_stop.items()
        return sorted((start, stop, digest.hexdigest()) for stop, (start, digest) in runs)
