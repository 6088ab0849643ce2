"""The step that compiles every variant of the kernels in use and compares it with its twin."""

import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import mlx.core as mx

from hlwq_mlx.quant import codec, kernels, ops, selftest
from hlwq_mlx.quant.backends import metal
from hlwq_mlx.quant.backends.base import reference, reference_geglu
from hlwq_mlx.quant.chips import Tile
from scripts.mac.sizes import Sizes
from scripts.mac.timing import dtype_name

Row = dict[str, Any]
Trial = Callable[[], bool]


def self_tests(sizes: Sizes) -> Iterator[Row]:
    """Compile every variant in use and compare it with its twin."""
    for bits, dtype in product(sizes.bits, sizes.dtypes):
        for path, twin, tiles in coded_cases(sizes, bits):
            trials: dict[Any, Trial] = {
                tile: partial(selftest.passes, path, twin, bits, dtype, tile) for tile in tiles
            }
            yield _tried(path.__name__, bits, dtype, trials)
    for dtype in sizes.dtypes:
        for kernel, twin, cases in plain_cases(sizes):
            trials = {
                case: partial(selftest.passes_on, kernel, twin, case, dtype) for case in cases
            }
            yield _tried(kernel.__name__, None, dtype, trials)


def coded_cases(
    sizes: Sizes, bits: int
) -> Iterator[tuple[selftest.Path, selftest.Twin, list[Tile | None]]]:
    """The ways through the kernels with a matrix, and every tile that they take."""
    cuts = product(sizes.few, sizes.outputs, sizes.widths)
    tiles = dict.fromkeys(kernels.qmv_tile(bits, M, N, K) for M, N, K in cuts)
    yield metal.few_rows, reference, [*tiles]
    yield metal.few_geglu, reference_geglu, [*tiles]
    yield metal.many_rows, reference, [None]
    yield metal.decoded, reference, [None]
    yield metal.rows_of, codec.embed, [None]


def plain_cases(
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
    faults = [found for variant, trial in trials.items() if (found := fault(variant, trial))]
    return {
        "path": name,
        "bits": bits,
        "dtype": dtype_name(dtype),
        "variants": len(trials),
        "faults": len(faults),
        "first fault": faults[0] if faults else "",
        "s": time.perf_counter() - begun,
    }


def fault(variant: Any, trial: Trial) -> str:
    """Return a variant that fails its trial, with the warnings; an empty text if it passes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if trial():
            return ""
    return f"{variant}: " + " ".join(str(warning.message) for warning in caught)
