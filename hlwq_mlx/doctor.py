"""`python -m hlwq_mlx.doctor`: list what a model consists of and needs, and whether it fits here.

It loads no weights: of a repository on the hub it reads only the headers of one variant's files.
Exit code 0 means that the model fits. --verify compares a converted folder with the checksums that
were taken when it was written. --table needs no model: it prints what every published variant of
Gemma 4 E4B, or the one of --variant, needs on 8, 16 and 24 GB Macs.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from . import cli
from .errors import RequestError, SourceError
from .source import model_card, rules

if TYPE_CHECKING:
    from .memory.inventory import Inventory
    from .memory.machine import Machine
    from .memory.need import Settings

EXIT_UNFIT = 1
GBIT_S = 10


def make_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(prog=cli.program("doctor"), description=__doc__)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--model", metavar="MODEL", help=cli.MODEL_NAMES)
    subject.add_argument(
        "model",
        nargs="?",
        default=argparse.SUPPRESS,  # any other default would overwrite --model
        metavar="MODEL",
        help="the same, without --model",
    )
    subject.add_argument(
        "--table",
        action="store_true",
        help="print a table of every variant, or --variant's, on every Mac",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every file of a converted folder and list those that changed since its making",
    )
    cli.add_variant_arg(parser)
    parser.add_argument(
        "--context",
        type=cli.count,
        default=cli.CONTEXT,
        metavar="N",
        help=f"tokens of prompt and answer that there should be room for (default: {cli.CONTEXT})",
    )
    parser.add_argument(
        "--leftovers",
        choices=cli.LEFTOVERS,
        default=cli.LEFTOVERS[0],
        help="how a source will be converted (default: auto)",
    )
    cli.add_memory_args(parser)
    group = parser.add_argument_group("several machines (mlx.launch; see sharding/README.md)")
    group.add_argument(
        "--macs",
        nargs="+",
        default=[],
        metavar="CHIP:GB",
        help="plan the model for these Macs together, as M1:16 M1:16, rank 0 first",
    )
    group.add_argument(
        "--link",
        type=float,
        metavar="GBIT",
        help=f"Gbit/s between them (default: {GBIT_S})",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, look, print; leave with 1 when the model does not fit."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    asked = {"--table": arguments.table, "--verify": arguments.verify, "--macs": arguments.macs}
    done = [option for option, is_asked in asked.items() if is_asked]
    if len(done) > 1:
        parser.error(f"{done[1]}: not allowed with {done[0]}")
    if arguments.link is not None and not arguments.macs:
        parser.error("--link: not allowed without --macs")
    if arguments.verify:
        planning = ("variant", "context", "leftovers", *cli.MEMORY)
        cli.refuse_unused(parser, arguments, planning, "with --verify")
    settings = cli.settings_for(arguments, arguments.context)
    if arguments.table:
        variants = rules.VARIANTS if arguments.variant is None else (arguments.variant,)
        for line in table(variants, settings, arguments.leftovers):
            cli.result(line)
    elif arguments.verify:
        cli.result(verify(arguments.model))
    elif arguments.macs:
        found = (arguments.model, arguments.variant, settings, arguments.leftovers)
        gbit_s = GBIT_S if arguments.link is None else arguments.link
        if not plan_together(*found, arguments.macs, gbit_s):
            sys.exit(EXIT_UNFIT)
    elif not examine(arguments.model, arguments.variant, settings, arguments.leftovers):
        sys.exit(EXIT_UNFIT)


def verify(model: str) -> str:
    """Compare a converted folder with its checksums and return a line with the result.

    Raises: CheckpointError listing the files that differ; SourceError for another kind of folder.
    """
    from tqdm import tqdm

    from .disk.sizes import format_bytes
    from .folder import checksums
    from .folder.folder import DrafterFolder, is_ours
    from .source.layout import DRAFTER
    from .source.locate import local_path

    folder = local_path(model)
    if not is_ours(folder) and DrafterFolder.find(folder) is None:
        raise SourceError(
            f"[--verify] needed a folder that convert made, got {model}. Those that were made in "
            "passing lie in ~/.cache/hlwq_mlx, or in $HLWQ_CACHE."
        )
    folders = [folder]
    if DrafterFolder.find(folder / DRAFTER) is not None:
        folders.append(folder / DRAFTER)
    total = sum(map(checksums.total_bytes, folders))
    with tqdm(total=total, unit="B", unit_scale=True, desc="verify", delay=cli.PATIENCE_S) as bar:
        count = sum(checksums.verify(each, bar.update) for each in folders)
    return f"{count} files, {format_bytes(total)}: all as convert wrote them"


def examine(model: str, variant: str | None, settings: "Settings", choice: str) -> bool:
    """Print what a model consists of and whether it fits this machine; return whether it fits.

    A source is judged as `convert` would write it, with this `choice` for leftovers.
    """
    from pathlib import Path

    from .folder import loading, side_files
    from .folder.folder import Folder
    from .memory import inventory
    from .memory.machine import describe, this_machine
    from .memory.verdict import judge
    from .source.locate import find_local, local_path

    found = inventory.take(model, variant)
    for line in contents(found):
        cli.result(line)
    if found.is_drafter:
        cli.result("a drafter, and no model: name it with --draft-model, beside its model")
        return True
    folder = Folder.find(local_path(model))
    if folder is not None:
        loading.require_loadable(folder)
    elif find_local(model, variant) is None:
        for line in disk_lines(model, variant, choice):
            cli.result(line)
    for oddity in side_files.examine(model, variant):
        cli.result(f"odd: {oddity}")
    machine = this_machine(Path.cwd())
    for line in describe(machine):
        cli.result(line)
    most = found.args.text_config.max_position_embeddings
    if settings.context > most:
        cli.result(f"context: {most} tokens, where the model ends, and not {settings.context}")
        settings = replace(settings, context=most)
    verdict = judge(inventory.as_converted(found, choice), settings, machine)
    for line in verdict.lines():
        cli.result(line)
    return verdict.is_fit


def plan_together(
    model: str,
    variant: str | None,
    settings: "Settings",
    choice: str,
    machines: Sequence[str],
    gbit_s: float,
) -> bool:
    """Print how several machines could share a model; return whether it fits them.

    Raises: RequestError for fewer than two, or a drafter.
    """
    from .memory import inventory
    from .sharding import plan
    from .sharding.speed import link_of, mac_of

    macs, link = [mac_of(text) for text in machines], link_of(gbit_s)
    if len(macs) < 2:
        raise RequestError(
            f"[--macs] needed two Macs or more, got {macs[0].name}. Without --macs the machine "
            "that doctor runs on is judged, and --table tells of others."
        )
    taken = inventory.take(model, variant)
    if taken.is_drafter:
        raise RequestError(
            f"[--macs] needed a model, got {model}, which only drafts for one. Name its model."
        )
    found = inventory.as_converted(taken, choice)
    is_fit = False
    for split, make in plan.MAKERS.items():
        try:
            made = make(found, settings, macs, link)
        except RequestError as problem:
            cli.result(f"{split}: {problem}")
            continue
        for line in plan.describe(made, macs, link):
            cli.result(f"{split}: {line}")
        is_fit |= made.fits
    return is_fit


def disk_lines(model: str, variant: str | None, choice: str) -> Iterator[str]:
    """Yield what converting a model on the hub needs of the disk that this folder is on."""
    from pathlib import Path

    from .memory.disk import disk_need
    from .source import hub

    found = hub.read_headers(model, variant)
    for way, is_discarded in (("convert", False), ("convert --discard-source", True)):
        need = disk_need(found, choice, is_discarded=is_discarded)
        yield f"{way}: {need.line(hub.cache_folder(), Path.cwd())}"


def contents(found: "Inventory") -> Iterator[str]:
    """Yield lines about a model's tensors, and about what is odd in it."""
    from .disk.sizes import format_bytes
    from .memory import inventory

    sums = found.kinds()
    for (kind, bits), (count, weights, size) in sorted(sums.items(), key=str):
        width = "not coded" if bits is None else f"{bits} bits"
        stored = format_bytes(size)
        yield f"{kind:<10}{width:>10}{count:>6} tensors{weights:>16,} weights{stored:>12}"
    state = "converted" if found.is_converted else "as published"
    yield f"{len(found.entries)} tensors, {format_bytes(found.stored_bytes)} on disk, {state}"
    if found.drafter:
        stored = format_bytes(sum(entry.stored_bytes for entry in found.drafter))
        yield f"beside it a drafter: {len(found.drafter)} tensors, {stored} on disk"
    yield from (f"odd: {doubt}" for doubt in inventory.doubts(found))


def table(variants: Sequence[str], settings: "Settings", choice: str) -> Iterator[str]:
    """Yield a table, in Markdown, of what published variants of E4B need and where they fit.

    Raises: RequestError for a variant that was never published.
    """
    from .disk.sizes import format_bytes
    from .memory import inventory
    from .memory.machine import RAM_GB, RELEASES, mac
    from .memory.need import need

    every = [inventory.of_variant(variant) for variant in variants]
    macs = [mac(ram, release) for ram in RAM_GB for release in RELEASES]
    names = [
        "variant",
        "on disk, by the model card",
        "on disk, as published",
        "on disk, converted",
        "memory, text alone",
        "memory, pictures and sound too",
        *(f"longest context, Mac of {m.name}" for m in macs),
    ]
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"
    for published in every:
        variant = str(published.variant)
        found = inventory.as_converted(published, choice)
        both = [replace(settings, has_towers=is_there) for is_there in (False, True)]
        sums = [format_bytes(need(found, each, mac(16, 15)).total) for each in both]
        cells = [cell(found, both, machine) for machine in macs]
        download_gb = model_card.FIGURES[variant].download_gb
        card = f"{download_gb} GB" if download_gb else "–"
        sizes = [f"{each.stored_bytes / 1e9:.1f} GB" for each in (published, found)]
        yield f"| {' | '.join([variant, card, *sizes, *sums, *cells])} |"
    most = found.args.text_config.max_position_embeddings
    yield ""
    yield (
        f"Memory: what a 16 GB Mac needs for {settings.context} tokens of prompt and answer. "
        "Longest context: in tokens, of which k is 1024, with room for pictures and sound, or for "
        f"text alone where it says so; the model itself ends at {most // 1024}k. "
        f"{card_verdict()}"
    )


def card_verdict() -> str:
    """Return a sentence with what the model card claims for a 16 GB M1."""
    verdicts = {name: each.runs_on_16gb_m1 for name, each in model_card.FIGURES.items()}
    told = {name for name, runs in verdicts.items() if runs is not None}
    running = "every variant" if all(verdicts[name] for name in told) else "some variants"
    return f"The model card says of {running} that a 16 GB M1 runs it."


def cell(found: "Inventory", both: Sequence["Settings"], machine: "Machine") -> str:
    """Return how a variant fits a Mac: its longest context, or "does not fit"."""
    from .memory.verdict import longest_context

    text, towers = (longest_context(found, each, machine) for each in both)
    if towers >= both[1].context:
        return f"{towers // 1024}k"
    return f"{text // 1024}k, text alone" if text >= 1024 else "does not fit"


if __name__ == "__main__":
    sys.exit(cli.run(main))
