"""Printing: results on stdout, everything else on stderr. The only module that prints."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from ..errors import DeviceError

PATIENCE_S = 1.0


def result(text: str) -> None:
    """Print a line of the command's result on stdout.

    Raises: DeviceError when stdout cannot be written; BrokenPipeError when its reader has closed
    it.
    """
    with writing():
        print(text)


def print_piece(text: str) -> None:
    """Print a piece of an answer on stdout at once. Raises: as `result`."""
    with writing():
        print(text, end="", flush=True)


def flush() -> None:
    """Flush stdout. Raises: as `result`.

    If that fails, stdout is pointed at nothing, because Python would flush it again at its exit.
    """
    try:
        with writing():
            sys.stdout.flush()
    except (BrokenPipeError, DeviceError):
        _discard(sys.stdout)
        raise


def print_stderr(text: str) -> None:
    """Print a piece of text on stderr at once.

    If that fails, stderr is pointed at nothing: nobody can be told, and the result does not depend
    on it, but Python would flush it again at its exit.
    """
    try:
        print(text, end="", flush=True, file=sys.stderr)
    except OSError:
        _discard(sys.stderr)


def note(text: str) -> None:
    """Print a line on stderr."""
    print_stderr(f"{text}\n")


@contextmanager
def writing() -> Iterator[None]:
    """Raise a DeviceError when stdout cannot be written."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise DeviceError(
            f"[stdout] needed to write the result, got '{problem.strerror or problem}'. "
            "Send it to a file or terminal that has room."
        ) from problem


def _discard(stream: TextIO) -> None:
    """Point a stream at nothing."""
    with suppress(OSError):  # it may be no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def progress(what: str, unit: str) -> Callable[[int, int], None]:
    """Return a function that shows a step's progress on stderr if it takes over PATIENCE_S."""
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
