"""Run a command: it ends with a result, or with one line on stderr.

The command's name for usage texts, which depends on how it was started, is found here too.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from ..disk import failures
from ..errors import DeviceError, HLWQError, RequestError, SourceError
from . import console, streams
from .signals import EXIT_SIGNAL, Ended, ending_on_signals

EXIT_ERROR = 2
EXIT_INTERRUPTED = EXIT_SIGNAL + signal.SIGINT
TRACEBACK_VARIABLE = "HLWQ_TRACEBACK"


def run(command: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: an exception becomes one line and 2.

    SIGINT, SIGTERM and SIGHUP become 128 plus their number. A closed pipe at stdout is a success,
    because its reader has seen enough.
    """
    streams.prepare()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("hlwq_mlx").setLevel(logging.INFO)
    try:
        try:
            with ending_on_signals():
                command(argv)
        finally:
            console.flush()  # here, because a failing stdout can still be reported
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        console.note("")
        return EXIT_INTERRUPTED
    except Ended as ended:
        return EXIT_SIGNAL + ended.number
    except Exception as problem:  # noqa: BLE001 - no foreign exception leaves a command
        print_error(problem)
        return EXIT_ERROR
    return 0


def leave_current_folder() -> None:
    """Take the current folder off the path of imports, where `python -m` puts it first.

    It may be a model's, and a `tokenizers.py` in it would be imported in the library's place. Our
    own modules are found through their package. The `hlwq` command and `python -P -m` never put
    it there.
    """
    started = getattr(sys.modules["__main__"], "__spec__", None)
    is_module = started is not None and started.name.partition(".")[0] == "hlwq_mlx"
    if is_module and not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
        del sys.path[0]


def print_error(problem: Exception) -> None:
    """Print what went wrong as one line, after its traceback if $HLWQ_TRACEBACK asks for that."""
    if os.environ.get(TRACEBACK_VARIABLE):
        console.print_stderr("".join(traceback.format_exception(problem)))
    console.note(f"error: {as_error(problem)}")


def as_error(problem: Exception) -> HLWQError:
    """Return an exception as an HLWQError; an unforeseen one is called a defect."""
    if isinstance(problem, HLWQError):
        return problem
    text = " ".join(str(problem).split())
    if isinstance(problem, MemoryError) or "malloc" in text:  # MLX raises a RuntimeError
        return DeviceError(
            f"[memory] needed more memory than is free, got {text or 'none'}. End other "
            "programs, shorten the prompt or choose a variant of fewer bits."
        )
    if isinstance(problem, RecursionError):
        return RequestError(
            f"[input] needed less nested input, got {text}. Flatten what is nested."
        )
    if isinstance(problem, OSError):
        return SourceError(
            f"[{problem.filename or 'files'}] needed to read or write one, got "
            f"{failures.cause(problem)}. {failures.advice(problem)}"
        )
    last = traceback.extract_tb(problem.__traceback__)[-1:]
    place = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in last)
    return HLWQError(
        f"[hlwq_mlx] needed no defect, got {type(problem).__name__}{place}: {text}. Report this "
        f"line, please; {TRACEBACK_VARIABLE}=1 shows more."
    )


def program(command: str) -> str:
    """Return how a command was called, for its usage line."""
    started = Path(sys.argv[0])
    if started.stem == "hlwq":
        return f"hlwq {command}"
    is_package = started.parts[-2:] == ("hlwq_mlx", "__main__.py")
    return f"python -m hlwq_mlx {command}" if is_package else f"python -m hlwq_mlx.{command}"
