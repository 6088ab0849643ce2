"""Memory of a long context: measured with few layers, and computed at full size by the same code.

    python scripts/benchmarks/long_context.py        131,072 tokens, 4 layers of E4B's widths
    python scripts/benchmarks/long_context.py --context 2048 --step 32      a rehearsal

The caches are filled with zeros up to the last chunk, which then runs as any chunk of a prefill
does. Measured is MLX's peak from before the caches on (float32, CPU), beside what memory.need
computes for the same model; then its sums for E4B's 42 layers in 16 bits. Prints Markdown and a
line of JSON.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx

from hlwq_mlx.disk.sizes import format_bytes
from hlwq_mlx.gemma4.caches import WHOLE, Caching
from hlwq_mlx.gemma4.config import FULL
from hlwq_mlx.gemma4.model import Model
from hlwq_mlx.memory import inventory
from hlwq_mlx.memory.machine import mac
from hlwq_mlx.memory.need import Settings, activation_bytes, kv_bytes, need
from hlwq_mlx.source import rules
from scripts.benchmarks import bench, launches, make_fullsize

VOCABULARY = 1024
WAYS = {"16 bits": WHOLE, "8 bits": Caching(8), "4 bits": Caching(4)}


def filled(model: Model, caching: Caching, context: int) -> list[Any]:
    """Make caches that hold `context` positions, all of them zeros."""
    text = model.args.text_config
    caches = model.make_cache(caching)
    for index, cache in enumerate(caches):
        layer = text.layer(index)
        held = context if layer.layer_type == FULL else min(context, text.sliding_window)
        shape = (1, layer.num_key_value_heads, held, layer.head_dim)
        cache.update_and_fetch(mx.zeros(shape), mx.zeros(shape))
        mx.eval(cache.state)
        mx.clear_cache()
    return caches


def measure(model: Model, caching: Caching, context: int, step: int) -> int:
    """Return how much memory a prefill's last chunk, with all before it in caches, takes."""
    before = mx.get_active_memory()
    caches = filled(model, caching, context - step)
    mx.reset_peak_memory()
    ids = mx.arange(step)[None] % VOCABULARY
    mx.eval(model.prefill(ids, caches))
    return int(mx.get_peak_memory() - before)


def compare(layers: int, context: int, step: int) -> list[dict[str, Any]]:
    """Measure every way of keeping keys and values, and compute the same."""
    config = make_fullsize.config(layers, VOCABULARY)
    rule = rules.class_rule(dict.fromkeys(("mlp", "attention"), 4))
    model = launches.coded_model(config, rule, mx.float32)
    mx.eval(model(mx.zeros((1, 1), mx.int32)))  # weights are made ready
    found = []
    for name, caching in WAYS.items():
        settings = Settings(context, step, caching)
        text = model.args.text_config
        kv, activations = kv_bytes(text, settings, 4), activation_bytes(text, settings, 4)
        measured = measure(model, caching, context, step)
        found.append({"kept in": name, "measured": measured, "kv": kv, "activations": activations})
    return found


def full_size(variant: str, context: int) -> list[dict[str, Any]]:
    """Compute the same for all of E4B on a 16 GB Mac."""
    found, machine = inventory.of_variant(variant), mac(16, 15)
    needs = []
    for name, caching in WAYS.items():
        needed = need(found, replace(Settings(context), caching=caching), machine)
        needs.append({"kept in": name, "total": needed.total, "parts": needed.parts()})
    return needs


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, compute, print; fail when more was measured than computed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--context", type=int, default=131072)
    parser.add_argument("--step", type=int, default=64, help="tokens of the chunk")
    parser.add_argument("--layers", type=int, default=4, help="an even number")
    parser.add_argument("--variant", default="PQ5", help="of the model computed at full size")
    arguments = parser.parse_args(argv)
    mx.set_default_device(mx.cpu)
    measured = compare(arguments.layers, arguments.context, arguments.step)
    print(f"{arguments.layers} of 42 layers, {arguments.context} tokens, ", end="")
    print(f"a chunk of {arguments.step}, float32, on {bench.machine()}.\n")
    print("| kept in | measured, GB | computed, GB | keys and values | activations |")
    print("|---|---|---|---|---|")
    for row in measured:
        sizes = (row["measured"], row["kv"] + row["activations"], row["kv"], row["activations"])
        print(f"| {row['kept in']} | {' | '.join(f'{size / 1e9:.2f}' for size in sizes)} |")
    computed = full_size(arguments.variant, arguments.context)
    print(f"\nComputed for E4B {arguments.variant}, text, on a 16 GB Mac, chunks of 512:\n")
    for row in computed:
        print(f"- {row['kept in']}: {format_bytes(row['total'])} ({row['parts']})")
    print(json.dumps({"long_context": measured, "full_size": computed}))
    if any(row["measured"] > row["kv"] + row["activations"] for row in measured):
        raise SystemExit("error: more memory was taken than memory.need computes")


if __name__ == "__main__":
    main()
