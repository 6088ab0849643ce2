"""Turn a failed call to the system into its cause, as it is, and advice for that cause.

Not where files are opened. Only a full disk is called a full disk.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import SourceError

FULL = (errno.ENOSPC, errno.EDQUOT)
_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)
_FULL = "Free disk space, or choose another folder."
_FORBIDDEN = "Change its permissions, or choose another folder."
_ADVICE = {
    **dict.fromkeys(FULL, _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _FORBIDDEN),
    errno.EFBIG: "Choose a folder where larger files are allowed.",
    errno.EROFS: "Choose a folder that can be written.",
    errno.EISDIR: "Move the folder of that name away.",
    errno.ENOTDIR: "Move the file away that is there in the place of a folder.",
    errno.ENOENT: "Check the path, or download the model again.",
    errno.ELOOP: "Remove the link that leads back to itself.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EIO: "Check the disk, then run the same command again.",
    errno.EMFILE: "Allow more open files, as with `ulimit -n 4096`.",
}


def is_local(problem: OSError) -> bool:
    """Return whether the cause is a file or a disk, and not the network."""
    return problem.errno in _ADVICE


def advice(problem: OSError) -> str:
    """Return what to do, as a sentence."""
    return _ADVICE.get(problem.errno or 0, "Check the disk and the path.")


def cause(problem: OSError) -> str:
    """Return the system's own words, and the file they are about if it names one."""
    about = f" ({problem.filename})" if problem.filename else ""
    return f"'{problem.strerror or problem}'{about}"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, which reads `path`, into a SourceError that names it."""
    try:
        yield
    except OSError as problem:
        raise SourceError(
            f"[{path.name}] needed to read {path}, got '{problem.strerror or problem}'. "
            f"{advice(problem)}"
        ) from problem


def require_file(path: Path) -> None:
    """Refuse what is no file: opening a pipe would wait for ever.

    Raises: SourceError.
    """
    with reading(path):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise SourceError(
            f"[{path.name}] needed a regular file, got {kind_of(mode)} at {path}. Put the file "
            "there, or download the model again."
        )


def is_there(path: Path) -> bool:
    """Return whether there is a file at a path, False when there is nothing.

    Raises: SourceError for anything else, so that it does not pass for a missing file.
    """
    if not os.path.lexists(path):
        return False
    require_file(path)
    return True


def kind_of(mode: int) -> str:
    """Return what a file's mode says that it is."""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "a device")
