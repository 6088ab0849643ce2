"""`python -m hlwq_mlx.quantize`: code an ordinary 16-bit Gemma 4.

With --fit it chooses the bits: those with which the model fits a Mac of so much memory, pictures
and sound included, at the least error. Without --output it only says which.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import cli
from .quant.tables import CENTROIDS

if TYPE_CHECKING:
    from .memory.mixture import Mixture
    from .source.repository import Source
    from .source.rules import Rule
    from .write.quantize import Encoder, Report

LAYOUTS = ("mlx", "published")
BEST_REFITS = 4


def make_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(prog=cli.program("quantize"), description=__doc__)
    cli.add_conversion_args(
        parser,
        source="hub id or folder of a 16-bit Gemma 4 in the transformers layout",
        output="the folder to make; with --layout published, the repository to add a variant to",
        is_output_needed=False,
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
    width.add_argument(
        "--fit",
        type=cli.gigabytes,
        metavar="16GB",
        help="choose the bits of each class for a Mac of so much memory (macOS 15's share of it)",
    )
    parser.add_argument(
        "--context",
        type=cli.count,
        default=cli.CONTEXT,
        metavar="N",
        help=f"with --fit, tokens of a conversation to leave room for (default: {cli.CONTEXT})",
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
        help="fit block norms to the codes by least squares: less error, same format",
    )
    cli.add_memory_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, quantize, print the report."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.output is not None:
        _write(arguments)
    elif arguments.fit is not None:
        for line in _proposal(arguments).lines():
            cli.result(line)
    else:
        parser.error("the following arguments are required: --output")


def _write(arguments: argparse.Namespace) -> None:
    """Quantize, and print the report."""
    from .disk import atomic
    from .source import rules
    from .source.layout import PLAIN
    from .source.locate import find
    from .source.repository import Source
    from .write import leftovers
    from .write.quantize import Encoder

    is_published = arguments.layout == "published"
    if not is_published:
        atomic.require_new(arguments.output)
    name, rule, widths = _asked(arguments)
    output = arguments.output / name if is_published else arguments.output
    atomic.require_new(output)
    folder, _ = find(arguments.model, PLAIN)
    encoder = Encoder(arguments.table, BEST_REFITS if arguments.refit else 0)
    opened = Source(folder)
    rules.require_classes(widths, {name: each.shape for name, each in opened.plain.items()})
    if is_published:
        report = add_variant(opened, rule, output, encoder)
    else:
        choice = leftovers.KEEP if arguments.fit is None else leftovers.AUTO
        report = make_folder(opened, rule, name, output, encoder, choice)
    for line in report.lines():
        cli.note(line)
    cli.result(str(arguments.output))


def _asked(arguments: argparse.Namespace) -> tuple[str, "Rule", dict[str, int]]:
    """Return the name and the rule of what was asked for, and the classes that it names."""
    from .source import rules

    if arguments.variant:
        return *rules.variant_rule(arguments.variant), {}
    if arguments.bits:
        widths = rules.parse_bits(arguments.bits)
        name = "-".join(["PQ", *(f"{kind}{bits}" for kind, bits in widths.items())])
        return name, rules.class_rule(widths), widths
    mixture = _proposal(arguments)
    for line in mixture.lines():
        cli.note(line)
    return f"PQ-{arguments.fit}GB", rules.unit_rule(mixture.widths), {}


def _proposal(arguments: argparse.Namespace) -> "Mixture":
    """Choose the bits with which a model fits; what is not to be written is not downloaded.

    Raises: RequestError for a coded source; DeviceError where it fits at no width.
    """
    from dataclasses import replace

    from .memory import inventory
    from .memory.machine import OLDEST, mac
    from .memory.mixture import propose
    from .source.layout import PLAIN
    from .source.locate import find, find_local
    from .source.repository import Source
    from .write import loss
    from .write.quantize import Encoder, require_uncoded

    encoder = Encoder(arguments.table, BEST_REFITS if arguments.refit else 0)
    is_asked = arguments.output is None
    local = (find_local if is_asked else find)(arguments.model, PLAIN)
    found = inventory.take(arguments.model if local is None else str(local[0]), PLAIN)
    coded = sum(entry.bits is not None for entry in found.entries)
    require_uncoded(arguments.model, coded, len(found.entries) - coded)
    if local is None:
        cli.note("the model is not here: what coding loses is computed from tables, not measured")
        losses = loss.by_table({each.name: each.shape for each in found.live}, encoder.table)
    else:
        losses = loss.measure(Source(local[0]).plain, encoder)
    asked = cli.settings_for(arguments, arguments.context)
    context = min(asked.context, found.args.text_config.max_position_embeddings)
    settings = replace(asked, context=context, has_towers=True)
    return propose(found, losses, settings, mac(arguments.fit, OLDEST))


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
    opened: "Source", rule: "Rule", name: str, output: Path, encoder: "Encoder", choice: str
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
        convert.convert(Source(variant, name), folder / "converted", choice)
        if opened.drafter is not None:
            convert.convert(opened.drafter, folder / "converted" / DRAFTER)
        atomic.place(folder / "converted", output)
    return report


if __name__ == "__main__":
    sys.exit(cli.run(main))
