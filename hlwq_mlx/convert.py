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
    from .source.rules import Rule

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
    cli.add_discard_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, convert, print the summary."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if not arguments.discard_source:
        cli.refuse_unused(parser, arguments, ("force",), "without --discard-source")
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

    Raises: as `require_disk`.
    """
    from .source import hub
    from .write import staged

    require_disk(arguments, arguments.variant, arguments.leftovers)
    request = {
        "model": arguments.model,
        "variant": arguments.variant,
        "choice": arguments.leftovers,
        "bit_order": arguments.bit_order,
        "centroids": arguments.centroids,
    }
    return staged.run(request, arguments.output, lambda: _opened(arguments), hub.discard, hub.take)


def require_disk(
    arguments: argparse.Namespace, variant: str | None, choice: str, rule: "Rule | None" = None
) -> None:
    """Print what the disk will hold at most, and refuse to begin what it cannot.

    `choice` and `rule` are as in `disk_need`. A run that was begun needs no such look.
    Raises: RequestError for a source that was not downloaded; DeviceError when the disk is too
    small.
    """
    from .memory.disk import disk_need
    from .source import hub
    from .source.locate import find_local
    from .write import staged

    if find_local(arguments.model, variant) is not None:
        raise RequestError(
            f"[--discard-source] needed a model on the hub, got {arguments.model}, a folder of "
            "your own, which is never deleted. Leave the option out."
        )
    if staged.is_begun(arguments.output):
        return
    found = hub.read_headers(arguments.model, variant)
    need = disk_need(found, choice, is_discarded=True, rule=rule)
    cli.note(need.line(hub.cache_folder(), arguments.output))
    if not arguments.force:
        need.require(hub.cache_folder(), arguments.output)


if __name__ == "__main__":
    sys.exit(cli.run(main))
