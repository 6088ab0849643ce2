"""`hlwq COMMAND ...`: run one command of this package; without COMMAND, list them.

`hlwq COMMAND` and `python -m hlwq_mlx COMMAND` run what `python -m hlwq_mlx.COMMAND` runs.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from . import cli
from .errors import RequestError

OPENING = '"""`python -m hlwq_mlx.'


def commands() -> dict[str, str]:
    """Return each command's name and description, read from its file's first line."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        with path.open(encoding="utf-8") as file:
            first = file.readline()
        if first.startswith(OPENING):
            found[path.stem] = first.partition("`: ")[2].rstrip('"\n')
    return found


def show_commands(argv: Sequence[str] | None = None) -> None:
    """List the commands, or refuse an unknown one.

    Raises: RequestError.
    """
    known = commands()
    if argv:
        raise RequestError(
            f"[command] needed one of {', '.join(known)}, got {argv[0]!r}. "
            f"`{cli.program('--help')}` says what each does."
        )
    width = max(map(len, known))
    cli.result(f"usage: {cli.program('COMMAND')} ...\n")
    for name, does in known.items():
        cli.result(f"  {name:{width}}  {does}")
    cli.result("\nEach says more with --help.")


def main() -> None:
    """Run the command that the arguments name."""
    name, rest = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name in ("-h", "--help"):
        sys.exit(cli.run(show_commands))
    if name not in commands():
        sys.exit(cli.run(show_commands, [name]))
    sys.argv[1:] = rest
    runpy.run_module(f"{__package__}.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
