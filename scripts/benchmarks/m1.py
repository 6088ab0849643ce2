"""What a token costs an M1 by its bytes and its launches: a model, not a measurement.

Decoding reads every weight once, so the time of a token is at least its bytes over the bandwidth of
memory; a launch that waits for another costs a little more. So formats can be compared; what
arithmetic and several tokens at once cost is in passes.py. Nothing here was timed.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from hlwq_mlx.gemma4.model import ModelArgs
from hlwq_mlx.source import rules
from scripts.benchmarks import launches, passes

PEAK, SUSTAINED = 68.25e9, 57e9  # bytes a second, of an M1
LAYERS = 42
COUNTED_BY_HAND = "34, and about 1,600 a token with 4 to 6 Hadamards a layer"
CONTEXTS = (1024, 8192)

Shape = tuple[int, ...]
Cost = Callable[[str, Shape], float]
"""From a tensor's name and shape to the bytes of one of its weights."""

OURS_FULL = "mlp=5,attention=5,ple=5,embedding=6"


@dataclass(frozen=True)
class Row:
    """A way of storing E4B, and what a token of it costs."""

    name: str
    gb: tuple[float, ...]
    launches: int | None

    def rate(self, bandwidth: float, launch_s: float = 0.0) -> float:
        """Tokens a second at the first context."""
        return 1 / (self.gb[0] * 1e9 / bandwidth + launch_s * (self.launches or 0))


def hlwq(rule: rules.Rule) -> Cost:
    """Codes, and a float16 norm for every block."""

    def cost(name: str, shape: Shape) -> float:
        return passes.bytes_of(rule(name, shape))

    return cost


def affine(bits: int) -> Cost:
    """mlx-lm's default: groups of 64 with a scale and a bias of 16 bits, in every matrix."""
    return lambda name, shape: passes.PLAIN if len(shape) == 1 else (bits + 0.5) / 8


def gguf(base: float, better: float) -> Cost:
    """llama.cpp's mixtures: the head, and half of v_proj and down_proj, in a better format."""

    def cost(name: str, shape: Shape) -> float:
        if len(shape) == 1:
            return 4.0
        if "embed_tokens" in name:
            return better / 8
        is_mixed = "v_proj" in name or "down_proj" in name
        return ((base + better) / 2 if is_mixed else base) / 8

    return cost


def weight_bytes(cost: Cost, shapes: dict[str, Shape]) -> float:
    """Sum what one token reads of the weights: each once, the table as the head it is tied to."""
    return sum(math.prod(shape) * cost(name, shape) for name, shape in shapes.items())


def kv_bytes(context: int, config: dict[str, Any] | None = None) -> int:
    """Sum the 16-bit keys and values that one token reads, in every layer, shared or not."""
    text = ModelArgs.from_dict(config or launches.e4b_config()).text_config
    layers = [text.layer(index) for index in range(text.num_hidden_layers)]
    return sum(
        2
        * 2
        * layer.num_key_value_heads
        * layer.head_dim
        # A sliding layer keeps its window alone.
        * (context if layer.layer_type == "full_attention" else min(context, text.sliding_window))
        for layer in layers
    )


def ple_row_bytes() -> int:
    """Size of the row that one token reads from disk: bfloat16, for every layer."""
    text = ModelArgs.from_dict(launches.e4b_config()).text_config
    return 2 * text.num_hidden_layers * text.hidden_size_per_layer_input


def count_launches() -> dict[str, Counter[str]]:
    """Count the launches of a token, by what is coded; all pure variants share a graph."""
    return {
        "mlx-lm, 16 bits": launches.count_stock(None),
        "mlx-lm, affine": launches.count_stock(4),
        "ours, PQ5": launches.count_ours(rules.variant_rule("PQ5")[1]),
        "ours, PQ2-Mixed": launches.count_ours(rules.variant_rule("PQ2-Mixed")[1]),
        "ours, all coded": launches.count_ours(full()),
    }


def rows(counts: dict[str, Counter[str]]) -> list[Row]:
    """Make the table: every published variant, what we can make, mlx-lm's and llama.cpp's."""
    costs: list[tuple[str, Cost, str | None]] = []
    for variant in rules.VARIANTS:
        kind = "ours, PQ2-Mixed" if variant == "PQ2-Mixed" else "ours, PQ5"
        costs.append((variant, hlwq(rules.variant_rule(variant)[1]), kind))
    costs += [
        (f"all coded: `--bits {OURS_FULL}`", hlwq(full()), "ours, all coded"),
        ("mlx-lm affine 4 (4.5 bits)", affine(4), "mlx-lm, affine"),
        ("mlx-lm affine 8 (8.5 bits)", affine(8), "mlx-lm, affine"),
        ("GGUF Q4_K_M (4.5 and 6.56 bits)", gguf(4.5, 6.5625), None),
        ("GGUF Q5_K_M (5.5 and 6.56 bits)", gguf(5.5, 6.5625), None),
        ("GGUF Q8_0 (8.5 bits)", gguf(8.5, 8.5), None),
    ]
    shapes = launches.plain_shapes(launches.e4b_config())
    return [
        Row(
            name,
            tuple((weight_bytes(cost, shapes) + kv_bytes(T)) / 1e9 for T in CONTEXTS),
            None if kind is None else launches.total(counts[kind]),
        )
        for name, cost, kind in costs
    ]


def full() -> rules.Rule:
    """The rule that codes every matrix of the text model."""
    return rules.class_rule(rules.parse_bits(OURS_FULL))


def print_tables() -> dict[str, Any]:
    """Print the tables as Markdown, and return what they hold."""
    counts = count_launches()
    found = rows(counts)
    print("A model, not a measurement: Gemma 4 E4B, one token at a time, on an M1.\n")
    print(f"| E4B as | GB a token at T={CONTEXTS[0]} | at T={CONTEXTS[1]} | launches ", end="")
    print("| tokens/s at 68.25 GB/s | at 57 GB/s | and 1.65 µs a launch |")
    print("|---|---|---|---|---|---|---|")
    for row in found:
        sizes = " | ".join(f"{gb:.2f}" for gb in row.gb)
        rates = f"{row.rate(PEAK):.1f} | {row.rate(SUSTAINED):.1f}"
        waited = "–" if row.launches is None else f"{row.rate(SUSTAINED, passes.LAUNCH_S):.1f}"
        print(f"| {row.name} | {sizes} | {row.launches or '–'} | {rates} | {waited} |")
    print(
        f"\nRates are for T={CONTEXTS[0]}. What is not coded is 16 bits; keys and values too. The "
    )
    print(
        f"{ple_row_bytes()} bytes of per-layer embeddings that a token reads are not in the sums.\n"
    )
    _print_counts(counts)
    return {
        "rows": [asdict(row) for row in found],
        "launches": {name: dict(counted) for name, counted in counts.items()},
    }


def _print_counts(counts: dict[str, Counter[str]]) -> None:
    kinds = sorted(set().union(*counts.values()))
    print(f"| launches a token | {' | '.join(counts)} |")
    print(f"|---|{'---|' * len(counts)}")
    for kind in kinds:
        print(f"| {kind} | {' | '.join(str(counted[kind]) for counted in counts.values())} |")
    totals = [launches.total(counted) for counted in counts.values()]
    print(f"| all | {' | '.join(map(str, totals))} |")
    print(f"\nCalibration: {totals[0] / LAYERS:.1f} launches a layer in mlx-lm's 16-bit graph; a ")
    print(f"count by hand had {COUNTED_BY_HAND}.")
