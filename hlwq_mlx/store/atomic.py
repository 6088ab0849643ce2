"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DeviceError, SourceError


@contextmanager
def building(output: Path) -> Iterator[Path]:
    """Yield a folder that takes the name `output` when the block ends well, else vanishes.

    What a killed run left behind is removed by the next run for the same output; what a live one is
    still writing is left alone.
    Raises: SourceError when `output` exists; DeviceError when it cannot be made.
    """
    if output.exists():
        raise SourceError(
            f"[output] needed a new folder, got {output}, which exists. "
            "Remove it or choose another --output."
        )
    prefix = f".{output.name}.partial-"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for leftover in output.parent.glob(f"{prefix}*"):
            if not _is_alive(leftover.name.removeprefix(prefix)):
                shutil.rmtree(leftover)
        folder = output.parent / f"{prefix}{os.getpid()}"
        folder.mkdir()
    except OSError as problem:
        raise DeviceError(
            f"[output] needed to write in {output.parent}, got '{problem.strerror}'. "
            "Choose another --output."
        ) from problem
    try:
        yield folder
        folder.rename(output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


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
