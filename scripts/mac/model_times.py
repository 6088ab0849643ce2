"""The steps that time whole models: prefill part by part, the host's work, and answers.

M rows of x, N rows and K columns of a matrix.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from typing import Any

import mlx.core as mx

from hlwq_mlx import library
from hlwq_mlx.engine import overlap
from hlwq_mlx.engine.step import PlainStep
from hlwq_mlx.quant import kernels
from hlwq_mlx.quant.backends import metal
from scripts.benchmarks import host_time, launches, m1
from scripts.mac import timing
from scripts.mac.sizes import Sizes

Row = dict[str, Any]

DRAFTS = ("none", "lookup")
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
    """Time the host's work for a token of E4B's layers: its graph, and from a token to new work.

    Widths are small, which does not change what the host does. Without Metal, in a rehearsal, the
    kernels have stand-ins.
    """
    with nullcontext() if mx.metal.is_available() else launches.standing_in():
        yield from _time_host(sizes)


def _time_host(sizes: Sizes) -> Iterator[Row]:
    config = host_config(sizes.layers)
    dtype, tokens = timing.dtype(), 3 * sizes.rounds
    ours = launches.coded_model(config, m1.full(), dtype)
    models = {"ours": ours, "mlx-lm, affine": launches.stock_model(config, 4, dtype)}
    for name, model in models.items():
        built = host_time.build(model, tokens)
        yield {"what": f"graph of a token, {name}", "layers": sizes.layers, **built._asdict()}
    for make in (PlainStep, overlap.make_step):
        turn = host_time.turns(ours, make, tokens)
        what = f"a step of the engine, {make.__name__}"
        yield {
            "what": what,
            "layers": sizes.layers,
            "ms": turn.whole,
            "tokens known to first work, ms": turn.first,
            "to last work, ms": turn.last,
        }


def host_config(layers: int) -> dict[str, Any]:
    """Return E4B's config with small widths, and with its first layers alone if they are fewer."""
    config = launches.e4b_config(**launches.SMALL)
    text = config["text_config"]
    if layers < text["num_hidden_layers"]:
        types = ["full_attention"] * layers
        text |= {"num_hidden_layers": layers, "num_kv_shared_layers": 0, "layer_types": types}
    return config


def answers(model: str, variant: str | None, sizes: Sizes) -> Iterator[Row]:
    """Convert and load a model and ask it, without drafts and with; peak memory is each part's."""
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
    plain: dict[str, list[Any]] = {}
    for prompt, draft in product(sizes.prompts, DRAFTS):
        mx.reset_peak_memory()
        begun = time.perf_counter()
        messages = [{"role": "user", "content": prompt}]
        options = {"max_tokens": sizes.max_tokens, "draft": draft}
        pieces = list(library.stream_generate(loaded, tokenizer, messages, **options))
        last = pieces[-1]
        same = difference(plain.setdefault(prompt, pieces), pieces)
        yield {
            "what": prompt,
            "drafts": draft,
            "s": time.perf_counter() - begun,
            "peak memory, GB": mx.get_peak_memory() / 1e9,
            "prompt, tokens": last.prompt_tokens,
            "prompt, tokens/s": last.prompt_tps,
            "answer, tokens": last.generation_tokens,
            "answer, tokens/s": last.generation_tps,
            "tokens a pass": last.generation_tokens / max(1, last.passes),
            "without drafts": same,
            "answer": "".join(piece.text for piece in pieces),
        }


def difference(plain: Sequence[Any], drafted: Sequence[Any]) -> str:
    """Say where an answer's tokens leave the plain answer's, and how near the choice was there.

    The margin is that of the log probabilities without drafts; a near tie has next to none.
    """
    for at, (one, other) in enumerate(zip(plain, drafted, strict=False), 1):
        if one.token != other.token:
            margin = float(one.logprobs[one.token] - one.logprobs[other.token])
            return f"other at token {at}, by a margin of {margin:.2g}"
    return "the same" if len(plain) == len(drafted) else "the same so far, but not as long"
