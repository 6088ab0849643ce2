"""What reading a prompt costs an M1, phase by phase: a model, not a measurement.

Multiplications and bytes follow from E4B's shapes and from how the engine cuts a prompt; the keys
that are scored are counted on the attention's own code. How fast they go are figures of others, and
counts of instructions (scripts/kernels/agx). Nothing here was timed.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx

from hlwq_mlx.engine.answer import chunks
from hlwq_mlx.engine.request import PREFILL_STEP
from hlwq_mlx.gemma4 import attention
from hlwq_mlx.gemma4.attention import SharedKV
from hlwq_mlx.gemma4.config import FULL, LayerConfig, TextConfig
from hlwq_mlx.gemma4.masks import Causal
from hlwq_mlx.gemma4.model import ModelArgs
from hlwq_mlx.memory.need import Settings, activation_bytes
from hlwq_mlx.memory.verdict import LONG_CHUNKS
from scripts.benchmarks import launches
from scripts.benchmarks.m1 import full
from scripts.benchmarks.shapes import e4b_config
from scripts.kernels.agx.chips import LANES, M1, SUSTAINED

PROMPTS = (512, 4096, 19000)
HELD = 16384  # tokens before a chunk whose graph is counted
CHUNKS = (128, 256, 512, 1024, 2048, 4096)
BITS = 5
MATMUL = 0.75  # of the peak: MLX's 16-bit matmul on an M1 Max (github.com/ml-explore/mlx, 4216)
LAUNCH_S = 1.65e-6
ROW_S = 6.41e-3 / 512  # a row from the page cache, on the machine of `bench.py rows`
HOST_S = 0.28e-3  # to build a layer's graph, on this machine: the GPU waits for it
QMM_TOKENS = 32  # that share a decoded weight
# Written, masked, softmaxed and read: of more than 8 queries MLX 0.32.4 has no fused kernel for
# heads of 512, and does not use the one that it has for heads of 256.
SCORE_BYTES = 12
LAUNCHES_A_LAYER, LAUNCHES_A_BLOCK = 30, 7
COUNTS = Path(__file__).parents[1] / "kernels" / "agx" / "counts.json"


@dataclass(frozen=True)
class Way:
    """How a prompt is read: tokens a chunk, the most rows of qmm, queries a block.

    `input_bytes` and `output_bytes` are what scaling costs a product by a decoded weight, of each
    column of x and of the result; `finished` is how much of the last layer with keys runs for every
    position of the last chunk; `mixed` is the share of layers whose per-layer inputs are mixed.
    """

    name: str
    chunk: int
    qmm_rows: int = 512
    block: int = attention.BLOCK
    input_bytes: int = 14
    output_bytes: int = 4
    finished: bool = False


BEFORE = Way("before", 512, block=1 << 30, input_bytes=30, output_bytes=20, finished=True)
WAYS = (BEFORE, Way("now, the server", PREFILL_STEP), Way("now, alone", LONG_CHUNKS[0]))


def text() -> TextConfig:
    """Return E4B's config."""
    return ModelArgs.from_dict(e4b_config()).text_config


def flops_a_second() -> float:
    """Return an M1's peak, two operations for each lane and cycle."""
    return M1.cores * LANES * M1.clock * 1e9 * 2


def bytes_a_second() -> float:
    return M1.peak * SUSTAINED * 1e9


@cache
def decode_slots(bits: int) -> float:
    """Return the counted instructions that decode a weight."""
    counted = json.loads(COUNTS.read_text("utf-8"))[f"rotated_weight {bits}-bit"]
    return float(counted["instructions"]) / float(counted["weights"])


@cache
def scored(length: int, held: int, window: int | None, block: int) -> int:
    """Count the keys that a head's queries score, `length` of them at the end of `held` keys."""
    total = 0

    def count(queries: mx.array, keys: mx.array, *_: Any, **options: Any) -> mx.array:
        nonlocal total
        total += queries.shape[2] * keys.shape[2]
        return queries

    one = mx.zeros((1, 1, held, 1))
    view = SharedKV(one, one, Causal(window), 0, None)
    with (
        mock.patch.object(mx.fast, "scaled_dot_product_attention", count),
        mock.patch.object(attention, "BLOCK", block),
    ):
        view.attend(mx.zeros((1, 1, length, 1)))
    return total


def weights(config: TextConfig, layer: LayerConfig) -> Iterator[tuple[int, int]]:
    """Yield the rows and columns of a layer's matrices, those that are joined as one."""
    H, d = config.hidden_size, config.hidden_size_per_layer_input
    heads = config.num_attention_heads
    yield (heads + 2 * layer.num_key_value_heads) * layer.head_dim, H
    yield H, heads * layer.head_dim
    yield 2 * layer.intermediate_size, H
    yield H, layer.intermediate_size
    yield d, H
    yield H, d


def phases(way: Way, length: int) -> dict[str, float]:
    """Return the seconds of each phase of reading a prompt."""
    config, sums = text(), dict.fromkeys(PHASES, 0.0)
    N, d = config.num_hidden_layers, config.hidden_size_per_layer_input
    for chunk in chunks([0] * length, way.chunk, ()):
        rows, is_last = chunk.stop - chunk.start, chunk.stop == length
        _add_product(sums, way, rows, N * d, config.hidden_size)
        mixed = N if way.finished else config.first_shared - 1
        sums[ELEMENTS] += rows * d * (4 * N + 18 * mixed) / bytes_a_second()
        sums[ROWS] += rows * ROW_S
        for index in range(config.first_shared):
            layer = config.layer(index)
            is_whole = index < config.first_shared - 1 or (way.finished and is_last)
            matrices = list(weights(config, layer))
            for N_rows, K in matrices if is_whole else matrices[:1]:
                _add_product(sums, way, rows, N_rows, K)
            # Norms with residuals, the gate, and rotations: 16-bit in, 32-bit out.
            per_row = 36 * config.hidden_size + 12 * layer.intermediate_size
            sums[ELEMENTS] += rows * per_row * is_whole / bytes_a_second()
            if is_whole:
                _add_attention(sums, way, config, layer, chunk)
            sums[LAUNCHES] += LAUNCHES_A_LAYER * LAUNCH_S + HOST_S
    return sums


PRODUCTS, DECODING, SCALING = "products", "decoding weights", "scaling rows for decoded weights"
SLIDING, GLOBAL = "attention, sliding (heads of 256)", "attention, global (heads of 512)"
ELEMENTS, ROWS = "norms, gates, per-layer inputs", "rows of the per-layer table, from memory"
LAUNCHES = "launches, and the host between layers"
PHASES = (PRODUCTS, DECODING, SCALING, SLIDING, GLOBAL, ELEMENTS, ROWS, LAUNCHES)


def _add_product(sums: dict[str, float], way: Way, rows: int, N: int, K: int) -> None:
    """Add a product of so many rows with a matrix [N, K]."""
    issued = flops_a_second() / 2  # instructions of all lanes
    sums[PRODUCTS] += rows * N * K / (issued * MATMUL)
    if rows <= way.qmm_rows:  # the weights of a tile are decoded for every 32 tokens
        sums[DECODING] += -(-rows // QMM_TOKENS) * N * K * decode_slots(BITS) / issued
        return
    codes = (BITS + 0.125) / 8
    reading = N * K * (codes + 2) / bytes_a_second()
    sums[DECODING] += max(reading, N * K * decode_slots(BITS) / issued)
    sums[SCALING] += rows * (way.input_bytes * K + way.output_bytes * N) / bytes_a_second()


def _add_attention(
    sums: dict[str, float], way: Way, config: TextConfig, layer: LayerConfig, chunk: slice
) -> None:
    is_full = layer.layer_type == FULL
    window = None if is_full else config.sliding_window
    before = chunk.start if window is None else min(chunk.start, window - 1)
    rows = chunk.stop - chunk.start
    scores = config.num_attention_heads * scored(rows, before + rows, window, way.block)
    multiplied = 2 * scores * layer.head_dim / (flops_a_second() / 2 * MATMUL)
    moved = scores * SCORE_BYTES / bytes_a_second()
    sums[GLOBAL if is_full else SLIDING] += multiplied + moved
    sums[LAUNCHES] += -(-rows // min(way.block, rows)) * LAUNCHES_A_BLOCK * LAUNCH_S


def print_phases(found: dict[tuple[str, int], dict[str, float]]) -> None:
    """Print a row for each phase: seconds of every prompt, each way."""
    columns = [(way.name, length) for length in PROMPTS for way in WAYS]
    print("| seconds | " + " | ".join(f"{length:,}, {name}" for name, length in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for phase in PHASES:
        print(f"| {phase} | " + " | ".join(f"{found[key][phase]:.2f}" for key in columns) + " |")
    totals = [sum(found[key].values()) for key in columns]
    print("| all | " + " | ".join(f"{total:.2f}" for total in totals) + " |")
    rates = [length / total for (_, length), total in zip(columns, totals, strict=True)]
    print("| tokens a second | " + " | ".join(f"{rate:.0f}" for rate in rates) + " |")


def print_chunks() -> list[dict[str, float]]:
    """Print what the longest prompt costs by the size of its chunks, and what a chunk costs."""
    length, found = max(PROMPTS), []
    print("\n| tokens a chunk | by qmm, s | by decoded weights, s | a chunk, s | activations |")
    print("|---|---|---|---|---|")
    for size in CHUNKS:
        qmm, decoded = (
            sum(phases(Way("", size, qmm_rows), length).values()) for qmm_rows in (1 << 30, 0)
        )
        last = min(qmm, decoded) * size / length
        nbytes = activation_bytes(text(), Settings(32768, size), 2)
        print(f"| {size:,} | {qmm:.1f} | {decoded:.1f} | {last:.2f} | {nbytes / 1e6:.0f} MB |")
        found.append({"chunk": size, "qmm": qmm, "decoded": decoded, "activations": nbytes})
    return found


def multiplications() -> dict[str, list[float]]:
    """Return the keys that a query of a prompt scores on average, in each kind of layer."""
    config, found = text(), {}
    for way in WAYS:
        for window in (config.sliding_window, None):
            means = []
            for length in PROMPTS:
                total = 0
                for chunk in chunks([0] * length, way.chunk, ()):
                    before = chunk.start if window is None else min(chunk.start, window - 1)
                    rows = chunk.stop - chunk.start
                    total += scored(rows, before + rows, window, way.block)
                means.append(total / length)
            found[f"{way.name}, {'global' if window is None else 'sliding'}"] = means
    return found


def print_multiplications(found: dict[str, list[float]]) -> None:
    print("\n| keys that a query scores | " + " | ".join(f"{n:,}" for n in PROMPTS) + " |")
    print("|---|" + "---|" * len(PROMPTS))
    for name, means in found.items():
        print(f"| {name} | " + " | ".join(f"{mean:,.0f}" for mean in means) + " |")


def primitives() -> dict[str, list[int]]:
    """Count the primitives of a chunk's graph: of the first, of one behind many, of the last."""
    model = launches.prefill_model(full(), text().sliding_window)
    found = {}
    for way in WAYS:
        with mock.patch.object(attention, "BLOCK", way.block):
            found[f"{way.name}, {way.chunk:,} tokens"] = [
                launches.count_chunk(model, way.chunk, held, is_last=is_last)
                for held, is_last in ((0, False), (HELD, False), (HELD, True))
            ]
    return found


def print_primitives(found: dict[str, list[int]]) -> None:
    print(
        f"\n| primitives of a chunk's graph | the first | behind {HELD:,} tokens | and the last |"
    )
    print("|---|---|---|---|")
    for name, counts in found.items():
        print(f"| {name} | " + " | ".join(f"{count:,}" for count in counts) + " |")


def main(argv: Sequence[str] | None = None) -> None:
    """Compute and print."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args(argv)
    mx.set_default_device(mx.cpu)
    found = {(way.name, length): phases(way, length) for way in WAYS for length in PROMPTS}
    print(f"A model, not a measurement: Gemma 4 E4B, all coded at {BITS} bits, on an M1.\n")
    print_phases(found)
    by_chunk, keys = print_chunks(), multiplications()
    print_multiplications(keys)
    graphs = primitives()
    print_primitives(graphs)
    named = {f"{name}, {length}": seconds for (name, length), seconds in found.items()}
    print(json.dumps({"phases": named, "chunks": by_chunk, "keys": keys, "primitives": graphs}))


if __name__ == "__main__":
    main()
