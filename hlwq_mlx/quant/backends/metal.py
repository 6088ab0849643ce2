"""The codes themselves, multiplied by our Metal kernels: exactly `bits` bits a weight.

The number of rows and the chip choose the kernel, among those that passed selftest when the product
was prepared: qmv for 1 to 8 rows, qmm up to the chip's qmm_rows, and beyond them `mx.matmul` by the
weight decoded to float16. A kernel that fails is replaced by the next way, and the last by stock
MLX.

Rows: a row has the same bits among 1 to 8 rows, because the order of qmv's sums depends on K alone
and its tiles are used either all or not at all. The same holds for 9 to qmm_rows rows, where qmm
sums in another order. Beyond, `mx.matmul` chooses the order.

M rows of x, N rows and K columns of the matrix.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import mlx.core as mx

from .. import codec, device, kernels, ops, selftest
from ..activation import Activation, Input
from ..chips import Tile
from ..kernels import QMV_ROWS
from ..matrix import CodedMatrix
from .base import Product, reference, reference_geglu

Stock = Callable[[CodedMatrix], Product]


class Passed(NamedTuple):
    """Which ways to multiply work on this machine, for x of one dtype."""

    few: bool
    many: bool
    decoded: bool


class Metal(Product):
    """A product by kernels; `stock` makes the product that replaces them if they fail."""

    def __init__(self, matrix: CodedMatrix, stock: Stock) -> None:
        kernels.check_matrix("metal.Metal", matrix)
        self._matrix = matrix
        self._make_stock = stock
        self._stock: Product | None = None
        self._qmm_rows = device.chip().qmm_rows
        self._passed: dict[mx.Dtype, Passed] = {}
        self._try_kernels(device.activation_dtype())

    def __call__(self, x: Activation) -> mx.array:
        x.check("metal.Metal", self._matrix.shape[1])
        passed = self._try_kernels(x.dtype)
        if passed.few and x.rows <= QMV_ROWS:
            return few_rows(x, self._matrix)
        if passed.many and QMV_ROWS < x.rows <= self._qmm_rows:
            return many_rows(x, self._matrix)
        return decoded(x, self._matrix) if self._stock is None else self._stock(x)

    def _try_kernels(self, dtype: mx.Dtype) -> Passed:
        """Return which ways work for x of `dtype`; prepare stock MLX if the last does not."""
        if dtype not in self._passed:
            bits = self._matrix.bits
            self._passed[dtype] = Passed(
                passes_with_all_tiles(few_rows, reference, self._matrix, dtype),
                selftest.passes(many_rows, reference, bits, dtype),
                selftest.passes(decoded, reference, bits, dtype),
            )
            if not self._passed[dtype].decoded and self._stock is None:
                self._stock = self._make_stock(self._matrix)
        return self._passed[dtype]


class MetalGateUp(Product):
    """A product with gate|up that returns gelu(gate) * up: [..., K] -> [..., N/2]."""

    def __init__(self, matrix: CodedMatrix, stock: Stock) -> None:
        self._matrix = matrix
        self._product = Metal(matrix, stock)
        self._passed: dict[mx.Dtype, bool] = {}
        self._try_geglu(device.activation_dtype())

    def __call__(self, x: Activation) -> mx.array:
        x.check("metal.MetalGateUp", self._matrix.shape[1])
        if x.rows <= QMV_ROWS and self._try_geglu(x.dtype):
            return few_geglu(x, self._matrix)
        return ops.gelu_mul(*mx.split(self._product(x), 2, axis=-1))

    def _try_geglu(self, dtype: mx.Dtype) -> bool:
        if dtype not in self._passed:
            self._passed[dtype] = passes_with_all_tiles(
                few_geglu, reference_geglu, self._matrix, dtype
            )
        return self._passed[dtype]


def passes_with_all_tiles(
    path: selftest.Path, twin: selftest.Twin, matrix: CodedMatrix, dtype: mx.Dtype
) -> bool:
    """Return whether a path works with all tiles of 1 to 8 rows, so that all may take it."""
    counts = range(1, QMV_ROWS + 1)
    tiles = dict.fromkeys(kernels.qmv_tile(matrix.bits, M, *matrix.shape) for M in counts)
    return all(selftest.passes(path, twin, matrix.bits, dtype, tile) for tile in tiles)


def can_embed(bits: int, dtype: mx.Dtype) -> bool:
    """Return whether `kernels.embed` works on this machine."""
    return selftest.passes(rows_of, codec.embed, bits, dtype)


def few_rows(x: Input, matrix: CodedMatrix, tile: Tile | None = None) -> mx.array:
    """Rotate and multiply by `kernels.qmv`."""
    x = Activation.of(x)
    return kernels.qmv(x.rotated(_rotate), matrix, dtype=x.dtype, tile=tile)


def few_geglu(x: Input, matrix: CodedMatrix, tile: Tile | None = None) -> mx.array:
    """Rotate and multiply by `kernels.geglu`."""
    x = Activation.of(x)
    return kernels.geglu(x.rotated(_rotate), matrix, dtype=x.dtype, tile=tile)


def many_rows(x: Input, matrix: CodedMatrix, tile: Tile | None = None) -> mx.array:
    """Rotate and multiply by `kernels.qmm`, which has but one tile."""
    x = Activation.of(x)
    return kernels.qmm(x.rotated(_rotate), matrix, dtype=x.dtype)


def decoded(x: Input, matrix: CodedMatrix, tile: Tile | None = None) -> mx.array:
    """Rotate, decode the weight to float16 and multiply by it with `mx.matmul`.

    Rows are scaled to at most 1, so that float16 holds them and the result.
    """
    x = Activation.of(x)
    rotated = x.rotated(_rotate)
    # Of abs(rotated) there would be a copy.
    most, least = (each(rotated, axis=-1, keepdims=True) for each in (mx.max, mx.min))
    largest = mx.maximum(mx.maximum(most, -least), 1e-30)
    y = _scaled(rotated, largest) @ kernels.rotated_weight(matrix, dtype=mx.float16).T
    return _unscaled(x.dtype)(y, largest)


@partial(mx.compile, shapeless=True)  # one pass over memory, where every step would be one
def _scaled(rotated: mx.array, largest: mx.array) -> mx.array:
    return (rotated / largest).astype(mx.float16)


@cache
def _unscaled(dtype: mx.Dtype) -> Callable[[mx.array, mx.array], mx.array]:
    def unscale(y: mx.array, largest: mx.array) -> mx.array:
        return (y.astype(mx.float32) * largest).astype(dtype)

    unscaled: Callable[[mx.array, mx.array], mx.array] = mx.compile(unscale, shapeless=True)
    return unscaled


def rows_of(ids: mx.array, matrix: CodedMatrix, tile: Tile | None = None) -> mx.array:
    """Look up rows by `kernels.embed`."""
    return kernels.embed(ids, matrix, dtype=device.activation_dtype())


def _rotate(x: mx.array) -> mx.array:
    return kernels.hadamard(x, dtype=mx.float32)
