"""Print what the larger Gemma 4 need on which Mac: one width, mixtures, and what --fit chooses.

    python scripts/benchmarks/fit_table.py [--model 26B-A4B] [--context 8192]

Computed from shapes: no weights are read, and what a width loses is what its table loses on normal
weights (write/loss.py says how losses of tensors add). `padding` is the share of a line's codes
that fill rows up to blocks of 128. Tokens a second are a model, not measured: the bytes over what
an M1 sustains, and the launches (launches.py), without context.
"""

import argparse
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from hlwq_mlx import cli
from hlwq_mlx.disk.tensorfile import TensorSpec
from hlwq_mlx.doctor import cell
from hlwq_mlx.errors import DeviceError
from hlwq_mlx.folder import published
from hlwq_mlx.memory.disk import disk_need
from hlwq_mlx.memory.inventory import Entry, Inventory, as_quantized, stored_bytes
from hlwq_mlx.memory.machine import OLDEST, Machine, mac
from hlwq_mlx.memory.mixture import (
    Choices,
    Mixture,
    choices_of,
    loss_of,
    propose,
)
from hlwq_mlx.memory.need import Settings, need
from hlwq_mlx.quant.packing import BLOCK
from hlwq_mlx.quantize import MLX, TABLES
from hlwq_mlx.source.hub import Headers, Weights
from hlwq_mlx.source.rules import Unit, unit_rule
from hlwq_mlx.write import leftovers, loss
from scripts.benchmarks import launches, m1, passes
from scripts.benchmarks.shapes import LARGER, larger_config

MACS = [mac(ram, OLDEST) for ram in (16, 24, 32)]
HEAD = (
    *("on disk", "a token reads", "tokens/s, M1", "padding", "loss", "memory, text alone"),
    *("memory, pictures too", *(f"longest context, {each.name}" for each in MACS)),
)
TABLE = TABLES[MLX]
UNIFORM = (2, 3, 4, 5, 6, 8)
# Bits of experts, attention, dense MLP and head.
MIXTURES = ((2, 4, 4, 5), (3, 4, 4, 5), (3, 5, 5, 6), (4, 5, 5, 6), (4, 6, 6, 6))
KINDS = ("experts", "attention", "mlp", "embedding")

Widths = Mapping[Unit, int]


def plain(name: str) -> Inventory:
    """List a larger model's tensors in 16 bits."""
    config = larger_config(name)
    shapes = published.tensors(config).items()
    entries = [Entry(each, shape, None, stored_bytes(shape, None)) for each, shape in shapes]
    return Inventory(None, config, tuple(entries))


def by_class(choices: Choices, bits: Mapping[str, int]) -> Widths:
    """Return the widths of units whose classes have these bits, or the fewest that they may."""
    return {
        unit: max(bits.get(unit.kind, 0), min(choice.sizes)) for unit, choice in choices.items()
    }


def mixtures(choices: Choices) -> Iterator[tuple[str, Widths]]:
    """Yield the label and the bits of each line but for what --fit chooses."""
    for bits in UNIFORM:
        yield str(bits), by_class(choices, dict.fromkeys(KINDS, bits))
    if {unit.kind for unit in choices} >= set(KINDS):
        for mixture in MIXTURES:
            label = ", ".join(f"{kind} {bits}" for kind, bits in zip(KINDS, mixture, strict=True))
            yield label, by_class(choices, dict(zip(KINDS, mixture, strict=True)))


def chosen_label(machine: Machine, mixture: Mixture) -> str:
    """Return what --fit chose, with the mean bits of each class."""
    means = [
        f"{label} {sum(mixture.widths[unit] for unit in units) / len(units):.1f}"
        for label, units in mixture.labelled().items()
    ]
    return f"--fit {machine.name.partition(',')[0]}: {', '.join(means)}"


def padding(entries: Iterable[Entry]) -> float:
    """Return the share of codes that stand for no weight."""
    coded = [entry for entry in entries if entry.bits is not None]
    blocks = [math.prod(entry.shape[:-1]) * -(-entry.shape[-1] // BLOCK) for entry in coded]
    return 1 - sum(entry.weights for entry in coded) / (BLOCK * sum(blocks))


def token_bytes(found: Inventory) -> int:
    """Sum the bytes of weights that a token reads: of experts, those that it is sent to."""
    text = found.args.text_config
    used = (text.top_k_experts or 0) / (text.num_experts or 1)
    sizes = (
        entry.stored_bytes * (used if ".experts." in entry.name else 1)
        for entry in found.live
        if not entry.is_tower
    )
    return round(sum(sizes))


def token_s(made: Inventory, launched: int) -> float:
    """Return how long a token takes an M1, by the model."""
    return token_bytes(made) / m1.SUSTAINED + launched * passes.LAUNCH_S


def line(label: str, made: Inventory, loss: float, settings: Settings, launched: int) -> str:
    """Return a line of the table."""
    both = [replace(settings, has_towers=has) for has in (False, True)]
    sums = [need(made, each, MACS[0]).total / 1e9 for each in both]
    cells = [
        label,
        f"{made.stored_bytes / 1e9:.1f} GB",
        f"{token_bytes(made) / 1e9:.2f} GB",
        f"{1 / token_s(made, launched):.1f}",
        f"{padding(entry for entry in made.live if not entry.is_tower):.1%}",
        f"{loss:.2f}",
        *(f"{size:.1f} GB" for size in sums),
        *(cell(made, both, machine) for machine in MACS),
    ]
    return f"| {' | '.join(cells)} |"


def table(name: str, context: int) -> Iterator[str]:
    """Yield the table of one model, in Markdown."""
    found = plain(name)
    losses = loss.by_table({each.name: each.shape for each in found.live}, TABLE)
    settings = Settings(context, has_towers=True)
    choices = choices_of(found, losses)
    launched = launches.total(launches.count_larger(name))
    yield f"| {name}: bits | {' | '.join(HEAD)} |"
    yield "|---" * (len(HEAD) + 1) + "|"
    for label, widths in mixtures(choices):
        made = as_quantized(found, unit_rule(widths), leftovers.AUTO)
        yield line(label, made, loss_of(choices, widths), settings, launched)
    for machine in MACS:
        try:
            mixture = propose(found, losses, settings, machine)
        except DeviceError:
            yield f"| --fit {machine.name}: does not fit{' | –' * len(HEAD)} |"
            continue
        lost = loss_of(choices, mixture.widths)
        label = chosen_label(machine, mixture)
        yield line(label, mixture.inventory, lost, settings, launched)


def notes(name: str, context: int) -> Iterator[str]:
    """Yield what else is to be known of a model: launches, and the disk that making it takes."""
    counted = launches.count_larger(name)
    most = ", ".join(f"{what} {times}" for what, times in counted.most_common(6))
    yield f"{name}: {launches.total(counted)} launches a token, of them {most}."
    found = plain(name)
    settings = Settings(context, has_towers=True)
    losses = loss.by_table({each.name: each.shape for each in found.live}, TABLE)
    if rest := launches.count_experts_rest(name):
        choices, launched = choices_of(found, losses), launches.total(counted)
        shares = []
        for bits in (min(UNIFORM), max(UNIFORM)):
            rule = unit_rule(by_class(choices, dict.fromkeys(KINDS, bits)))
            whole = token_s(as_quantized(found, rule, leftovers.AUTO), launched)
            shares.append(f"{rest * passes.LAUNCH_S / whole:.1%} of a token's time at {bits} bits")
        yield (
            f"{name}: gates and sums of experts take {rest} of them, {' and '.join(shares)}: what "
            "fusing them into the products could save at most."
        )
    try:
        mixture = propose(found, losses, settings, MACS[-1])
    except DeviceError:
        yield f"{name}: at a context of {context} no width fits 32 GB."
        return
    for size in (50, 5):
        need = disk_need(
            in_files(found, size * 10**9),
            leftovers.AUTO,
            is_discarded=True,
            rule=unit_rule(mixture.widths),
        )
        yield (
            f"{name}, quantized from the hub for 32 GB, in files of {size} GB at most: "
            f"{need.source / 1e9:.1f} GB of source, {need.output / 1e9:.1f} GB made, "
            f"{need.together / 1e9:.1f} GB at most at once with --discard-source."
        )


def in_files(found: Inventory, most: int) -> Headers:
    """Return a model's tensors as a hub would list them, in files of so many bytes at most."""
    files: list[dict[str, TensorSpec]] = [{}]
    sizes = [0]
    for entry in found.entries:
        if files[-1] and sizes[-1] + entry.stored_bytes > most:
            files.append({})
            sizes.append(0)
        files[-1][entry.name] = TensorSpec("BF16", entry.shape)
        sizes[-1] += entry.stored_bytes
    weights = [Weights(size, size, specs) for size, specs in zip(sizes, files, strict=True)]
    return Headers(None, dict(found.config), weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=tuple(LARGER), help="default: all")
    parser.add_argument("--context", type=cli.count, default=cli.CONTEXT, help="default: 8192")
    arguments = parser.parse_args()
    for name in LARGER if arguments.model is None else (arguments.model,):
        print(*table(name, arguments.context), "", *notes(name, arguments.context), "", sep="\n")


if __name__ == "__main__":
    main()
