"""`python -m hlwq_mlx`: the commands there are."""

import ast
from collections.abc import Iterator
from pathlib import Path

from . import cli


def commands() -> Iterator[str]:
    """Yield the first line of what each command says of itself; nothing is imported."""
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        described = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if described.startswith("`python -m "):
            yield described.partition("\n")[0]


def main() -> None:
    """Print the commands."""
    for line in commands():
        cli.result(line)
    cli.result("Each says more with --help.")


if __name__ == "__main__":
    main()
