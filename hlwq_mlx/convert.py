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
    parser = argparse.ArgumentParser(prog=cli.program("convert"), description=__doc__)
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
        help="bit order of packed codes; auto finds it from the data",
    )
    parser.add_argument(
        "--centroids",
        choices=("auto", *TABLES),
        default="auto",
        help="table of centroids that the codes index; auto finds it from the data",
    )
    parser.add_argument(
        "--leftovers",
        choices=cli.LEFTOVERS,
        default=cli.LEFTOVERS[0],
        help="what to do with large matrices that the publisher left in 16 bits (gate_proj, "
        "embedding, per-layer matrices, vision): auto codes those that some width keeps so exact "
        "that they add at most 5 %% to the error of the variant's own codes; keep leaves all "
        "unchanged; small codes them as coarsely as the variant, and per-layer-embedding rows at "
        "8 bits, for Macs with 8 GB (default: auto)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, convert, print the summary."""
    arguments = make_parser().parse_args(argv)
    from .disk import atomic
    from .source.locate import find
    from .source.repository import Source
    from .write import convert

    atomic.require_new(arguments.output)
    folder, variant = find(arguments.model, arguments.variant)
    opened = Source(
        folder,
        variant,
        bit_order=None if arguments.bit_order == "auto" else arguments.bit_order,
        table=TABLES.get(arguments.centroids),
    )
    for line in convert.convert(opened, arguments.output, arguments.leftovers).lines():
        cli.note(line)
    cli.result(str(arguments.output))


if __name__ == "__main__":
    sys.exit(cli.run(main))
