"""Print how many tokens a second several Macs would bring together: a model, not a measurement.

    python scripts/sharding/speed_table.py

Each line is a model and some Macs of 16 GB; hlwq_mlx/sharding/speed.py says what is assumed. A
number in brackets is of a plan that is not worth it: one Mac is as fast. A second table says which
part of a language model's bytes the fullest Mac holds by tensors, and which part every Mac does.
"""

from collections.abc import Callable, Iterator
from typing import Any

from hlwq_mlx.folder import published
from hlwq_mlx.memory.inventory import (
    Entry,
    Inventory,
    as_converted,
    of_variant,
    stored_bytes,
    take,
)
from hlwq_mlx.memory.need import Settings
from hlwq_mlx.sharding import plan
from hlwq_mlx.sharding.plan import Plan
from hlwq_mlx.sharding.shares import SIZES, WHOLE
from hlwq_mlx.sharding.speed import FENCE_S, LATENCIES, link_of, mac_of
from hlwq_mlx.source import rules
from hlwq_mlx.write.cache import DEMO
from hlwq_mlx.write.leftovers import AUTO

LINKS = (1, 10, 40)
GROUPS = ("M1:16 M1:16", "M1:16 M1:16 M1:16 M1:16", "M4:16 M4:16", "M4:16 M4:16 M4:16 M4:16")
SETTINGS = Settings(8192)
VARIANTS = ("PQ2", "PQ3", "PQ5", "PQ8")
SLIDING, FULL = "sliding_attention", "full_attention"
# What differs from E4B in the released configs.
LARGER = {
    **{"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True},
    **{"sliding_window": 1024, "max_position_embeddings": 262144},
    "use_bidirectional_attention": "vision",
}
TEXTS: dict[str, dict[str, Any]] = {
    "E4B": {},
    "26B-A4B": LARGER
    | {
        **{"hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30},
        **{"num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2},
        **{"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8},
        "moe_intermediate_size": 704,
    },
    "31B": LARGER
    | {
        **{"hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 60},
        **{"num_attention_heads": 32, "num_key_value_heads": 16, "num_global_key_value_heads": 4},
    },
}
MODELS = {
    "E4B, PQ5": ("E4B", lambda name: 5),
    "26B-A4B, experts 3, others 5, head 6": (
        "26B-A4B",
        lambda name: 3 if ".experts." in name else 6 if "embed_tokens" in name else 5,
    ),
    "31B, 4 bits, head 5": ("31B", lambda name: 5 if "embed_tokens" in name else 4),
}


def main() -> None:
    """Print the table."""
    ways = [f"{split}, {gbit} Gbit/s" for split in plan.SPLITS for gbit in LINKS]
    names = ["model", "Macs of 16 GB", "GB", "alone", *ways]
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for name, (size, bits) in MODELS.items():
        found = inventory(size, bits)
        for group in GROUPS:
            print(f"| {' | '.join([name, *cells(found, group.split())])} |")
    latencies = ", ".join(
        f"{1e6 * seconds:.0f} µs at {gbit:.0f} Gbit/s" for gbit, seconds in LATENCIES.items()
    )
    print(f"\nAssumed: latency {latencies}; {1e6 * FENCE_S:.0f} µs for GPU and CPU a message.")
    print_shares()


def print_shares() -> None:
    """Print which part of each model a Mac holds by tensors."""
    names = ["model", *(f"of {size} Macs, the fullest" for size in SIZES), "every Mac"]
    print(f"\n| {' | '.join(names)} |\n{'|---' * len(names)}|")
    models = {"the demo, 16 bits": take(str(DEMO), "bf16")}
    models |= {f"E4B, {name}, converted": as_converted(of_variant(name), AUTO) for name in VARIANTS}
    models |= {name: inventory(*how) for name, how in MODELS.items() if how[0] != "E4B"}
    for name, found in models.items():
        parts = [*(largest_share(found, size) for size in SIZES), whole_share(found)]
        print(f"| {' | '.join([name, *(f'{100 * part:.1f} %' for part in parts)])} |")


def largest_share(found: Inventory, size: int) -> float:
    """Return which part of the language model's bytes the fullest machine holds by tensors."""
    weights = plan.language_weights(found)
    held = [
        sum(plan.part_of(entry, split) * entry.stored_bytes for entry in weights)
        for split in plan.splits_of(found, size)
    ]
    return max(held) / sum(entry.stored_bytes for entry in weights)


def whole_share(found: Inventory) -> float:
    """Return which part of the language model's bytes every machine holds by tensors."""
    split, weights = plan.splits_of(found, SIZES[0])[0], plan.language_weights(found)
    whole = sum(each.stored_bytes for each in weights if split.share(each.name) == WHOLE)
    return whole / sum(entry.stored_bytes for entry in weights)


def inventory(size: str, bits: Callable[[str], int]) -> Inventory:
    """List a model's tensors, each matrix coded, without towers and drafter."""
    config = published.e4b_config()
    text = config["text_config"] | TEXTS[size]
    count = text["num_hidden_layers"]
    text["layer_types"] = [FULL if i % 6 == 5 else SLIDING for i in range(count)]
    config = config | {"text_config": text, "vision_config": None, "audio_config": None}
    entries = []
    for name, shape in published.tensors(config).items():
        width = bits(name) if rules.class_of(name) or ".experts." in name else None
        entries.append(Entry(name, shape, width, stored_bytes(shape, width)))
    return Inventory(None, config, tuple(entries), is_converted=True)


def cells(found: Inventory, group: list[str]) -> Iterator[str]:
    """Yield the cells of a line."""
    macs = [mac_of(text) for text in group]
    sizes = plan.sizes_of(found, SETTINGS)
    yield f"{len(macs)} {macs[0].name.partition(',')[0]}"
    yield f"{sizes.whole / 1e9:.1f}"
    made = {
        (split, gbit): make(found, SETTINGS, macs, link_of(gbit))
        for split, make in plan.MAKERS.items()
        for gbit in LINKS
    }
    first = made["layers", LINKS[0]]
    yield f"{first.lone_tokens_s:.1f}" if first.fits_alone else "does not fit"
    yield from map(cell, made.values())


def cell(made: Plan) -> str:
    """Return a plan's speed, in brackets where it is not worth it."""
    if not made.fits:
        return "does not fit"
    return f"{made.tokens_s:.1f}" if made.is_worth_it else f"({made.tokens_s:.1f})"


if __name__ == "__main__":
    main()
