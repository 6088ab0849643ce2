"""`python -m hlwq_mlx.quantize`: code an ordinary 16-bit Gemma 4."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import cli
from .quant.tables import CENTROIDS

if TYPE_CHECKING:
    from .source.repository import Source
    from .source.rules import Rule
    from .write.quantize import Encoder, Report

LAYOUTS = ("mlx", "published")


def make_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(prog=cli.program("quantize"), description=__doc__)
    cli.add_conversion_args(
        parser,
        source="hub id or folder of a 16-bit Gemma 4 in the transformers layout",
        output="the folder to make; with --layout published, the repository to add a variant to",
    )
    width = parser.add_mutually_exclusive_group(required=True)
    width.add_argument(
        "--variant",
        metavar="PQn",
        help="code what the publisher codes in a variant, as PQ5 or PQ2-Mixed",
    )
    width.add_argument(
        "--bits", metavar="CLASS=N,...", help="code these classes of tensors, as mlp=2,attention=4"
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="mlx",
        help="mlx: a folder to run; published: PQn/codes.safetensors and PQn/bf16.safetensors",
    )
    parser.add_argument(
        "--table",
        choices=tuple(CENTROIDS),
        default="clip4_100",
        help="clip4_100 is the publisher's; converged has less error from 5 bits on",
    )
    parser.add_argument(
        "--refit",
        action="store_true",
        help="search the norm of each block that fits its codes best: less error, same format",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, quantize, print the report."""
    arguments = make_parser().parse_args(argv)
    from .disk import atomic
    from .quant.codec import BEST_NORM, OWN_NORM
    from .source import rules
    from .source.layout import PLAIN
    from .source.locate import find
    from .source.repository import Source
    from .write.quantize import Encoder

    widths: dict[str, int] = {}
    if arguments.variant:
        name, rule = rules.variant_rule(arguments.variant)
    else:
        widths = rules.parse_bits(arguments.bits)
        name = "-".join(["PQ", *(f"{kind}{bits}" for kind, bits in widths.items())])
        rule = rules.class_rule(widths)
    is_published = arguments.layout == "published"
    output = arguments.output / name if is_published else arguments.output
    atomic.require_new(output)
    folder, _ = find(arguments.model, PLAIN)
    encoder = Encoder(arguments.table, BEST_NORM if arguments.refit else OWN_NORM)
    opened = Source(folder)
    rules.require_classes(widths, {name: each.shape for name, each in opened.plain.items()})
    if is_published:
        report = add_variant(opened, rule, output, encoder)
    else:
        report = make_folder(opened, rule, name, output, encoder)
    for line in report.lines():
        cli.note(line)
    cli.result(str(arguments.output))


def add_variant(opened: "Source", rule: "Rule", output: Path, encoder: "Encoder") -> "Report":
    """Write a variant's folder, and the repository's root files where they are missing."""
    from .folder.side_files import add_files, try_out
    from .write.check import fit
    from .write.quantize import write_published

    root_files = opened.root_files  # first, so that bad files are found before the work
    fit(opened)
    try_out(opened)
    report = write_published(opened, rule, output, encoder)
    add_files(root_files, output.parent)
    return report


def make_folder(
    opened: "Source", rule: "Rule", name: str, output: Path, encoder: "Encoder"
) -> "Report":
    """Write a folder to run; the published layout it is made of is temporary.

    A drafter beside the source goes along as it is: it can be coded by a command of its own.
    """
    from .disk import atomic
    from .source.layout import DRAFTER
    from .source.repository import Source
    from .write import convert

    with atomic.scratch(output) as folder:
        variant = folder / "published" / name
        report = add_variant(opened, rule, variant, encoder)
        convert.convert(Source(variant, name), folder / "converted")
        if opened.drafter is not None:
            convert.convert(opened.drafter, folder / "converted" / DRAFTER)
        atomic.place(folder / "converted", output)
    return report


if __name__ == "__main__":
    sys.exit(cli.run(main))
