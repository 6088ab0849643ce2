"""The steps that time kernels: beside one another, stock MLX and the bandwidth that memory has.

M rows of x, N rows and K columns of a matrix.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import mlx.core as mx

from hlwq_mlx.quant import device, kernels, selftest
from hlwq_mlx.quant.backends import metal
from hlwq_mlx.quant.backends.base import reference
from hlwq_mlx.quant.chips import Tile
from hlwq_mlx.quant.matrix import CodedMatrix
from hlwq_mlx.quant.packing import BLOCK, UNIT
from scripts.kernels import variants
from scripts.mac import timing
from scripts.mac.self_tests import fault
from scripts.mac.sizes import Sizes

Row = dict[str, Any]
Works = dict[str, tuple[Callable[[Any], Any], float]]

# Milliseconds for one row by 2560 x 10240 weights on an M1 that reads 57 GB/s, by bits.
TARGET_MS = {2: 0.12, 3: 0.18, 4: 0.237, 5: 0.295, 6: 0.35, 8: 0.47}
TARGET_WEIGHTS = 2560 * 10240
FEWER_CALLS = 8  # of products with many rows, where a launch costs nothing
MANY_ROWS = 1024  # of x, for the kernels around products, or a launch would be their time


def time_bandwidth(sizes: Sizes) -> Iterator[Row]:
    """Measure what memory delivers to kernels of MLX's own."""
    for what, speed in timing.bandwidths(sizes.read, sizes.rounds).items():
        yield {"what": what, "GB/s": speed}


def time_qmv(sizes: Sizes) -> Iterator[Row]:
    """Time a product with one row against the target, the bandwidth and stock MLX."""
    for (K, N), bits in product(sizes.shapes, sizes.timed_bits):
        x = timing.activations(1, K)
        matrices = timing.matrices(N, K, bits, sizes)
        contenders = {
            "ours": timing.calls(lambda m, x=x: timing.qmv(x, m, None), matrices, sizes),
            "float32 table": timing.calls(partial(_exact, x), matrices, sizes),
        }
        if bits in TARGET_MS:  # the widths that stock MLX has, too
            narrow = x.astype(timing.dtype())
            stock = timing.affine(N, K, bits, sizes)
            contenders["stock affine"] = timing.calls(
                lambda q, x=narrow, bits=bits: timing.stock(x, q, bits), stock, sizes
            )
        times = timing.milliseconds(contenders, sizes)
        target = TARGET_MS[bits] * N * K / TARGET_WEIGHTS if bits in TARGET_MS else None
        speed = N * K * (bits / 8 + 2 / BLOCK) / times["ours"] / 1e6
        yield {
            "K x N": f"{K} x {N}",
            "bits": bits,
            **{f"{name}, ms": ms for name, ms in times.items()},
            "target on M1, ms": target,
            "GB/s": speed,
            "of the bandwidth": speed / timing.bandwidth(sizes),
        }


def _exact(x: mx.array, matrix: CodedMatrix) -> mx.array:
    return kernels.qmv(x, matrix, dtype=timing.dtype(), entries=mx.float32)


def time_rows(sizes: Sizes) -> Iterator[Row]:
    """Time 1 to 5 rows of x with 2, 4 and 8 rows a lane: tiles, and tokens a pass, follow."""
    K, N = sizes.shapes[0]
    for bits, M in product(sizes.timed_bits, sizes.tokens):
        chosen = device.chip().tile(bits, M, N, K)
        tiles = dict.fromkeys([chosen, *(chosen._replace(rows=rows) for rows in sizes.rows)])
        times, unsound = _time_tiles(K, N, bits, [*tiles], sizes)
        fastest = min(times, key=lambda tile: times[tile], default=None)
        yield {
            "bits": bits,
            "tokens": M,
            "chosen": chosen.rows,
            "ms": times.get(chosen),
            "fastest": fastest and fastest.rows,
            "its ms": fastest and times[fastest],
            "unsound": unsound,
            "by rows": {tile.rows: ms for tile, ms in times.items()},
        }


def time_tiles(sizes: Sizes) -> Iterator[Row]:
    """Time the tile that the table has for one row of x beside other lanes and simdgroups."""
    for (K, N), bits in product(sizes.shapes, sizes.tile_bits):
        chosen = device.chip().tile(bits, 1, N, K)
        fitting = [tile for tile in sizes.tiles if K // UNIT % tile.lanes == 0]
        times, unsound = _time_tiles(K, N, bits, [*dict.fromkeys([chosen, *fitting])], sizes)
        fastest = min(times, key=lambda tile: times[tile], default=None)
        yield {
            "K x N": f"{K} x {N}",
            "bits": bits,
            "chosen (rows, lanes, simdgroups)": timing.cut(chosen),
            "ms": times.get(chosen),
            "fastest": timing.cut(fastest) if fastest else "",
            "its ms": fastest and times[fastest],
            "unsound": unsound,
            "all": {timing.cut(tile): ms for tile, ms in times.items()},
        }


def _time_tiles(
    K: int, N: int, bits: int, tiles: list[Tile], sizes: Sizes
) -> tuple[dict[Tile, float], int]:
    """Time tiles that pass their self-test; return milliseconds, and how many do not pass."""
    case = (metal.few_rows, reference, bits, timing.dtype())
    sound = [tile for tile in tiles if not fault(tile, partial(selftest.passes, *case, tile))]
    x = timing.activations(tiles[0].tokens, K)
    matrices = timing.matrices(N, K, bits, sizes)
    contenders = {
        tile: timing.calls(lambda m, tile=tile: timing.qmv(x, m, tile), matrices, sizes)
        for tile in sound
    }
    return timing.milliseconds(contenders, sizes), len(tiles) - len(sound)


def time_variants(sizes: Sizes) -> Iterator[Row]:
    """Time other ways to write the kernels beside the kernels as they are, in turns."""
    K, N = sizes.shapes[0]
    for variant in variants.variants():
        for bits in sorted(set(variant.bits) & set(sizes.timed_bits)):
            tile = device.chip().tile(bits, 1, N, K)
            for rows in sorted({tile.rows, 4}):
                yield _time_variant(variant, bits, tile._replace(rows=rows), sizes)


def _time_variant(variant: variants.Variant, bits: int, tile: Tile, sizes: Sizes) -> Row:
    K, N = sizes.shapes[0]

    def path(x: Any, m: CodedMatrix, tile: Tile | None) -> mx.array:
        with variants.using(variant):
            return metal.few_rows(x, m, tile)

    path.__name__ = variant.name
    problem = fault(tile, partial(selftest.passes, path, reference, bits, timing.dtype(), tile))
    x, matrices = timing.activations(1, K), timing.matrices(N, K, bits, sizes)
    plain = timing.calls(lambda m: timing.qmv(x, m, tile), matrices, sizes)
    contenders = {"as it is": plain}
    if not problem:
        contenders["variant"] = partial(_within, variant, plain)
    times = timing.milliseconds(contenders, sizes)
    return {
        "variant": variant.name,
        "bits": bits,
        "rows a lane": tile.rows,
        **{f"{name}, ms": ms for name, ms in times.items()},
        "faster": times["as it is"] / times["variant"] if "variant" in times else None,
        "fault": problem,
    }


def _within(variant: variants.Variant, turn: Callable[[], Any]) -> Any:
    with variants.using(variant):
        return turn()


def time_many(sizes: Sizes) -> Iterator[Row]:
    """Time the two ways of prefill, and stock MLX's 4 bits and 16."""
    sizes = replace(sizes, calls=max(1, sizes.calls // FEWER_CALLS), working_set=1)
    for (K, N), bits, M in product(sizes.shapes, sizes.tile_bits, sizes.many):
        x = timing.activations(M, K).astype(timing.dtype())
        matrices = timing.matrices(N, K, bits, sizes)
        stock = timing.affine(N, K, 4, sizes)
        weight = mx.random.normal((N, K)).astype(timing.dtype())
        times = timing.milliseconds(
            {
                "qmm": timing.calls(lambda m, x=x: metal.many_rows(x, m), matrices, sizes),
                "decoded": timing.calls(lambda m, x=x: metal.decoded(x, m), matrices, sizes),
                "stock affine 4": timing.calls(lambda q, x=x: timing.stock(x, q, 4), stock, sizes),
                "mx.matmul": timing.calls(lambda w, x=x: x @ w.T, [weight], sizes),
            },
            sizes,
        )
        row = {"K x N": f"{K} x {N}", "bits": bits, "rows": M}
        yield row | {f"{name}, ms": ms for name, ms in times.items()}


def time_others(sizes: Sizes) -> Iterator[Row]:
    """Time the kernels around the products: for one row, and for many against the bandwidth."""
    K, N = sizes.shapes[0]
    bits = sizes.tile_bits[0]
    matrix = timing.matrices(N, K, bits, sizes)[0]
    fewer = replace(sizes, calls=max(1, sizes.calls // FEWER_CALLS))
    yield from _time_works(_around(1, K, matrix), 1, K, sizes)
    many = min(MANY_ROWS, N)
    yield from _time_works(_around(many, K, matrix), many, K, fewer)
    yield from _time_works(_whole(matrix), N, K, fewer)


def _around(M: int, K: int, matrix: CodedMatrix) -> Works:
    """What is called with M rows of x, and the bytes that it moves for each of their elements."""
    h = timing.activations(M, K).astype(timing.dtype())
    weight, scale = mx.ones((K,), timing.dtype()), mx.ones((1,), timing.dtype())
    ids = mx.arange(M)
    return {
        "hadamard": (lambda _: kernels.hadamard(h), 4),
        "gelu_mul": (lambda _: kernels.gelu_mul(h, h), 10),
        "residual_norm": (
            lambda _: kernels.residual_norm(h, h, weight, scale, 1e-6, weight),
            12,
        ),
        "embed": (lambda _: kernels.embed(ids, matrix), _coded(matrix) + 4),
        "mx.fast.rms_norm": (lambda _: mx.fast.rms_norm(h, weight, 1e-6), 4),
        "add, for what a launch costs": (lambda _: h + h, 4),
    }


def _whole(matrix: CodedMatrix) -> Works:
    """What is called with a whole matrix, and the bytes that it moves for each weight."""
    x, coded = timing.activations(1, matrix.shape[1]), _coded(matrix)
    return {
        "geglu": (lambda _: kernels.geglu(x, matrix), coded),
        "dequantize": (lambda _: kernels.dequantize(matrix, dtype=timing.dtype()), coded + 2),
        "rotated_weight": (lambda _: kernels.rotated_weight(matrix, dtype=mx.float16), coded + 2),
    }


def _coded(matrix: CodedMatrix) -> float:
    return matrix.bits / 8 + 2 / BLOCK


def _time_works(works: Works, rows: int, columns: int, sizes: Sizes) -> Iterator[Row]:
    turns = {name: timing.calls(work, [None], sizes) for name, (work, _) in works.items()}
    for name, ms in timing.milliseconds(turns, sizes).items():
        speed = works[name][1] * rows * columns / ms / 1e6
        share = speed / timing.bandwidth(sizes)
        yield {"kernel": name, "rows": rows, "ms": ms, "GB/s": speed, "of the bandwidth": share}
