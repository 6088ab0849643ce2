"""`python -m hlwq_mlx.convert`: make a folder that MLX loads from an HLWQ checkpoint."""

import argparse
import sys
from collections.abc import Sequence

from . import cli
from .quant.packing import BIT_ORDERS
from .quant.tables import CENTROIDS

TABLES = {name.split("_")[0]: name for name in CENTROIDS}


def make_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(prog="python -m hlwq_mlx.convert", description=__doc__)
    cli.add_conversion_args(
        parser,
        source="hub id (owner/name or owner/name/PQ5), repository folder or PQ folder",
        output="the folder to make; must not exist",
    )
    parser.add_argument("--variant", metavar="PQn", help="which variant to convert, as PQ5")
    parser.add_argument(
        "--bit-order",
        choices=("auto", *BIT_ORDERS),
        default="auto",
        help="order of packed codes; auto looks at the data",
    )
    parser.add_argument(
        "--centroids",
        choices=("auto", *TABLES),
        default="auto",
        help="table the codes index; auto looks at the data",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, convert, print the summary."""
    arguments = make_parser().parse_args(argv)
    from .store import atomic, convert, source

    atomic.require_new(arguments.output)
    folder, variant = source.find(arguments.model, arguments.variant)
    opened = source.Source(
        folder,
        variant,
        bit_order=None if arguments.bit_order == "auto" else arguments.bit_order,
        table=TABLES.get(arguments.centroids),
    )
    for line in convert.convert(opened, arguments.output).lines():
        cli.note(line)
    cli.result(str(arguments.output))


if __name__ == "__main__":
    sys.exit(cli.run(main))
