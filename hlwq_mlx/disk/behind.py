"""What is done with a file's bytes a little behind the thread that writes them.

They are digested, and sent to the disk: a file that goes there while it is made need not be waited
for in the end. Both are on threads of their own, and never far behind.
"""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from .atomic import hand_over
from .runs import Run, Runs

_MOST_BEHIND = 1 << 24  # bytes that wait for their digest, and are kept for it
_FLUSH_BYTES = 1 << 25


class Digests:
    """Digests of what is written, taken on a thread in the order of the calls."""

    def __init__(self, done: Iterable[Run] = ()) -> None:
        self._runs = Runs(done)
        self._thread = ThreadPoolExecutor(1, "digest")
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._behind = 0

    def add(self, at: int, raw: bytes | memoryview) -> None:
        """Add bytes that are written at byte `at` of the file, which nobody may change any more."""
        self._waiting.append((len(raw), self._thread.submit(self._runs.add, at, raw)))
        self._behind += len(raw)
        while self._behind > _MOST_BEHIND:
            self._wait()

    def listed(self) -> list[Run]:
        """Return the runs of all that was added, in the order of the file."""
        while self._waiting:
            self._wait()
        return self._runs.listed()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _wait(self) -> None:
        size, digesting = self._waiting.popleft()
        digesting.result()
        self._behind -= size


class Writeback:
    """Sends a file to the disk while it is written.

    It promises nothing: who needs the file on the disk flushes it. But a system tells of a failure
    once, and so does this.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "writeback")
        self._flushing: Future[None] | None = None
        self._written = 0

    def add(self, size: int) -> None:
        """Count bytes that were written, and flush the file once enough of them wait.

        Raises: OSError.
        """
        self._written += size
        if self._written >= _FLUSH_BYTES and (self._flushing is None or self._flushing.done()):
            self._raise()
            self._flushing = self._thread.submit(hand_over, self._path)
            self._written = 0

    def close(self) -> None:
        """Wait for what is under way, and end the thread.

        Raises: OSError.
        """
        self._thread.shutdown()
        self._raise()

    def _raise(self) -> None:
        if self._flushing is not None:
            self._flushing.result()
