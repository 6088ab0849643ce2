"""`python -m hlwq_mlx.convert`: make a folder that MLX loads from an HLWQ checkpoint."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from . import cli
from .errors import RequestError
from .quant.packing import BIT_ORDERS
from .quant.tables import CENTROIDS

if TYPE_CHECKING:
    from .source.repository import Source

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
    parser.add_argument(
        "--discard-source",
        action="store_true",
        help="of a model on the hub, delete each downloaded file of weights once nothing needs it "
        "any more; a run that was stopped goes on where it was",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="begin with --discard-source even if the disk seems too small",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, convert, print the summary."""
    arguments = make_parser().parse_args(argv)
    from .disk import atomic

    atomic.require_new(arguments.output)
    for line in _discarding(arguments) if arguments.discard_source else _keeping(arguments):
        cli.note(line)
    cli.result(str(arguments.output))


def _opened(arguments: argparse.Namespace) -> "Source":
    """Find a source, downloading it if need be, and open it."""
    from .source.locate import find
    from .source.repository import Source

    folder, variant = find(arguments.model, arguments.variant)
    bit_order = None if arguments.bit_order == "auto" else arguments.bit_order
    return Source(folder, variant, bit_order, TABLES.get(arguments.centroids))


def _keeping(arguments: argparse.Namespace) -> Iterator[str]:
    """Convert, and leave the source as it is."""
    from .write import convert

    return convert.convert(_opened(arguments), arguments.output, arguments.leftovers).lines()


def _discarding(arguments: argparse.Namespace) -> Iterator[str]:
    """Convert a model on the hub file by file, deleting what is no longer needed.

    Raises: RequestError for a source that was not downloaded; DeviceError when the disk is too
    small.
    """
    from .memory.disk import disk_need
    from .source import hub
    from .source.locate import find_local
    from .write import staged

    if find_local(arguments.model, arguments.variant) is not None:
        raise RequestError(
            f"[--discard-source] needed a model on the hub, got {arguments.model}, a folder of "
            "your own, which is never deleted. Leave the option out."
        )
    if not staged.is_begun(arguments.output):
        found = hub.read_headers(arguments.model, arguments.variant)
        need = disk_need(found, arguments.leftovers, is_discarded=True)
        cli.note(need.line(hub.cache_folder(), arguments.output))
        if not arguments.force:
            need.require(hub.cache_folder(), arguments.output)
    request = {
        "model": arguments.model,
        "variant": arguments.variant,
        "choice": arguments.leftovers,
        "bit_order": arguments.bit_order,
        "centroids": arguments.centroids,
    }
    return staged.run(request, arguments.output, lambda: _opened(arguments), hub.discard, hub.take)


if __name__ == "__main__":
    sys.exit(cli.run(main))
