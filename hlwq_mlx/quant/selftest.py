"""Try a kernel on this machine before anything is computed with it.

The kernels were written where no Metal was: each compiled variant multiplies a small random matrix
first and is compared with its twin on the CPU. One that cannot be compiled, or is wrong, is
reported once and never used. Not a test of the kernels: that is tests/test_kernels.py.
"""

import warnings
from collections.abc import Callable
from functools import cache, partial

import mlx.core as mx

from . import codec, kernels
from .kernels import Coded, Tile
from .packing import BLOCK, UNIT

# |kernel - twin| / |twin|: what rounding to the result's dtype, and to the tables' or tiles'
# float16, can be; a kernel that is wrong is wrong by its whole size.
BOUND = 1e-2

ROWS, COLUMNS = 70, 512  # no whole number of tiles, and every number of lanes


@cache
def is_sound(kernel: str, bits: int, dtype: mx.Dtype, tile: Tile | None = None) -> bool:
    """Say whether a variant of a kernel works here; warn if it does not, the first time.

    `dtype` is that of the result; qmv and geglu have a tile.
    """
    try:
        error = _error(kernel, bits, dtype, tile)
        fault = "" if error <= BOUND else f"is off by {error:.3g} of the result"
    except (RuntimeError, ValueError) as exc:
        fault = f"fails: {exc}"
    if fault:
        warnings.warn(
            f"[selftest] the Metal kernel {kernel} with {bits} bits {fault}. A slower path is "
            "used in its place; please report this with your chip and macOS version.",
            RuntimeWarning,
            stacklevel=2,
        )
    return not fault


def _error(kernel: str, bits: int, dtype: mx.Dtype, tile: Tile | None) -> float:
    matrix = random_matrix(bits)
    if tile is not None:
        x = _normal(tile.tokens, COLUMNS)
        run: Callable[..., mx.array] = partial(getattr(kernels, kernel), x, tile=tile)
    elif kernel == "qmm":
        x = _normal(33, COLUMNS)
        run = partial(kernels.qmm, x)
    elif kernel == "embed":
        x = mx.array([3, ROWS - 1, 0])
        run = partial(kernels.embed, x)
    else:
        run = kernels.rotated_weight
    got = run(*matrix, dtype=dtype)
    mx.eval(got)
    with mx.stream(mx.cpu):
        twin = getattr(codec, kernel)
        expected = twin(*matrix) if run is kernels.rotated_weight else twin(x, *matrix)
        difference = mx.linalg.norm(got.astype(mx.float32) - expected)
        return float(difference / mx.linalg.norm(expected))
