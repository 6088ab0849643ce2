"""How the first run on a Mac times: contenders in turns, many calls each, weights from memory.

Kernels are timed as decoding meets them: enough matrices in turn that no cache holds them, and many
calls for each evaluation, or the time would be that of a launch.
"""

from collections.abc import Callable
from functools import cache
from itertools import cycle
from typing import Any

import mlx.core as mx

from hlwq_mlx.quant import device, kernels
from hlwq_mlx.quant.chips import Tile
from hlwq_mlx.quant.matrix import CodedMatrix
from scripts.benchmarks import bench
from scripts.mac.sizes import Sizes


@cache
def bandwidths(size: int, rounds: int) -> dict[str, float]:
    """Measure once what memory delivers of an array of `size` bytes, in GB/s."""
    x = mx.zeros((size // 4,))
    weight, vector = mx.zeros((size // 256, 128), mx.float16), mx.zeros((128,), mx.float16)
    mx.eval(x, weight, vector)
    times = bench.medians(
        {
            "read: a sum": lambda: x.sum(),
            "read and written: a copy": lambda: x + 1,
            "read: a product with a vector": lambda: weight @ vector,
        },
        rounds,
    )
    moved = dict.fromkeys(times, size) | {"read and written: a copy": 2 * size}
    return {name: moved[name] / seconds / 1e9 for name, seconds in times.items()}


def bandwidth(sizes: Sizes) -> float:
    """Return the most that memory delivered, in GB/s."""
    return max(bandwidths(sizes.read, sizes.rounds).values())


def milliseconds(contenders: dict[str, Callable[[], Any]], sizes: Sizes) -> dict[str, float]:
    """Median time of one call; contenders take turns."""
    times = bench.medians(contenders, sizes.rounds)
    return {name: 1e3 * seconds / sizes.calls for name, seconds in times.items()}


def calls(work: Callable[[Any], Any], parts: list[Any], sizes: Sizes) -> Callable[[], Any]:
    """Make a turn of many calls, which take the parts one after another."""
    return lambda: [work(part) for part, _ in zip(cycle(parts), range(sizes.calls), strict=False)]


def matrices(N: int, K: int, bits: int, sizes: Sizes) -> list[CodedMatrix]:
    """Make as many matrices as fill the working set."""
    count = -(-sizes.working_set // (N * K * bits // 8))
    return [bench.random_matrix(N, K, bits) for _ in range(count)]


def affine(N: int, K: int, bits: int, sizes: Sizes) -> list[tuple[mx.array, ...]]:
    weight = mx.random.normal((N, K)).astype(dtype())
    quantized = mx.quantize(weight, group_size=64, bits=bits)
    count = -(-sizes.working_set // (N * K * bits // 8))
    copies = [tuple(part + mx.zeros_like(part) for part in quantized) for _ in range(count)]
    mx.eval(copies)
    return copies


def stock(x: mx.array, quantized: tuple[mx.array, ...], bits: int) -> mx.array:
    return mx.quantized_matmul(x, *quantized, group_size=64, bits=bits)


def qmv(x: mx.array, matrix: CodedMatrix, tile: Tile | None) -> mx.array:
    return kernels.qmv(x, matrix, dtype=dtype(), tile=tile)


def activations(M: int, K: int) -> mx.array:
    x = mx.random.normal((M, K))
    mx.eval(x)
    return x


def dtype() -> mx.Dtype:
    return device.chip().activations


def cut(tile: Tile) -> str:
    return f"{tile.rows}, {tile.lanes}, {tile.simdgroups}"


def dtype_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
