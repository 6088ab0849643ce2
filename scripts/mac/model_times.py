"""The steps that time whole models: prefill part by part, the host's work, and answers.

M rows of x, N rows and K columns of a matrix.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx

from hlwq_mlx import library
from hlwq_mlx.quant import kernels
from hlwq_mlx.quant.backends import metal
from hlwq_mlx.source import rules
from scripts.benchmarks import bench, launches
from scripts.mac import timing
from scripts.mac.sizes import Sizes

Row = dict[str, Any]

# E4B's layers: rows and columns of the products of a token in all of them, and how many there are.
HIDDEN, HEADS, KV_HEADS, WINDOW = 2560, 8, 2, 512
SLIDING, FULL = 35, 7
WIDTHS = {"sliding": 256, "full": 512}  # of a head
PRODUCTS = {
    "query of sliding layers": (2048, HIDDEN, SLIDING),
    "query of full layers": (4096, HIDDEN, FULL),
    "keys and values of sliding layers": (1024, HIDDEN, 20),
    "keys and values of full layers": (2048, HIDDEN, 4),
    "output of sliding layers": (HIDDEN, 2048, SLIDING),
    "output of full layers": (HIDDEN, 4096, FULL),
    "gate and up": (20480, HIDDEN, SLIDING + FULL),
    "down": (HIDDEN, 10240, SLIDING + FULL),
    "per-layer gate and projection": (512, HIDDEN, SLIDING + FULL),
}


def time_prefill(sizes: Sizes) -> Iterator[Row]:
    """Time the parts of reading a chunk of a prompt at E4B's sizes, and sum them over prompts.

    A sum, not a run: each part is timed alone, full attention with half of the prompt's keys.
    """
    few = replace(sizes, calls=max(1, sizes.calls // 16), working_set=1)
    bits, M = sizes.tile_bits[-1], sizes.chunk
    for name, (N, K, times) in PRODUCTS.items():
        N, K = _at_most(N, sizes), _at_most(K, sizes)
        x = timing.activations(M, K).astype(timing.dtype())
        matrices = timing.matrices(N, K, bits, few)
        ways = {
            "qmm": timing.calls(lambda m, x=x: metal.many_rows(x, m), matrices, few),
            "decoded": timing.calls(lambda m, x=x: metal.decoded(x, m), matrices, few),
        }
        yield from _parts(name, ways, times, sizes, few)
    h = timing.activations(M, _at_most(HIDDEN, sizes)).astype(timing.dtype())
    weight, scale = mx.ones((h.shape[1],), h.dtype), mx.ones((1,), h.dtype)
    around = timing.calls(
        lambda _: kernels.residual_norm(h, h, weight, scale, 1e-6, weight), [None], few
    )
    yield from _parts("norms and rotations", {"ours": around}, 3 * (SLIDING + FULL), sizes, few)
    for kind, layers in (("sliding", SLIDING), ("full", FULL)):
        for prompt in sizes.prefill:
            keys = min(prompt, WINDOW + M) if kind == "sliding" else max(M, prompt // 2)
            q, k, v = _heads(M, keys, WIDTHS[kind])
            turn = timing.calls(lambda _, q=q, k=k, v=v: _attend(q, k, v), [None], few)
            name = f"attention of {kind} layers, {keys} keys"
            yield from _parts(name, {"MLX": turn}, layers, replace(sizes, prefill=(prompt,)), few)


def _at_most(size: int, sizes: Sizes) -> int:
    """Return a size of E4B's, or that of a rehearsal, which is smaller."""
    return min(size, max(sizes.shapes[0]))


def _parts(
    name: str, ways: dict[str, Callable[[], Any]], times: int, sizes: Sizes, few: Sizes
) -> Iterator[Row]:
    """Yield what a part takes in a chunk, and in whole prompts of so many chunks."""
    found = timing.milliseconds(ways, few)
    for way, ms in found.items():
        prompts = {
            f"s of {prompt} tokens": ms * times * -(-prompt // sizes.chunk) / 1e3
            for prompt in sizes.prefill
        }
        yield {"part": name, "way": way, "layers": times, "ms a chunk and layer": ms, **prompts}


def _heads(M: int, keys: int, width: int) -> tuple[mx.array, mx.array, mx.array]:
    shapes = ((1, HEADS, M, width), (1, KV_HEADS, keys, width), (1, KV_HEADS, keys, width))
    q, k, v = (mx.random.normal(shape).astype(timing.dtype()) for shape in shapes)
    mx.eval(q, k, v)
    return q, k, v


def _attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask="causal")


def time_host(sizes: Sizes) -> Iterator[Row]:
    """Time building the graph of a token of E4B's layers, and building and computing it.

    Widths are small, so that computing is little more than launches.
    """
    text = {**launches.SMALL, "vocab_size": bench.VOCABULARY}
    text["vocab_size_per_layer_input"] = bench.VOCABULARY
    is_whole = sizes.layers == FULL + SLIDING
    config = (
        launches.e4b_config(**text)
        if is_whole
        else bench.decoder_config(
            sizes.layers,
            **{name: value for name, value in text.items() if not name.startswith("vocab")},
        )
    )
    rule = rules.class_rule(dict.fromkeys(("mlp", "attention", "ple", "embedding"), 5))
    models = {
        "ours, coded": launches.coded_model(config, rule, timing.dtype()),
        "mlx-lm, 16 bits": launches.stock_model(config, None, timing.dtype()),
    }
    for name, model in models.items():
        caches = model.make_cache()
        mx.eval(model(mx.array([[1, 2, 3]]), cache=caches))
        building, whole = [], []
        for _ in range(sizes.rounds + 1):
            begun = time.perf_counter()
            logits = model(mx.array([[1]]), cache=caches)
            building.append(time.perf_counter() - begun)
            mx.eval(logits)
            whole.append(time.perf_counter() - begun)
        yield {
            "model": name,
            "layers": sizes.layers,
            "building, ms": 1e3 * sorted(building)[len(building) // 2],
            "building and computing, ms": 1e3 * sorted(whole)[len(whole) // 2],
        }


def answers(model: str, variant: str | None, sizes: Sizes) -> Iterator[Row]:
    """Convert and load a model and ask it; peak memory is that of each of the three alone."""
    mx.reset_peak_memory()
    begun = time.perf_counter()
    folder = library.converted_folder(model, variant)
    yield {
        "what": "convert, or find converted",
        "s": time.perf_counter() - begun,
        "peak memory, GB": mx.get_peak_memory() / 1e9,
    }
    mx.reset_peak_memory()
    begun = time.perf_counter()
    loaded, tokenizer = library.load(folder)
    yield {
        "what": "load",
        "s": time.perf_counter() - begun,
        "peak memory, GB": mx.get_peak_memory() / 1e9,
        "memory in use, GB": mx.get_active_memory() / 1e9,
    }
    for prompt in sizes.prompts:
        mx.reset_peak_memory()
        begun = time.perf_counter()
        messages = [{"role": "user", "content": prompt}]
        pieces = list(
            library.stream_generate(loaded, tokenizer, messages, max_tokens=sizes.max_tokens)
        )
        yield {
            "what": prompt,
            "s": time.perf_counter() - begun,
            "peak memory, GB": mx.get_peak_memory() / 1e9,
            "prompt, tokens": pieces[-1].prompt_tokens,
            "prompt, tokens/s": pieces[-1].prompt_tps,
            "answer, tokens": pieces[-1].generation_tokens,
            "answer, tokens/s": pieces[-1].generation_tps,
            "answer": "".join(piece.text for piece in pieces),
        }
