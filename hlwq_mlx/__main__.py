"""`python -m hlwq_mlx`: the commands there are."""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path


def commands() -> Iterator[str]:
    """Yield the first line of what each command says of itself; nothing is imported."""
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        described = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if described.startswith("`python -m "):
            yield described.partition("\n")[0]


def main() -> None:
    """Print the commands; leave with 2 when more was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m hlwq_mlx",
        usage="python -m hlwq_mlx.COMMAND ...",
        description="\n".join([*commands(), "Each says more with --help."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    parser.print_help()


if __name__ == "__main__":
    main()
