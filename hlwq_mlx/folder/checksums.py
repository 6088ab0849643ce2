"""Checksums of a converted folder: taken while its files are written, compared when asked.

A file has one for each run of bytes (runs), in order and without gaps. They tell a damaged copy
from a whole one; they prove nothing of who wrote it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..disk import failures
from ..disk.jsonfile import read_json
from ..disk.names import require_plain
from ..disk.runs import ALGORITHM, Run, Runs
from ..errors import CheckpointError

FILE_NAME = "checksums.json"
_CHUNK_BYTES = 1 << 22


def write(folder: Path, written: Mapping[str, list[Run]]) -> None:
    """Write the checksums of a folder: those that were taken, and those of its small files."""
    files = dict(written)
    for path in sorted(folder.iterdir()):
        if path.name not in files:
            runs = Runs()
            runs.add(0, path.read_bytes())
            files[path.name] = runs.listed()
    text = json.dumps({"algorithm": ALGORITHM, "files": files}, separators=(",", ":"))
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def total_bytes(folder: Path) -> int:
    """Return how many bytes `verify` will read.

    Raises: as `verify`, for checksums that cannot be read.
    """
    return sum(runs[-1][1] for runs in _read(folder).values() if runs)


def verify(folder: Path, on_bytes: Callable[[int], object]) -> int:
    """Compare every file with its checksum and return how many there are.

    Raises: CheckpointError listing the files that differ; SourceError without checksums.
    """
    files = _read(folder)
    problems = [
        problem
        for name, runs in files.items()
        for problem in _differences(folder / name, runs, on_bytes)
    ]
    if problems:  # all of them: they are what was asked for
        raise CheckpointError("\n".join(problems))
    return len(files)


def _read(folder: Path) -> dict[str, list[Run]]:
    path = folder / FILE_NAME
    if not path.exists():
        raise CheckpointError(
            f"[{FILE_NAME}] needed checksums in {folder}, got none: it was converted before they "
            "were written. Convert the model again."
        )
    stated = read_json(path)
    files = stated.get("files")
    if stated.get("algorithm") != ALGORITHM or not isinstance(files, dict) or not files:
        raise _unreadable("other content")
    for name, runs in files.items():
        require_plain(name, FILE_NAME)
        if not _are_runs(runs):
            raise _unreadable(f"other content for {name}")
    return files


def _are_runs(runs: Any) -> bool:
    """Return whether runs follow each other from the first byte on."""
    at = 0
    for run in runs if isinstance(runs, list) else (None,):
        if not isinstance(run, list) or [type(part) for part in run] != [int, int, str]:
            return False
        start, stop, _ = run
        if start != at or stop <= start:
            return False
        at = stop
    return True


def _unreadable(got: str) -> CheckpointError:
    return CheckpointError(
        f"[{FILE_NAME}] needed a {ALGORITHM} for each run of bytes of each file, got {got}. "
        "Copy the folder again, or convert the model again."
    )


def _differences(path: Path, runs: list[Run], on_bytes: Callable[[int], object]) -> Iterator[str]:
    again = "Copy it again, or convert the model again."
    if not path.is_file():
        kind = failures.kind_of(path.stat().st_mode) if path.exists() else "no such file"
        yield f"[{path.name}] needed a file in {path.parent}, got {kind}. {again}"
        return
    needed, got = runs[-1][1] if runs else 0, path.stat().st_size
    if needed != got:
        yield f"[{path.name}] needed {needed:,} bytes, got {got:,}. {again}"
        return
    with failures.reading(path), path.open("rb") as file:
        for start, stop, digest in runs:
            if _digest(file, stop - start, on_bytes) != digest:
                yield (
                    f"[{path.name}] needed the bytes that convert wrote, got others between "
                    f"{start:,} and {stop:,}. {again}"
                )
                return


def _digest(file: Any, size: int, on_bytes: Callable[[int], object]) -> str:
    digest = hashlib.new(ALGORITHM)
    while size:
        chunk = file.read(min(size, _CHUNK_BYTES))
        if not chunk:  # cut off meanwhile
            break
        digest.update(chunk)
        on_bytes(len(chunk))
        size -= len(chunk)
    return digest.hexdigest()
