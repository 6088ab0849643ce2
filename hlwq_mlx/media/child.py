"""Read a medium in a child process, which is killed when it takes too much memory or time.

Decoders and demuxers allocate what a file's header claims, before anyone can ask how much that is.
The child may hold MEMORY_BYTES: it is watched from here, and on Linux its allocations fail slightly
above that. It returns arrays one by one; `worker` is the child's side.
"""

import io
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .. import errors
from ..disk.child import Limits, watched
from ..errors import RequestError

logger = logging.getLogger("hlwq_mlx")

Array = npt.NDArray[Any]

MEMORY_BYTES = 355_000_000  # resident, the interpreter and its libraries included
CPU_SECONDS = {"image": 60, "sound": 120, "video": 600}
LINE_BYTES = 1 << 16
PACKAGE_PARENT = Path(__file__).parents[2]
# With -P, nothing is imported from the current folder, whose files are not trusted.
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from hlwq_mlx.media.worker import main; main()"
)
# One thread, as each of numpy's reserves memory.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def read(kind: str, file: BinaryIO, where: str, **options: Any) -> Generator[Array, None, None]:
    """Yield the arrays that the worker makes of a medium of `kind` ("image", "sound", "video").

    Raises: what the worker's reader raises; RequestError when it takes more memory or time than a
    medium may, or its decoder crashes.
    """
    # No limit by the clock: the process waits while nobody asks for its next array.
    limits = Limits(CPU_SECONDS[kind], MEMORY_BYTES, wall_s=math.inf)
    numbers = str(limits.memory_bytes), str(limits.cpu_s)
    arguments = [str(PACKAGE_PARENT), *numbers, kind, where, json.dumps(options)]
    with tempfile.TemporaryFile() as complaints, _on_disk(file) as content:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, *arguments],
            stdin=content,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=os.environ | ENVIRONMENT,
        )
        assert isinstance(process.stdout, io.BufferedReader)
        with watched(process, limits) as reasons, process.stdout as pipe:
            is_done = yield from _arrays(pipe)
        if not is_done:
            raise RequestError(
                f"[{where}] needed a medium that can be read within "
                f"{limits.memory_bytes / 1e6:.0f} MB and {limits.cpu_s} s, got "
                f"{_ending(process.returncode, reasons, complaints)}. "
                "Check where it comes from, or send something smaller."
            )


@contextmanager
def _on_disk(file: BinaryIO) -> Iterator[IO[bytes]]:
    """Yield a file that another process can read: the file itself, or a copy on disk."""
    try:
        file.fileno()
    except OSError:
        file.seek(0)
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy)
            copy.seek(0)
            yield copy
    else:
        file.flush()
        yield file


def _arrays(pipe: io.BufferedReader) -> Generator[Array, None, bool]:
    """Read the worker's messages; return whether the last one says that it is done."""
    while line := pipe.readline(LINE_BYTES):
        message = json.loads(line)
        match message:
            case {"array": [dtype, shape]}:
                content = bytearray(math.prod(shape) * np.dtype(dtype).itemsize)
                if pipe.readinto(content) < len(content):
                    return False
                yield np.frombuffer(content, dtype).reshape(shape)
            case {"warning": text}:
                logger.warning("%s", text)
            case {"error": [name, text]}:
                raise getattr(errors, name)(text)
            case {"done": True}:
                return True
    return False


def _ending(code: int, reasons: list[str], complaints: IO[bytes]) -> str:
    """Return why a worker ended before it was done."""
    if reasons:
        return reasons[0]
    if code == -signal.SIGXCPU:
        return "more time"
    complaints.seek(0)
    last = complaints.read()[-1000:].decode(errors="replace").strip().rpartition("\n")[2]
    return "more memory" if last.startswith("MemoryError") else f"exit status {code} {last}".strip()
