"""Reading a medium in a process of its own, which is ended when it takes too much.

Decoders and demuxers allocate what a file's header claims before anyone can ask how much that is.
Their process may hold MEMORY_BYTES: it is watched from here, and on Linux its allocations fail a
little later. It hands back arrays, one after the other; `worker` is its side.
"""

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
# -P and this: nothing is imported from the current folder, which may hold anything.
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from hlwq_mlx.media.worker import main; main()"
)
# Each thread of numpy's would reserve memory.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def read(kind: str, file: BinaryIO, where: str, **options: Any) -> Generator[Array, None, None]:
    """Give the arrays that the worker makes of a medium of `kind` ("image", "sound", "video").

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
        assert process.stdout is not None
        with watched(process, limits) as reasons, process.stdout as pipe:
            is_done = yield from _arrays(pipe)
        if not is_done:
            raise RequestError(
                f"[{where}] needed media that are read within {limits.memory_bytes / 1e6:.0f} MB "
                f"and {limits.cpu_s} s, got {_ending(process.returncode, reasons, complaints)}. "
                "Check where it comes from, or send something smaller."
            )


@contextmanager
def _on_disk(file: BinaryIO) -> Iterator[IO[bytes]]:
    """Give what another process can read: the file itself, or a copy."""
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


def _arrays(pipe: IO[bytes]) -> Generator[Array, None, bool]:
    """Read the worker's messages; return whether the last one says that it is done."""
    while line := pipe.readline(LINE_BYTES):
        message = json.loads(line)
        match message:
            case {"array": [dtype, shape]}:
                content = bytearray(math.prod(shape) * np.dtype(dtype).itemsize)
                if pipe.readinto(content) < len(content):  # type: ignore[attr-defined]
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
