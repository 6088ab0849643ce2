"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DeviceError, HLWQError, SourceError


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
    """Yield a folder that takes the name `output` when the block ends well, else vanishes.

    Raises: SourceError when `output` exists, before the block or after it; DeviceError when the
    disk does not take what the block writes.
    """
    with scratch(output) as folder:
        yield folder
        place(folder, output)


@contextmanager
def scratch(output: Path) -> Iterator[Path]:
    """Yield a folder beside `output`, for what leads to it, that vanishes when the block ends.

    What a killed run left behind is removed by the next run for the same output; what a live one is
    still writing is left alone.
    Raises: SourceError when `output` exists; DeviceError when the disk does not take what the block
    writes.
    """
    require_new(output)
    try:
        folder = _begin(output)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except HLWQError:
        raise
    except OSError as problem:
        raise DeviceError(
            f"[output] needed to write {output}, got '{problem}'. "
            "Free disk space or choose another --output."
        ) from problem


def place(path: Path, output: Path) -> None:
    """Give what is finished its name.

    Raises: SourceError when `output` exists: another process made it meanwhile; OSError.
    """
    try:
        path.rename(output)
    except OSError:
        require_new(output)
        raise


def _begin(output: Path) -> Path:
    """Clear what dead runs left and make this run's folder."""
    prefix = f".{output.name}.partial-"
    output.parent.mkdir(parents=True, exist_ok=True)
    for path in output.parent.iterdir():
        if path.name.startswith(prefix) and not _is_alive(path.name.removeprefix(prefix)):
            shutil.rmtree(path)
    folder = output.parent / f"{prefix}{os.getpid()}"
    folder.mkdir()
    return folder


def _is_alive(process_id: str) -> bool:
    """Say whether another process of that id runs; this one is about to begin anew."""
    if not process_id.isdigit() or int(process_id) == os.getpid():
        return False
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
