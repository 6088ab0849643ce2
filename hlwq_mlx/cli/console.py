"""Printing: results on stdout, everything else on stderr. The only module that prints."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import DeviceError

PATIENCE_S = 1.0


def result(text: str) -> None:
    """Print a line of what was asked for, on stdout.

    Raises: DeviceError when stdout cannot be written; BrokenPipeError when its reader left.
    """
    with writing():
        print(text)


def say(text: str) -> None:
    """Print a piece of an answer at once, on stdout; it raises what `result` does."""
    with writing():
        print(text, end="", flush=True)


def flush() -> None:
    """Write what stdout still holds; it raises what `result` does.

    After that nothing is left to be written, or Python would try once more when it ends.
    """
    try:
        with writing():
            sys.stdout.flush()
    except (BrokenPipeError, DeviceError):
        _discard()
        raise


def murmur(text: str) -> None:
    """Print a piece of what is not the answer at once, on stderr."""
    with suppress(OSError):  # nobody can be told, and the result does not depend on it
        print(text, end="", flush=True, file=sys.stderr)


def note(text: str) -> None:
    """Print a line on stderr."""
    murmur(f"{text}\n")


@contextmanager
def writing() -> Iterator[None]:
    """Turn what stdout refuses into a DeviceError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise DeviceError(
            f"[stdout] needed to write the result, got '{problem.strerror or problem}'. "
            "Send it to a file or terminal that has room."
        ) from problem


def _discard() -> None:
    """Point stdout at nothing."""
    with suppress(OSError):  # stdout may be no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def progress(what: str, unit: str) -> Callable[[int, int], None]:
    """Return what shows on stderr how far a step is, when it takes longer than a moment."""
    from tqdm import tqdm

    bars: list[Any] = []

    def show(done: int, total: int) -> None:
        if not bars:
            look = {"desc": what, "unit": f" {unit}", "delay": PATIENCE_S, "leave": False}
            bars.append(tqdm(total=total, **look))
        bar = bars[-1]
        bar.update(done - bar.n)
        if done == total:
            bars.pop().close()

    return show
