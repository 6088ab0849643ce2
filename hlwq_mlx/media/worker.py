"""The child process of `child`: it decodes one medium from stdin and writes arrays to stdout.

Each message is a line of JSON; an array's bytes follow its line.
"""

import json
import logging
import resource
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from ..errors import HLWQError
from . import child

# The system's limit counts allocated memory and lies higher than the watched one, which counts
# resident memory: so the watch usually acts first, and it can say why the process ended.
SPARE_BYTES = 20_000_000

Reader = Callable[..., Iterable[child.Array]]


def main() -> None:
    """Decode one medium; the arguments are the package's folder, limits, kind, name and options."""
    memory_bytes, cpu_seconds, kind, where, options = sys.argv[2:]
    warnings.simplefilter("ignore")
    reader = READERS[kind]()
    _set_limits(int(memory_bytes), int(cpu_seconds))
    messages = sys.stdout.buffer
    logging.getLogger("hlwq_mlx").addHandler(_Sender(messages))
    with open(0, "rb") as file:
        file.seek(0)
        try:
            for array in reader(file, where, **json.loads(options)):
                _send(messages, {"array": [array.dtype.str, array.shape]})
                messages.write(np.ascontiguousarray(array).data)
        except HLWQError as error:
            _send(messages, {"error": [type(error).__name__, str(error)]})
        else:
            _send(messages, {"done": True})
        messages.flush()


class _Sender(logging.Handler):
    """Sends warnings to the parent process, which logs them."""

    def __init__(self, messages: BinaryIO) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        _send(self._messages, {"warning": record.getMessage()})


def _send(messages: BinaryIO, message: dict[str, Any]) -> None:
    messages.write(json.dumps(message).encode() + b"\n")


def _set_limits(memory_bytes: int, cpu_seconds: int) -> None:
    """Limit memory and time; call it after all imports, which need memory themselves."""
    for limit, most in (
        (resource.RLIMIT_DATA, memory_bytes + SPARE_BYTES),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (soft, hard))


def _image() -> Reader:
    from . import pixels

    def read(file: BinaryIO, where: str) -> Iterator[child.Array]:
        pixels.limit_opening(file)
        picture = pixels.decode(file, where)
        yield np.array([picture.h, picture.w, picture.orientation])
        yield from picture.strips

    return read


def _sound() -> Reader:
    from .recordings import decode

    return decode


def _video() -> Reader:
    from .processor import VideoSettings
    from .video import decode

    def read(
        file: BinaryIO, where: str, settings: dict[str, Any], max_soft_tokens: int
    ) -> Iterator[child.Array]:
        yield from decode(file, where, VideoSettings(**settings), max_soft_tokens)

    return read


READERS: dict[str, Callable[[], Reader]] = {"image": _image, "sound": _sound, "video": _video}
