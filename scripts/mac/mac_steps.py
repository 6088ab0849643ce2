"""What is found out about a Mac, step by step: each step yields rows of a table as it finds them.

Kernels are timed as decoding meets them: enough matrices in turn that no cache holds them, and many
calls for each evaluation, or the time would be that of a launch. Writing a report and going on when
a step fails is mac_report's.

M rows of x, N rows and K columns of a matrix.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, product
from typing import Any

import mlx.core as mx

from hlwq_mlx import library
from hlwq_mlx.quant import codec, device, kernels, ops, selftest
from hlwq_mlx.quant.backends import metal
from hlwq_mlx.quant.backends.base import reference, reference_geglu
from hlwq_mlx.quant.chips import Tile
from hlwq_mlx.quant.matrix import CodedMatrix
from hlwq_mlx.quant.packing import UNIT
from hlwq_mlx.source import model_card
from scripts.benchmarks import bench

Row = dict[str, Any]
Steps = dict[str, Callable[[], Iterator[Row]]]
Trial = Callable[[], bool]

# Milliseconds for one row by 2560 x 10240 weights on an M1 that reads 57 GB/s, by bits.
TARGET_MS = {2: 0.12, 3: 0.18, 4: 0.237, 5: 0.295, 6: 0.35, 8: 0.47}
TARGET_WEIGHTS = 2560 * 10240
FEWER_CALLS = 8  # of products with many rows, where a launch costs nothing


@dataclass(frozen=True)
class Sizes:
    """How much is tried; the rehearsal tries a little of everything."""

    bits: tuple[int, ...]
    dtypes: tuple[mx.Dtype, ...]
    few: tuple[int, ...]
    outputs: tuple[int, ...]
    widths: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    timed_bits: tuple[int, ...]
    tile_bits: tuple[int, ...]
    tiles: tuple[Tile, ...]
    many: tuple[int, ...]
    calls: int
    rounds: int
    working_set: int
    prompts: tuple[str, ...]
    max_tokens: int


FULL = Sizes(
    bits=tuple(range(1, 9)),
    dtypes=(mx.float32, mx.float16, mx.bfloat16),
    few=tuple(range(1, 9)),
    outputs=(256, 4096),
    widths=(256, 2048, 2560, 4096, 10240),  # of what E4B's layers multiply, norm and gate
    shapes=((2560, 10240), (10240, 2560)),
    timed_bits=(1, 2, 3, 4, 5, 6, 7, 8),
    tile_bits=(2, 3, 4, 5, 8),
    tiles=tuple(Tile(*cut, 1) for cut in product((2, 4, 8), (4, 8, 16), (2, 4, 8))),
    many=(32, 128, 512),
    calls=64,
    rounds=5,
    working_set=96 << 20,
    prompts=model_card.PROMPTS,
    max_tokens=200,
)
# For a first look in about two minutes: every width compiles, one layer's shape is timed.
QUICK = replace(
    FULL,
    dtypes=(mx.float16, mx.bfloat16),
    few=(1, 8),
    outputs=(256,),
    widths=(256, 2560),
    shapes=((2560, 10240),),
    timed_bits=(2, 4, 5, 8),
    tile_bits=(5,),
    tiles=(Tile(4, 8, 2, 1), Tile(4, 16, 2, 1)),
    many=(128,),
    calls=16,
    rounds=3,
    working_set=48 << 20,
    max_tokens=64,
)
REHEARSAL = Sizes(
    bits=(5,),
    dtypes=(mx.float16,),
    few=(1,),
    outputs=(256,),
    widths=(256,),
    shapes=((256, 64),),
    timed_bits=(5,),
    tile_bits=(5,),
    tiles=(Tile(2, 8, 2, 1),),
    many=(9,),
    calls=2,
    rounds=1,
    working_set=1,
    prompts=model_card.PROMPTS[:1],
    max_tokens=4,
)


def steps(sizes: Sizes, model: str | None, variant: str | None) -> Steps:
    """Return the steps in their order; the last one only if there is a model."""
    found: Steps = {
        "Every variant compiles and passes its self-test": lambda: self_tests(sizes),
        "qmv, one row": lambda: time_qmv(sizes),
        "qmv, other tiles": lambda: time_tiles(sizes),
        "Many rows: qmm, or decode and mx.matmul": lambda: time_many(sizes),
        "The other kernels": lambda: time_others(sizes),
        "The demo model": lambda: answers(str(library.DEMO), library.DEMO_VARIANT, sizes),
    }
    if model is not None:
        found["The model"] = lambda: answers(model, variant, sizes)
    return found


def self_tests(sizes: Sizes) -> Iterator[Row]:
    """Compile every variant in use and compare it with its twin."""
    for bits, dtype in product(sizes.bits, sizes.dtypes):
        for path, twin, tiles in _variants(sizes, bits):
            trials: dict[Any, Trial] = {
                tile: partial(selftest.passes, path, twin, bits, dtype, tile) for tile in tiles
            }
            yield _tried(path.__name__, bits, dtype, trials)
    for dtype in sizes.dtypes:
        for kernel, twin, cases in _between(sizes):
            trials = {
                case: partial(selftest.passes_on, kernel, twin, case, dtype) for case in cases
            }
            yield _tried(kernel.__name__, None, dtype, trials)


def _variants(
    sizes: Sizes, bits: int
) -> Iterator[tuple[selftest.Path, selftest.Twin, list[Tile | None]]]:
    cuts = product(sizes.few, sizes.outputs, sizes.widths)
    tiles = dict.fromkeys(kernels.qmv_tile(bits, M, N, K) for M, N, K in cuts)
    yield metal.few_rows, reference, [*tiles]
    yield metal.few_geglu, reference_geglu, [*tiles]
    yield metal.many_rows, reference, [None]
    yield metal.decoded, reference, [None]
    yield metal.rows_of, codec.embed, [None]


def _between(
    sizes: Sizes,
) -> Iterator[tuple[selftest.Kernel, selftest.Kernel, list[selftest.Arguments]]]:
    """The kernels without a matrix, and by shape what fused layers give them."""
    yield (
        kernels.residual_norm,
        codec.residual_norm,
        [
            case
            for K in filter(kernels.can_residual_norm, sizes.widths)
            for case in ops.residual_norm_cases(K)
        ],
    )
    yield kernels.gelu_mul, codec.gelu_mul, [*map(ops.gelu_mul_case, sizes.widths)]
    yield hadamard, hadamard_twin, [((2, K),) for K in sizes.widths]


def hadamard(x: mx.array) -> list[mx.array]:
    """Rotate as every path with a matrix does: to float32, whatever x is."""
    return [kernels.hadamard(x, dtype=mx.float32)]


def hadamard_twin(x: mx.array) -> list[mx.array]:
    """What `hadamard` computes, by the twin."""
    return [codec.hadamard(x.astype(mx.float32))]


def _tried(name: str, bits: int | None, dtype: mx.Dtype, trials: dict[Any, Trial]) -> Row:
    begun = time.perf_counter()
    faults = [fault for variant, trial in trials.items() if (fault := _fault(variant, trial))]
    return {
        "path": name,
        "bits": bits,
        "dtype": _name(dtype),
        "variants": len(trials),
        "faults": len(faults),
        "first fault": faults[0] if faults else "",
        "s": time.perf_counter() - begun,
    }


def _fault(variant: Any, trial: Trial) -> str:
    """Return a variant that fails its trial, with the warnings; an empty text if it passes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if trial():
            return ""
    return f"{variant}: " + " ".join(str(warning.message) for warning in caught)


def time_qmv(sizes: Sizes) -> Iterator[Row]:
    """Time a product with one row against the target and stock MLX at as many bits."""
    for (K, N), bits in product(sizes.shapes, sizes.timed_bits):
        x = _activations(1, K)
        matrices = _matrices(N, K, bits, sizes)
        contenders = {"ours": _calls(lambda m, x=x: _qmv(x, m, None), matrices, sizes)}
        contenders["float32 table"] = _calls(
            lambda m, x=x: kernels.qmv(x, m, dtype=_dtype(), entries=mx.float32), matrices, sizes
        )
        if bits in TARGET_MS:  # the widths that stock MLX has, too
            narrow = x.astype(_dtype())
            stock = _affine(N, K, bits, sizes)
            contenders["stock affine"] = _calls(
                lambda q, x=narrow, bits=bits: _stock(x, q, bits), stock, sizes
            )
        times = _milliseconds(contenders, sizes)
        target = TARGET_MS[bits] * N * K / TARGET_WEIGHTS if bits in TARGET_MS else None
        yield {
            "K x N": f"{K} x {N}",
            "bits": bits,
            **{f"{name}, ms": ms for name, ms in times.items()},
            "target on M1, ms": target,
            "GB/s": N * K * (bits / 8 + 2 / 128) / times["ours"] / 1e6,
        }


def time_tiles(sizes: Sizes) -> Iterator[Row]:
    """Time the tile that qmv_tile chooses beside others, and name the fastest."""
    for (K, N), bits in product(sizes.shapes, sizes.tile_bits):
        x = _activations(1, K)
        matrices = _matrices(N, K, bits, sizes)
        chosen = kernels.qmv_tile(bits, 1, N, K)
        fitting = [tile for tile in sizes.tiles if K // UNIT % tile.lanes == 0]
        case = (metal.few_rows, reference, bits, _dtype())
        trials = {tile: partial(selftest.passes, *case, tile) for tile in (chosen, *fitting)}
        sound = [tile for tile, trial in trials.items() if not _fault(tile, trial)]
        contenders = {
            _cut(tile): _calls(lambda m, x=x, tile=tile: _qmv(x, m, tile), matrices, sizes)
            for tile in sound
        }
        times = _milliseconds(contenders, sizes)
        fastest = min(times, key=lambda name: times[name], default="")
        yield {
            "K x N": f"{K} x {N}",
            "bits": bits,
            "chosen (rows, lanes, simdgroups)": _cut(chosen),
            "ms": times.get(_cut(chosen)),
            "fastest": fastest,
            "its ms": times.get(fastest),
            "unsound": len(trials) - len(sound),
            "all": times,
        }


def time_many(sizes: Sizes) -> Iterator[Row]:
    """Time the two ways of prefill, and stock MLX's 4 bits and 16."""
    sizes = replace(sizes, calls=max(1, sizes.calls // FEWER_CALLS), working_set=1)
    for (K, N), bits, M in product(sizes.shapes, sizes.tile_bits, sizes.many):
        x = _activations(M, K).astype(_dtype())
        matrices = _matrices(N, K, bits, sizes)
        stock = _affine(N, K, 4, sizes)
        weight = mx.random.normal((N, K)).astype(_dtype())
        times = _milliseconds(
            {
                "qmm": _calls(lambda m, x=x: metal.many_rows(x, m), matrices, sizes),
                "decoded": _calls(lambda m, x=x: metal.decoded(x, m), matrices, sizes),
                "stock affine 4": _calls(lambda q, x=x: _stock(x, q, 4), stock, sizes),
                "mx.matmul": _calls(lambda w, x=x: x @ w.T, [weight], sizes),
            },
            sizes,
        )
        row = {"K x N": f"{K} x {N}", "bits": bits, "rows": M}
        yield row | {f"{name}, ms": ms for name, ms in times.items()}


def time_others(sizes: Sizes) -> Iterator[Row]:
    """Time the kernels around the products, at the width of E4B's layers."""
    K, N = sizes.shapes[0]
    h = _activations(1, K).astype(_dtype())
    weight, scale = mx.ones((K,), _dtype()), mx.ones((1,), _dtype())
    matrix = _matrices(N, K, sizes.tile_bits[0], sizes)[0]
    rotated, ids = _activations(1, K), mx.array([1])
    works: dict[str, Callable[[Any], Any]] = {
        "hadamard": lambda _: kernels.hadamard(h),
        "gelu_mul": lambda _: kernels.gelu_mul(h, h),
        "residual_norm": lambda _: kernels.residual_norm(h, h, weight, scale, 1e-6, weight),
        "embed": lambda _: kernels.embed(ids, matrix),
        "geglu": lambda _: kernels.geglu(rotated, matrix),
        "dequantize": lambda _: kernels.dequantize(matrix, dtype=_dtype()),
        "mx.fast.rms_norm": lambda _: mx.fast.rms_norm(h, weight, 1e-6),
        "add, for what a launch costs": lambda _: h + h,
    }
    turns = {name: _calls(work, [None], sizes) for name, work in works.items()}
    for name, ms in _milliseconds(turns, sizes).items():
        yield {"kernel": name, "K": K, "ms": ms}


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


def _milliseconds(contenders: dict[str, Callable[[], Any]], sizes: Sizes) -> dict[str, float]:
    """Median time of one call; contenders take turns."""
    times = bench.medians(contenders, sizes.rounds)
    return {name: 1e3 * seconds / sizes.calls for name, seconds in times.items()}


def _calls(work: Callable[[Any], Any], parts: list[Any], sizes: Sizes) -> Callable[[], Any]:
    """Make a turn of many calls, which take the parts one after another."""
    return lambda: [work(part) for part, _ in zip(cycle(parts), range(sizes.calls), strict=False)]


def _matrices(N: int, K: int, bits: int, sizes: Sizes) -> list[CodedMatrix]:
    """Make as many matrices as fill the working set."""
    count = -(-sizes.working_set // (N * K * bits // 8))
    return [bench.random_matrix(N, K, bits) for _ in range(count)]


def _affine(N: int, K: int, bits: int, sizes: Sizes) -> list[tuple[mx.array, ...]]:
    weight = mx.random.normal((N, K)).astype(_dtype())
    quantized = mx.quantize(weight, group_size=64, bits=bits)
    count = -(-sizes.working_set // (N * K * bits // 8))
    copies = [tuple(part + mx.zeros_like(part) for part in quantized) for _ in range(count)]
    mx.eval(copies)
    return copies


def _stock(x: mx.array, quantized: tuple[mx.array, ...], bits: int) -> mx.array:
    return mx.quantized_matmul(x, *quantized, group_size=64, bits=bits)


def _qmv(x: mx.array, matrix: CodedMatrix, tile: Tile | None) -> mx.array:
    return kernels.qmv(x, matrix, dtype=_dtype(), tile=tile)


def _activations(M: int, K: int) -> mx.array:
    x = mx.random.normal((M, K))
    mx.eval(x)
    return x


def _dtype() -> mx.Dtype:
    return device.chip().activations


def _cut(tile: Tile) -> str:
    return f"{tile.rows}, {tile.lanes}, {tile.simdgroups}"


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
