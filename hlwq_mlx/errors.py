"""The error tree: every failure that a user can cause or meet, grouped by its remedy.

Messages read `[where] needed X, got Y. What to do.` A command prints an HLWQError as one line and
exits with 2. Any other exception is a defect of ours; cli.boundary makes one line of it too.
"""

from collections.abc import Iterable


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


def raise_all(problems: Iterable[str], shown: int = 20) -> None:
    """Raise one CheckpointError that lists every problem, if there is any."""
    listed = list(problems)
    if listed:
        more = [f"... and {len(listed) - shown} more"] if len(listed) > shown else []
        raise CheckpointError("\n".join(listed[:shown] + more))
