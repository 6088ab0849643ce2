"""`python -m hlwq_mlx.quantize`: code an ordinary 16-bit Gemma 4.

With --fit it chooses the bits: those with which the model fits a Mac of so much memory, pictures
and sound included, at the least error. Without --output it only says which.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import cli
from .quant.tables import CENTROIDS

if TYPE_CHECKING:
    from .memory.inventory import Inventory
    from .memory.mixture import Mixture
    from .source.repository import Source
    from .source.rules import Rule
    from .write.loss import Losses
    from .write.quantize import Coding, Encoder, Report

MLX, PUBLISHED = "mlx", "published"
# A folder to run holds its tables; other readers of a published variant may know the publisher's.
TABLES = {MLX: "converged", PUBLISHED: "clip4_100"}


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
        metavar="N",
        help=f"with --fit, tokens of a conversation to leave room for (default: {cli.CONTEXT})",
    )
    parser.add_argument(
        "--layout",
        choices=tuple(TABLES),
        default=MLX,
        help="mlx: a folder to run; published: PQn/codes.safetensors and PQn/bf16.safetensors",
    )
    parser.add_argument(
        "--table",
        choices=tuple(CENTROIDS),
        help="converged has the least error, most of all from 5 bits on; clip4_100 is the "
        f"publisher's (default: {TABLES[MLX]}, with --layout published {TABLES[PUBLISHED]})",
    )
    parser.add_argument(
        "--refit",
        action="store_true",
        help="search the norm that fits each block's codes best: slower, less error, same format",
    )
    cli.add_discard_args(parser)
    cli.add_memory_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, quantize, print the report."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.output is None and arguments.fit is None:
        parser.error("the following arguments are required: --output")
    if arguments.discard_source and arguments.layout == PUBLISHED:
        parser.error(f"--discard-source makes a folder to run, not --layout {PUBLISHED}")
    if arguments.fit is None:
        cli.refuse_unused(parser, arguments, ("context", *cli.MEMORY), "without --fit")
    arguments.context = arguments.context or cli.CONTEXT
    arguments.table = arguments.table or TABLES[arguments.layout]
    if arguments.output is None:
        needing = ("discard_source", "force", "layout")
        cli.refuse_unused(parser, arguments, needing, "without --output")
        for line in _look(arguments).lines():
            cli.result(line)
        return
    if not arguments.discard_source:
        cli.refuse_unused(parser, arguments, ("force",), "without --discard-source")
    asked = _asked(arguments)
    output = arguments.output
    if arguments.layout == PUBLISHED:
        output /= asked.name
    from .disk import atomic

    atomic.require_new(output)
    made = _discarding if arguments.discard_source else _keeping
    for line in made(arguments, asked, output):
        cli.note(line)
    cli.result(str(arguments.output))


class Asked(NamedTuple):
    """What was asked for: a name, a rule, unless --fit is to find it, and the classes it names."""

    name: str
    rule: "Rule | None"
    widths: dict[str, int]


def _asked(arguments: argparse.Namespace) -> Asked:
    from .source import rules

    if arguments.variant:
        return Asked(*rules.variant_rule(arguments.variant), {})
    if arguments.fit is not None:
        return Asked(f"PQ-{arguments.fit}GB", None, {})
    widths = rules.parse_bits(arguments.bits)
    name = "-".join(["PQ", *(f"{kind}{bits}" for kind, bits in widths.items())])
    return Asked(name, rules.class_rule(widths), widths)


def _keeping(arguments: argparse.Namespace, asked: Asked, output: Path) -> Iterator[str]:
    """Quantize, and leave the source as it is."""
    from .write import convert

    opened = _opened(arguments)
    coding = _coding(arguments, asked, opened)
    if arguments.layout == PUBLISHED:
        return add_variant(opened, coding.rule, output, coding.encoder).lines()
    return convert.convert(opened, output, _choice(arguments), coding).lines()


def _discarding(arguments: argparse.Namespace, asked: Asked, output: Path) -> Iterator[str]:
    """Quantize a model on the hub file by file, deleting what is no longer needed.

    Raises: as `convert.require_disk`.
    """
    from .convert import require_disk
    from .source import hub
    from .source.layout import PLAIN
    from .source.rules import unit_rule
    from .write import staged

    rule = asked.rule
    if rule is None and not staged.is_begun(output):
        rule = unit_rule(_look(arguments).widths)
    require_disk(arguments, PLAIN, _choice(arguments), rule)
    left_out = ("output", "force")
    stated = {key: value for key, value in vars(arguments).items() if key not in left_out}
    request = stated | {"choice": _choice(arguments)}
    return staged.run(
        request,
        output,
        lambda: _opened(arguments),
        hub.discard,
        hub.take,
        lambda source: _coding(arguments, asked, source),
    )


def _choice(arguments: argparse.Namespace) -> str:
    """Return what becomes of what is not asked for: --fit counts on towers of 8 bits."""
    from .write import leftovers

    return leftovers.KEEP if arguments.fit is None else leftovers.AUTO


def _opened(arguments: argparse.Namespace) -> "Source":
    """Find a source, downloading it if need be, and open it."""
    from .source.layout import PLAIN
    from .source.locate import find
    from .source.repository import Source

    return Source(find(arguments.model, PLAIN)[0])


def _encoder(arguments: argparse.Namespace) -> "Encoder":
    from .quant.codec import BEST_NORM, OWN_NORM
    from .write.quantize import Encoder

    return Encoder(arguments.table, BEST_NORM if arguments.refit else OWN_NORM)


def _coding(arguments: argparse.Namespace, asked: Asked, opened: "Source") -> "Coding":
    """Return what of a source is coded; with --fit its weights are asked.

    Raises: RequestError for classes that it lacks, or a coded source; DeviceError where it fits at
    no width.
    """
    from .source import rules
    from .write.quantize import Coding

    rule = asked.rule
    if rule is None:
        mixture = _measured(arguments, opened)
        for line in mixture.lines():
            cli.note(line)
        rule = rules.unit_rule(mixture.widths)
    shapes = {name: each.shape for name, each in opened.plain.items()}
    rules.require_classes(asked.widths, shapes)
    return Coding(asked.name, rule, _encoder(arguments))


def _look(arguments: argparse.Namespace) -> "Mixture":
    """Choose the bits with which a model fits, downloading nothing but headers.

    Raises: as `_coding`.
    """
    from .memory import inventory
    from .source.layout import PLAIN
    from .source.locate import find_local
    from .source.repository import Source
    from .write import loss

    local = find_local(arguments.model, PLAIN)
    if local is not None:
        return _measured(arguments, Source(local[0]))
    cli.note("the model is not here: what coding loses is computed from tables, not measured")
    found = inventory.take(arguments.model, PLAIN)
    shapes = {each.name: each.shape for each in found.live}
    return _fitted(arguments, found, loss.by_table(shapes, arguments.table))


def _measured(arguments: argparse.Namespace, opened: "Source") -> "Mixture":
    """Choose the bits with which a model fits by what coding samples of its weights loses."""
    from .memory import inventory
    from .source.layout import PLAIN
    from .write import loss

    found = inventory.take(str(opened.folder), PLAIN)
    found = inventory.with_means(found, loss.with_strong_means(opened.plain))
    return _fitted(arguments, found, loss.measure(opened.plain, _encoder(arguments)))


def _fitted(arguments: argparse.Namespace, found: "Inventory", losses: "Losses") -> "Mixture":
    """Choose the bits with which a model fits the Mac that --fit names."""
    from .memory.machine import OLDEST, mac
    from .memory.mixture import propose
    from .write.quantize import require_uncoded

    coded = sum(entry.bits is not None for entry in found.entries)
    require_uncoded(arguments.model, coded, len(found.entries) - coded)
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


if __name__ == "__main__":
    sys.exit(cli.run(main))
