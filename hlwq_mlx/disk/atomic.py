"""Folders that appear whole or not at all."""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import DeviceError, SourceError
from . import failures
from .sizes import format_bytes

_SPARE_BYTES = 1 << 26
_FLUSHING = 8
_FULL_FLUSH: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS has it
_NOTHING_TO_FLUSH = (errno.EINVAL, errno.ENOTSUP)  # as some network file systems say of folders


def require_new(output: Path) -> None:
    """Refuse an output that exists; commands ask before they download or read anything.

    Raises: SourceError.
    """
    if os.path.lexists(output):
        raise SourceError(
            f"[output] needed a new folder, got {output}, which exists. "
            "Remove it or choose another --output."
        )


@contextmanager
def building(output: Path) -> Iterator[Path]:
    """Yield a folder that is renamed to `output` when the block ends well, else removed.

    Raises: SourceError when `output` exists, before the block or after it; DeviceError when the
    disk does not take what the block writes.
    """
    with scratch(output) as folder:
        yield folder
        place(folder, output)


@contextmanager
def scratch(output: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `output`, removed when the block ends.

    What a killed run left behind is removed by the next run for the same output; what a live one is
    still writing, in whatever thread, process or container, is left alone. Where the file system
    has no locks the two look alike, and both are left.
    Raises: SourceError when `output` exists; DeviceError when the disk does not take what the block
    writes.
    """
    require_new(output)
    prefix = f".{output.name}.partial-"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _clear(output.parent, prefix)
        with _locked_folder(output.parent, prefix) as folder:
            yield folder
    except OSError as problem:
        raise DeviceError(
            f"[output] needed to write {output}, got {failures.cause(problem)}. "
            f"{failures.advice(problem)}"
        ) from problem


def resumable_folder(output: Path) -> Path:
    """Return where `resumable` keeps what is not finished."""
    return output.parent / f".{output.name}.unfinished"


@contextmanager
def resumable(output: Path) -> Iterator[Path]:
    """Yield a folder beside `output` that stays when the block is stopped, and goes when it ends.

    Raises: SourceError when `output` exists or another process is at work on it; DeviceError when
    the disk does not take what the block writes.
    """
    require_new(output)
    folder = resumable_folder(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _opened(folder) as handle:
            try:
                _lock(handle)
            except BlockingIOError as problem:
                raise SourceError(
                    f"[output] needed {folder} for itself, got another process at work on it. "
                    "Wait for that one, or choose another --output."
                ) from problem
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as problem:
        raise DeviceError(
            f"[output] needed to write {output}, got {failures.cause(problem)}. "
            f"{failures.advice(problem)}"
        ) from problem


def require_room(folder: Path, size: int) -> None:
    """Refuse to begin what the disk cannot hold; `folder` is what `building` yields.

    Raises: DeviceError.
    """
    needed = size + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DeviceError(
            f"[output] needed {format_bytes(needed)} in {folder.parent}, got {format_bytes(free)} "
            "free. Free disk space or choose another --output."
        )


def place(path: Path, output: Path) -> None:
    """Rename a finished file or folder to `output`, once all of it is on the disk.

    A crash of the system then leaves either nothing of that name or the whole. A file replaces a
    file that another process made meanwhile.
    Raises: SourceError when `output` is a folder that another process made meanwhile; OSError.
    """
    _hand_over_all(path)
    _empty_cache(path)
    try:
        path.rename(output)
    except OSError:
        require_new(output)
        raise
    flush(output.parent)


def _hand_over_all(path: Path) -> None:
    """Hand a file, or a folder and everything in it, to the disk."""
    if path.is_dir():
        with ThreadPoolExecutor(_FLUSHING) as threads:  # a disk takes many as fast as one
            list(threads.map(_hand_over_all, path.iterdir()))
    hand_over(path)


def flush(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk."""
    hand_over(path)
    _empty_cache(path)


def _empty_cache(path: Path) -> None:
    """Have a Mac's disk write what it was handed, which fsync leaves in a cache of its own."""
    if _FULL_FLUSH is not None:
        with _opened(path) as handle, suppress(OSError):  # not every file system can
            fcntl.fcntl(handle, _FULL_FLUSH)


def hand_over(path: Path) -> None:
    """Hand a file's bytes, or a folder's names, to the disk, which may keep them in a cache."""
    with _opened(path) as handle:
        try:
            os.fsync(handle)
        except OSError as problem:
            if problem.errno not in _NOTHING_TO_FLUSH:
                raise


def _clear(parent: Path, prefix: str) -> None:
    """Remove folders of dead runs, whose locks ended with their processes."""
    for path in parent.iterdir():
        if path.name.startswith(prefix):
            # Another run may be clearing it too, or writing it.
            with suppress(FileNotFoundError, BlockingIOError), _opened(path) as handle:
                if _lock(handle):
                    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder that others see locked, and remove it in the end."""
    folder, handle = _make_locked(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _make_locked(parent: Path, prefix: str) -> tuple[Path, int]:
    """Make a folder and lock it; return it with the handle that holds the lock.

    Before it is locked, another run may take it for a dead run's and clear it; then one more is
    made. A run that ends at any moment leaves what the next one clears.
    """
    while True:
        folder = parent / f"{prefix}{secrets.token_hex(4)}"
        folder.mkdir()
        with suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY)
            with suppress(BlockingIOError):
                _lock(handle)
                if folder.is_dir():
                    return folder, handle
            os.close(handle)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a file or a folder, which alone can be locked or flushed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Lock a folder and return True, or False where the file system has no locks.

    Raises: BlockingIOError when another run has the lock.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
