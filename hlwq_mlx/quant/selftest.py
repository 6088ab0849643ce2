"""Try each path through the Metal kernels on this machine before anything is computed with it.

The kernels were written on a machine without Metal. When a product is prepared, each compiled
variant that it may run multiplies a small random matrix, and the result is compared with its twin
on the CPU. A variant that does not compile, or is wrong, is reported once and never used. The tests
of the kernels are in tests/quant/test_kernels.py.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial

import mlx.core as mx
import numpy as np

from . import codec
from .chips import Tile
from .matrix import CodedMatrix
from .packing import BLOCK, UNIT

# |path - twin| / |twin|: more than rounding to bfloat16 and to tiles of float16, and far less than
# what a kernel is off by that mixes up rows, lanes or codes.
BOUND = 1e-2

ROWS, COLUMNS = 70, 512  # no whole number of tiles, and a row for every number of lanes
MANY_TOKENS = 33

Path = Callable[[mx.array, CodedMatrix, Tile | None], mx.array]
Twin = Callable[[mx.array, CodedMatrix], mx.array]
Kernel = Callable[..., Sequence[mx.array]]
Arguments = tuple[tuple[int, ...] | float | None, ...]


@cache
def passes(path: Path, twin: Twin, bits: int, dtype: mx.Dtype, tile: Tile | None = None) -> bool:
    """Return whether a path works here for x of `dtype`; warn the first time if it does not.

    Without a tile the path takes any number of rows; the twin of `embed` takes ids.
    """
    what = f"{path.__name__} at {bits} bits in {dtype}"
    return _is_right(what, partial(_error, path, twin, bits, dtype, tile))


@cache
def passes_on(kernel: Kernel, twin: Kernel, arguments: Arguments, dtype: mx.Dtype) -> bool:
    """Return whether a kernel without a coded matrix works, by arguments of these shapes."""
    what = f"{kernel.__name__} on {arguments} in {dtype}"
    return _is_right(what, partial(_error_on, kernel, twin, arguments, dtype))


@cache
def is_lazy(kernel: Callable[[mx.array], mx.array]) -> bool:
    """Return whether a kernel reads its input when its result is evaluated, not when it is called.

    One that does not work is not lazy. Zeros stay zeros, whatever sums the kernel makes of them.
    """
    x = mx.array(np.zeros((1, BLOCK), np.float32))
    try:
        y = kernel(x)
        np.asarray(x)[...] = 1
        return bool(y.any().item())
    except (RuntimeError, ValueError):
        return False


def forget() -> None:
    """Forget all results, since tests and rehearsals change where kernels run."""
    for known in (passes, passes_on, is_lazy):
        known.cache_clear()


def _is_right(what: str, error_of: Callable[[], float]) -> bool:
    try:
        error = error_of()
        fault = "" if error <= BOUND else f"is off by {error:.3g} of the result"
    except (RuntimeError, ValueError) as exc:
        fault = f"fails: {exc}"
    if fault:
        warnings.warn(
            f"[selftest] needed {what} to work on this GPU, but it {fault}. A slower path takes "
            "its place; please report this with the name of your chip and the version of macOS.",
            RuntimeWarning,
            stacklevel=3,
        )
    return not fault


def _error(path: Path, twin: Twin, bits: int, dtype: mx.Dtype, tile: Tile | None) -> float:
    with mx.stream(mx.cpu):
        matrix = random_matrix(bits)
        if twin is codec.embed:
            x = mx.array([3, ROWS - 1, 0])
        else:
            tokens = MANY_TOKENS if tile is None else tile.tokens
            x = mx.random.normal((tokens, COLUMNS), key=mx.random.key(1)).astype(dtype)
        mx.eval(x, *matrix.arrays)
        expected = twin(x, matrix).astype(mx.float32)
    return _distance(path(x, matrix, tile), expected)


def _error_on(kernel: Kernel, twin: Kernel, arguments: Arguments, dtype: mx.Dtype) -> float:
    with mx.stream(mx.cpu):
        given = [
            mx.random.normal(value, key=mx.random.key(index)).astype(dtype)
            if isinstance(value, tuple)
            else value
            for index, value in enumerate(arguments)
        ]
        mx.eval([value for value in given if isinstance(value, mx.array)])
        expected = [output.astype(mx.float32) for output in twin(*given)]
    return max(map(_distance, kernel(*given), expected))


def _distance(got: mx.array, expected: mx.array) -> float:
    mx.eval(got)
    with mx.stream(mx.cpu):
        difference = mx.linalg.norm(got.astype(mx.float32) - expected)
        return float(difference / mx.linalg.norm(expected))


def random_matrix(bits: int) -> CodedMatrix:
    """Return a small matrix of random codes; any words are codes of some matrix."""
    codes, norms = mx.random.split(mx.random.key(bits))
    return CodedMatrix(
        # The factor, a prime below 2**16, spreads 16 random bits over all 32 of a word.
        mx.random.randint(0, 1 << 16, (ROWS, COLUMNS * bits // UNIT), mx.uint32, codes) * 65521,
        mx.random.uniform(0.5, 1.5, (ROWS, COLUMNS // BLOCK), mx.float16, norms),
        mx.linspace(-3, 3, max(8, 1 << bits)),
        bits,
    )
