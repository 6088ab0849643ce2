"""Read stdin and text files and write stdout, even if closed, cut off or in another encoding.

Bytes that are not text become U+FFFD. Characters that stdout cannot show become ?. Each stream
warns once.
"""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..dialog.readable import REPLACEMENT
from ..errors import SourceError
from .console import note


def prepare() -> None:
    """Make stdin and stdout accept any byte and character; replace closed streams by empty ones."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        stream = getattr(sys, name)
        if stream is None:  # the free descriptor is taken, so that no other file gets its number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream is not sys.stderr:
            stream.reconfigure(errors=_replacing(name))


def read_stdin() -> str:
    """Read stdin to its end.

    Raises: SourceError when it cannot be read.
    """
    try:
        return sys.stdin.read()
    except OSError as problem:
        raise SourceError(
            f"[stdin] needed text, got '{problem.strerror or problem}'. Give it with --prompt."
        ) from problem


def line_reader() -> Callable[[str], str]:
    """Return a function that reads a line of stdin, with history and a prompt on a terminal.

    It raises EOFError at the end, or when stdin cannot be read.
    """
    is_typed = sys.stdin.isatty()
    if is_typed:
        with contextlib.suppress(ImportError):  # not every Python is built with it
            import readline  # noqa: F401

    def read(prompt: str) -> str:
        try:
            return input(prompt if is_typed else "")
        except OSError as problem:
            note(f"error: [stdin] needed lines, got '{problem.strerror or problem}'.")
            raise EOFError from problem

    return read


def read_text(path: Path) -> str:
    """Read a text file in UTF-8; it raises OSError as `open` does."""
    with path.open(encoding="utf-8", errors=_replacing(path.name)) as file:
        return file.read()


def _replacing(where: str) -> str:
    """Register an error handler that warns once about one stream, and return its name."""
    name = f"hlwq_mlx:{where}"
    is_told = False

    def replace(problem: UnicodeError) -> tuple[str | bytes, int]:
        nonlocal is_told
        if isinstance(problem, UnicodeEncodeError):
            with contextlib.suppress(UnicodeEncodeError):  # bytes of a file's name go out as such
                return codecs.lookup_error("surrogateescape")(problem)
            stand_in = "?" * (problem.end - problem.start)
            advice = "They are shown as ?. PYTHONIOENCODING=utf-8 shows all."
            told = f"needed characters that {problem.encoding} has, got others. {advice}"
        elif isinstance(problem, UnicodeDecodeError):
            stand_in = REPLACEMENT
            advice = f"They are read as {REPLACEMENT}. Convert the text to {problem.encoding}."
            told = f"needed text in {problem.encoding}, got other bytes. {advice}"
        else:
            raise problem
        if not is_told:
            is_told = True
            note(f"warning: [{where}] {told}")
        return stand_in, problem.end

    codecs.register_error(name, replace)
    return name
