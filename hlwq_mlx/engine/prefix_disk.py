"""Prefixes on disk, so that they outlive the process: one file for each node of the tree.

A node's id is a digest of its keys from the first on and of all else that its arrays follow from
(model, dtype, how caches are kept, salt), so files of another origin are never found. A thread
writes; a file appears whole. What is damaged is removed, and read anew from the prompt: nothing
here ever fails a request. The folder's bytes, and those written in a day, are bounded.
"""

import contextlib
import hashlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..disk import failures
from ..disk.atomic import place, scratch
from ..errors import DeviceError, HLWQError
from ..gemma4.caches import Caching
from ..gemma4.model import Model
from ..quant.backends.native.library import native_library
from .prefix_cache import Keys, Node
from .prefix_file import FORMAT, Header, HostArray, host_arrays, read_header, read_node, write

logger = logging.getLogger("hlwq_mlx")

MAX_BYTES = 8 << 30
DAILY_BYTES = 16 << 30
_PENDING_BYTES = 1 << 29  # copies that wait to be written
_DAY_S = 24 * 60 * 60
_NAME = "prefix-{}.safetensors"


@dataclass(frozen=True)
class Limits:
    """How many bytes the folder holds, and how many are written in a day (UTC)."""

    max_bytes: int = MAX_BYTES
    daily_bytes: int = DAILY_BYTES


@dataclass
class Entry:
    """A file that is there; `used` is when, in seconds."""

    header: Header
    nbytes: int
    used: float


@dataclass(frozen=True)
class Job:
    """A file to be written."""

    header: Header
    origin: Mapping[str, str]
    arrays: Mapping[str, HostArray]
    nbytes: int


def origin_of(model: Model, identity: str, caching: Caching) -> dict[str, str]:
    """Return what all arrays of a tree follow from; `identity` is that of the model's folder."""
    text = model.args.text_config
    library = native_library()
    return {
        "model": identity,
        "computed": "MLX" if library is None else library.origin,
        "dtype": str(model.model.language_model.norm.weight.dtype),
        "window": str(text.sliding_window),
        "caching": str(caching),
    }


class PrefixStore:
    """A folder of prefixes.

    One thread finds, reads and hands over; a second one, of its own, writes until `close`.
    Raises: DeviceError when the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        origin: Mapping[str, str],
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._origin = dict(origin)
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: dict[str, Job] = {}
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._open = contextlib.ExitStack()
        _make(folder)
        # What a killed process left half written is cleared with its folder.
        self._scratch = self._open.enter_context(scratch(folder / "unfinished"))
        self._entries = {entry.header.id: entry for entry in _index(folder)}
        self._spent = -1, 0  # a day, and the bytes written on it
        self._drop_orphans()
        self._writer = threading.Thread(target=self._write_all, name="prefixes", daemon=True)
        self._writer.start()

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        with self._lock:
            return sum(entry.nbytes for entry in self._entries.values())

    def read(self, keys: Keys, salt: str, beyond: int, held: int) -> list[Node]:
        """Return the nodes of the longest prefix known that is longer than `beyond`, or none.

        Those whose ranges end within the first `held` keys are left out.
        """
        while True:
            with self._lock:
                chain = self._chain(keys, salt, beyond)
            nodes: list[Node] = []
            for header in chain:
                if header.end <= held and header is not chain[-1]:
                    continue
                node = self._read(header, keys)
                if node is None:
                    break
                nodes.append(node)
            else:
                return nodes

    def write(self, path: Sequence[Node], salt: str) -> bool:
        """Have the last node of a path written, and those that lead to it; return whether.

        The arrays are copied at once.
        """
        origin, digest = self._salted(salt)
        parent = ""
        for node in path:
            digest.update(node.keys.tobytes())
            is_last = node is path[-1]
            has_state = is_last and node.state is not None
            now = int(self._clock())
            header = Header(digest.hexdigest(), parent, node.start, node.end, has_state, now)
            if not self._is_known(header) and not self._put(header, origin, node):
                return False
            parent = header.id
        return True

    def close(self) -> None:
        """Write what waits, and end."""
        self._queue.put(None)
        self._writer.join()
        self._open.close()

    def _salted(self, salt: str) -> "tuple[dict[str, str], hashlib._Hash]":
        origin = self._origin | {"salt": hashlib.sha256(f"prefix {salt}".encode()).hexdigest()}
        return origin, hashlib.sha256(json.dumps([FORMAT, origin], sort_keys=True).encode())

    def _chain(self, keys: Keys, salt: str, beyond: int) -> list[Header]:
        """Return the headers of the longest prefix that has a state, from its beginning."""
        _, digest = self._salted(salt)
        ends = sorted({entry.header.end for entry in self._entries.values()})
        found, at = None, 0
        for end in ends:
            if end > len(keys):
                break
            digest.update(keys[at:end].tobytes())
            at = end
            entry = self._entries.get(digest.hexdigest())
            if entry is not None and entry.header.has_state and end > beyond:
                found = entry.header
        return list(reversed(list(self._upwards(found))))

    def _upwards(self, header: Header | None) -> Iterator[Header]:
        while header is not None:
            yield header
            header = self._entries[header.parent].header if header.parent else None

    def _read(self, header: Header, keys: Keys) -> Node | None:
        """Read a file, or remove it when it is damaged."""
        path = self._path(header.id)
        try:
            node = read_node(path)
            if not np.array_equal(node.keys, keys[header.start : header.end]):
                raise DeviceError(f"[{path.name}] needed the prompt's keys, got others. Remove it.")
        except (HLWQError, OSError) as problem:
            logger.warning("removed %s, which is no whole prefix", path)
            logger.debug("%s", problem)
            with self._lock:
                self._remove(header.id)
                self._drop_orphans()
            return None
        used = self._clock()
        with self._lock:
            if header.id in self._entries:
                self._entries[header.id].used = used
        with contextlib.suppress(OSError):
            os.utime(path, (used, used))
        return node

    def _is_known(self, header: Header) -> bool:
        with self._lock:
            for known in (self._entries.get(header.id), self._pending.get(header.id)):
                if known is not None and known.header.has_state >= header.has_state:
                    return True
        return False

    def _put(self, header: Header, origin: Mapping[str, str], node: Node) -> bool:
        """Hand a node to the writer, unless a limit is reached."""
        nbytes = node.nbytes if header.has_state else node.range_bytes
        with self._lock:
            day = header.written // _DAY_S
            spent = self._spent_on(day)
            waiting = sum(job.nbytes for job in self._pending.values())
        if (
            nbytes > self._limits.max_bytes
            or spent + nbytes > self._limits.daily_bytes
            or (waiting and waiting + nbytes > _PENDING_BYTES)
        ):
            return False
        job = Job(header, origin, host_arrays(node, header.has_state), nbytes)
        with self._lock:
            self._spent = day, spent + nbytes
            self._pending[header.id] = job
        self._queue.put(job)
        return True

    def _spent_on(self, day: int) -> int:
        """Return how many bytes were written on a day: what is there tells of earlier processes."""
        if self._spent[0] != day:
            there = (e for e in self._entries.values() if e.header.written // _DAY_S == day)
            self._spent = day, sum(entry.nbytes for entry in there)
        return self._spent[1]

    def _write_all(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                self._write(job)
            except (HLWQError, OSError) as problem:
                cause = problem.__cause__ or problem
                logger.warning("a prefix is not kept in %s: %s", self._folder, cause)
            with self._lock:
                del self._pending[job.header.id]

    def _write(self, job: Job) -> None:
        header, path = job.header, self._path(job.header.id)
        unfinished = self._scratch / path.name
        write(unfinished, header, job.origin, job.arrays)
        unfinished.chmod(0o600)  # it tells what was said
        nbytes, used = unfinished.stat().st_size, self._clock()
        os.utime(unfinished, (used, used))
        with self._lock:
            has_room = self._make_room(nbytes, header.parent)
        if not has_room:
            unfinished.unlink()
            return
        place(unfinished, path)
        with self._lock:
            self._entries[header.id] = Entry(header, nbytes, used)

    def _make_room(self, nbytes: int, parent: str) -> bool:
        """Remove the files that were used least recently, of those that lead to no other.

        Return whether a file then fits, and what it goes on from is there.
        """
        while True:
            total = sum(entry.nbytes for entry in self._entries.values())
            if total + nbytes <= self._limits.max_bytes:
                return not parent or parent in self._entries
            leading = {parent, *(entry.header.parent for entry in self._entries.values())}
            leaves = [id for id in self._entries if id not in leading]
            if not leaves:
                return False
            self._remove(min(leaves, key=lambda id: self._entries[id].used))

    def _drop_orphans(self) -> None:
        """Remove files whose beginning is not there."""
        for entry in sorted(self._entries.values(), key=lambda entry: entry.header.end):
            header = entry.header
            parent = self._entries.get(header.parent)
            if header.start != (parent.header.end if parent else 0):
                self._remove(header.id)

    def _remove(self, id: str) -> None:
        self._entries.pop(id, None)
        with contextlib.suppress(OSError):
            self._path(id).unlink()

    def _path(self, id: str) -> Path:
        return self._folder / _NAME.format(id)


def _index(folder: Path) -> Iterator[Entry]:
    """Yield the files of a folder, and remove those that bear our name and are none of ours."""
    for path in folder.glob(_NAME.format("*")):
        try:
            header, found = read_header(path), path.stat()
            if path.name != _NAME.format(header.id):
                raise DeviceError(
                    f"[{path.name}] needed the name of its id, got another. Remove it."
                )
        except (HLWQError, OSError) as problem:
            logger.warning("removed %s, which is no whole prefix", path)
            logger.debug("%s", problem)
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            yield Entry(header, found.st_size, found.st_mtime)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise DeviceError(
            f"[{folder.name}] needed to make the folder {folder}, got {failures.cause(problem)}. "
            f"{failures.advice(problem)}"
        ) from problem
