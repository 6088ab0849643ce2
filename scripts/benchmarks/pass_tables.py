"""Print what passes of one to five tokens cost on Apple's chips, by the model of passes.py.

Every variant of E4B is counted as `convert` leaves it by default: leftovers coded, as
`leftovers_table` computes it; 26B-A4B at the widths of `fit_table`, beside what the engine takes a
row of a mixture to cost.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from hlwq_mlx.engine.speculate import metal_row_cost
from hlwq_mlx.memory.inventory import Entry, as_quantized
from hlwq_mlx.memory.mixture import choices_of
from hlwq_mlx.quant.packing import BLOCK
from hlwq_mlx.source import rules
from hlwq_mlx.source.rules import unit_rule
from hlwq_mlx.write import leftovers, loss
from scripts.benchmarks import fit_table, launches, leftovers_table, m1, passes
from scripts.benchmarks.fit_table import TABLE
from scripts.benchmarks.passes import MOST_TOKENS, TOKENS, Model, Widths
from scripts.benchmarks.shapes import larger_config
from scripts.kernels.agx.chips import CHIPS, M1, Chip

CONTEXT = 1024
HOST_MS = 20.0  # assumed: of building the graph of 42 layers on the machine without Metal used here
MIXTURE = "26B-A4B"
SHOWN = ("PQ2", "PQ3", "PQ4", "PQ5", "PQ6", "PQ8")


def models() -> dict[str, Model]:
    """Return E4B in every published variant; what is coded decides how much is launched."""
    shapes = launches.plain_shapes(launches.e4b_config())
    counted: dict[frozenset[str], list[int]] = {}
    found = {}
    for variant in rules.VARIANTS:
        name, published = rules.variant_rule(variant)
        own = leftovers_table.own_energy(published, shapes)
        rule = leftovers_table.with_leftovers(published, leftovers.AUTO, own)
        coded = frozenset(name for name, shape in shapes.items() if rule(name, shape))
        if coded not in counted:
            counted[coded] = launches.count_passes(rule, MOST_TOKENS)
        widths = passes.widths(rule, shapes)
        found[name] = Model(widths, counted[coded], m1.kv_bytes(CONTEXT), Counter())
    return found


def mixtures() -> dict[str, Model]:
    """Return 26B-A4B at one width and in mixtures, and the weights of its experts for one token."""
    plain = fit_table.plain(MIXTURE)
    text = plain.args.text_config
    choices = choices_of(plain, loss.by_table({e.name: e.shape for e in plain.live}, TABLE))
    launched = launches.count_larger_passes(MIXTURE, MOST_TOKENS)
    kv_bytes = m1.kv_bytes(CONTEXT, larger_config(MIXTURE))
    found = {}
    for label, widths in fit_table.mixtures(choices):
        shared: Widths = Counter()
        stacks: Widths = Counter()
        for entry in as_quantized(plain, unit_rule(widths), leftovers.AUTO).live:
            if not entry.is_tower:
                (stacks if ".experts." in entry.name else shared)[entry.bits] += padded(entry)
        used = text.top_k_experts / text.num_experts
        chosen = Counter({bits: round(used * count) for bits, count in stacks.items()})
        found[label] = Model(shared, launched, kv_bytes, chosen)
    return found


def padded(entry: Entry) -> int:
    """Return how many weights a tensor has, rows of codes filled up to blocks."""
    if entry.bits is None:
        return entry.weights
    return math.prod(entry.shape[:-1]) * -(-entry.shape[-1] // BLOCK) * BLOCK


def by_mixture(found: dict[str, Model], chip: Chip) -> Iterator[dict[str, Any]]:
    """Yield what passes cost a mixture, and what the engine counts for one more row."""
    for label, model in found.items():
        taken = [passes.cost(model, chip, tokens).seconds for tokens in TOKENS]
        coded = [
            {bits: count for bits, count in each.items() if bits}
            for each in (model.weights, model.chosen)
        ]
        yield {
            "mixture": label,
            "GB": model.weight_bytes / 1e9,
            "launches": list(model.launches),
            "ms": [1e3 * seconds for seconds in taken],
            "one more row": taken[1] / taken[0] - 1,
            "one more row, as drafting counts": metal_row_cost(*coded),
        }


def by_variant(found: dict[str, Model], chip: Chip, host_s: float) -> Iterator[dict[str, Any]]:
    """Yield what passes cost each variant on a chip, and when drafting pays there."""
    drafter = passes.e4b_drafter(CONTEXT)
    for name, model in found.items():
        taken = [passes.cost(model, chip, tokens) for tokens in TOKENS]
        best = min(TOKENS[1:], key=lambda n: passes.breaks_even(model, chip, n, 0.0, None) / n)
        yield {
            "variant": name,
            "GB": model.weight_bytes / 1e9,
            "launches": list(model.launches),
            "ms": [1e3 * each.seconds for each in taken],
            "arithmetic, ms": [1e3 * (each.products - each.waited) for each in taken],
            "tokens/s": 1 / taken[0].seconds,
            "tokens/s, host waited for": 1 / (taken[0].seconds + host_s),
            "tokens tried": best,
            "breaks even, lookup": passes.breaks_even(model, chip, best, 0.0, None),
            "breaks even, drafter": passes.breaks_even(model, chip, best, 0.0, drafter),
        }


def by_chip(found: dict[str, Model], shown: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield tokens a second of each chip, and what a pass of five costs beside one."""
    for chip in CHIPS:
        row: dict[str, Any] = {"chip": chip.name, "cores": chip.cores}
        for name in shown:
            one, five = (passes.cost(found[name], chip, n).seconds for n in (1, MOST_TOKENS))
            row[name] = {"tokens/s": 1 / one, "ratio": five / one}
        yield row


def print_tables(host_ms: float = HOST_MS) -> dict[str, Any]:
    """Print both tables as Markdown, and return what they hold."""
    found = models()
    variants = list(by_variant(found, M1, host_ms / 1e3))
    print(
        "\nA model, not a measurement: passes over Gemma 4 E4B, converted by default, at ", end=""
    )
    print(f"{CONTEXT} tokens of context; {M1.name} with {M1.cores} cores at 57 GB/s.\n")
    numbers = " | ".join(f"{n} token{'s' * (n > 1)}, ms" for n in TOKENS)
    print(f"| E4B as | GB | {numbers} | of which arithmetic, beyond memory | tokens/s ", end="")
    print(f"| with {host_ms:g} ms of host between | tried | breaks even, lookup | with a drafter |")
    print("|---" * (MOST_TOKENS + 8) + "|")
    for row in variants:
        times = " | ".join(f"{ms:.1f}" for ms in row["ms"])
        beyond = ", ".join(f"{ms:.0f}" for ms in row["arithmetic, ms"])
        print(f"| {row['variant']} | {row['GB']:.2f} | {times} | {beyond} ", end="")
        print(f"| {row['tokens/s']:.1f} | {row['tokens/s, host waited for']:.1f} ", end="")
        print(f"| {row['tokens tried']} | {row['breaks even, lookup']:.2f} ", end="")
        print(f"| {row['breaks even, drafter']:.2f} |")
    chips = list(by_chip(found, SHOWN))
    print("\nTokens a second one by one, and what a pass of five takes beside that of one:\n")
    print(f"| chip | {' | '.join(SHOWN)} |")
    print("|---" * (len(SHOWN) + 1) + "|")
    for row in chips:
        cells = [f"{row[name]['tokens/s']:.1f}, {row[name]['ratio']:.2f}" for name in SHOWN]
        print(f"| {row['chip']}, {row['cores']} cores | {' | '.join(cells)} |")
    mixed = list(by_mixture(mixtures(), M1))
    print("\nA pass of several tokens of a model with experts reads those of each of them:\n")
    print(
        f"| {MIXTURE} as | GB a token | {numbers} | one more token, passes | as drafting counts |"
    )
    print("|---" * (MOST_TOKENS + 4) + "|")
    for row in mixed:
        times = " | ".join(f"{ms:.1f}" for ms in row["ms"])
        print(
            f"| {row['mixture']} | {row['GB']:.2f} | {times} | {row['one more row']:.2f} ", end=""
        )
        print(f"| {row['one more row, as drafting counts']:.2f} |")
    return {"variants": variants, "chips": chips, "mixtures": mixed}
