"""The error tree: every failure that a user can cause or meet, grouped by its remedy.

Messages read `[where] needed X, got Y. What to do.` A command prints an HLWQError as one line and
exits with 2. Any other exception is a defect of ours; cli.boundary makes one line of it too.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

_SHOWN = 3  # problems of many
# What an error is about, without a prefix that says no more than the file's path.
_PLACE = re.compile(r"\[(?:config(?:\.json)?\b\.?)?(.*?)\]", re.DOTALL)


class HLWQError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(HLWQError, ValueError):
    """A model configuration lacks a key, or asks for something that is not implemented."""


class SourceError(HLWQError):
    """A source repository, variant or file cannot be found or reached."""


class CheckpointError(HLWQError, ValueError):
    """Tensors on disk are missing, malformed, contradictory or of the wrong shape."""


class ShapeError(HLWQError, ValueError):
    """An array handed to an operation does not fit its contract."""


class RequestError(HLWQError, ValueError):
    """A prompt, message or option cannot be served as asked."""


class ContextError(RequestError):
    """A prompt is longer than the room there is for it and its answer."""

    def __init__(self, needed: int, room: int) -> None:
        super().__init__(
            f"[prompt] needed fewer than {room} tokens, for which there is room, got {needed}. "
            "Shorten the conversation, or begin a new one."
        )
        self.needed = needed
        self.room = room


class UnsupportedError(RequestError):
    """A server cannot do what was asked for, whatever the request says."""


class BusyError(HLWQError):
    """A server has as much to do as it takes; `retry_after_s` is when to ask again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeviceError(HLWQError, RuntimeError):
    """This machine cannot do what was asked: memory, disk or GPU."""


class GroupError(HLWQError, RuntimeError):
    """A machine of a group cannot be reached, was lost, or does not fit the others."""


def raise_all(problems: Iterable[str]) -> None:
    """Raise one CheckpointError that names the first problems and the number of others, if any."""
    found = iter(problems)
    shown = list(islice(found, _SHOWN))
    if shown:
        others = sum(1 for _ in found)
        more = [f"And {others} more."] if others else []
        raise CheckpointError(" ".join(shown + more))


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Put the config file before the key or the tensor that an error of the block is about."""
    try:
        yield
    except (ConfigError, CheckpointError, SourceError) as problem:
        message = str(problem)
        place = _PLACE.match(message)
        if place is None or str(path) in place[1]:
            raise
        where = f"{path}: {place[1]}" if place[1] else str(path)
        raise type(problem)(f"[{where}]{message[place.end() :]}") from problem
