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

from .. import codec, device, expert_kernels, kernels, ops, selftest
from ..activation import Activation, Input
from ..chips import Tile
from ..kernels import QMV_ROWS
from ..matrix import CodedMatrix
from .base import ExpertProduct, Product, reference, reference_geglu

Stock = Callable[[CodedMatrix], Product]
ExpertStock = Callable[[CodedMatrix, int], ExpertProduct]

# The stack that the self-test's matrix is taken for, and which of it each of its rows meets.
TRIED_EXPERTS = 7
TRIED_AT_ONCE = 3


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
        self._tiles = _tiles(matrix)
        self.is_lazy = selftest.is_lazy(kernels.hadamard)
        self._try_kernels(device.activation_dtype())

    def __call__(self, x: Activation) -> mx.array:
        x.check("metal.Metal", self._matrix.shape[1])
        passed, rows = self._passed.get(x.dtype) or self._try_kernels(x.dtype), x.rows
        if passed.few and rows <= QMV_ROWS:
            return few_rows(x, self._matrix, self._tiles[rows])
        if passed.many and QMV_ROWS < rows <= self._qmm_rows:
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
        self._tiles = _tiles(matrix)
        self.is_lazy = self._product.is_lazy
        self._try_geglu(device.activation_dtype())

    def __call__(self, x: Activation) -> mx.array:
        x.check("metal.MetalGateUp", self._matrix.shape[1])
        rows = x.rows
        if rows <= QMV_ROWS and self._try_geglu(x.dtype):
            return few_geglu(x, self._matrix, self._tiles[rows])
        return ops.gelu_mul(*mx.split(self._product(x), 2, axis=-1))

    def _try_geglu(self, dtype: mx.Dtype) -> bool:
        if dtype not in self._passed:
            self._passed[dtype] = passes_with_all_tiles(
                few_geglu, reference_geglu, self._matrix, dtype
            )
        return self._passed[dtype]


class MetalExperts(ExpertProduct):
    """A product with a stack: by gather_qmv, of many rows by gather_qmm, sorted by expert.

    Rows are many where an expert has more than 8 of them on average, so 8 rows of x never are.
    `stock` replaces both if the first fails.
    """

    def __init__(self, matrix: CodedMatrix, experts: int, stock: ExpertStock) -> None:
        kernels.check_matrix("metal.MetalExperts", matrix)
        self._matrix = matrix
        self._count = experts
        self._make_stock = stock
        self._stock: ExpertProduct | None = None
        self._try_kernels(device.activation_dtype())

    def __call__(self, x: Activation, experts: mx.array) -> mx.array:
        x.check("metal.MetalExperts", self._matrix.shape[1])
        passed = self._try_kernels(x.dtype)
        is_many = experts.size > QMV_ROWS * self._count
        if passed.many and is_many:
            return sorted_experts(x, experts, self._matrix, self._count)
        if passed.few:
            rotated = x.rotated(_rotate)
            return expert_kernels.gather_qmv(
                rotated, experts, self._matrix, self._count, dtype=x.dtype
            )
        if self._stock is None:
            self._stock = self._make_stock(self._matrix, self._count)
        return self._stock(x, experts)

    def _try_kernels(self, dtype: mx.Dtype) -> Passed:
        """Return which ways work for x of `dtype`; there is no decoded one."""
        bits, (N, K) = self._matrix.bits, self._matrix.shape
        tile = expert_kernels.gather_tile(bits, N // self._count, K)
        few = selftest.passes(tried_experts, reference_experts, bits, dtype, tile)
        many = selftest.passes(tried_sorted, reference_experts, bits, dtype)
        return Passed(few, many, decoded=False)


def sorted_experts(x: Activation, experts: mx.array, matrix: CodedMatrix, count: int) -> mx.array:
    """Sort the rows by expert, multiply by `expert_kernels.gather_qmm`, and sort back."""
    flat = experts.reshape(-1)
    order = mx.argsort(flat)
    rotated = x.rotated(_rotate)
    rows = rotated.reshape(-1, rotated.shape[-1])[order // experts.shape[-1]]
    starts = (flat < mx.arange(count + 1)[:, None]).sum(axis=-1)
    y = expert_kernels.gather_qmm(rows, starts, matrix, count, dtype=x.dtype)
    return y[mx.argsort(order)].reshape(*experts.shape, y.shape[-1])


def tried_experts(x: mx.array, matrix: CodedMatrix, tile: Tile | None = None) -> mx.array:
    """Multiply by some of a stack that `matrix` is taken for, by `expert_kernels.gather_qmv`."""
    rotated, experts = Activation.of(x).rotated(_rotate), _tried(x)
    return expert_kernels.gather_qmv(
        rotated, experts, matrix, TRIED_EXPERTS, dtype=x.dtype, tile=tile
    )


def tried_sorted(x: mx.array, matrix: CodedMatrix, tile: Tile | None = None) -> mx.array:
    """Do the same by `expert_kernels.gather_qmm`, which has but one tile."""
    return sorted_experts(Activation.of(x), _tried(x), matrix, TRIED_EXPERTS)


def reference_experts(x: mx.array, matrix: CodedMatrix) -> mx.array:
    """Return what `tried_experts` computes, by the twins alone, in float32."""
    rotated = codec.hadamard(x.astype(mx.float32))
    return codec.gather_qmv(rotated, _tried(x), matrix, TRIED_EXPERTS)


def _tried(x: mx.array) -> mx.array:
    pairs = mx.arange(x.shape[0] * TRIED_AT_ONCE) * 5 % TRIED_EXPERTS
    return pairs.astype(mx.uint32).reshape(-1, TRIED_AT_ONCE)


def passes_with_all_tiles(
    path: selftest.Path, twin: selftest.Twin, matrix: CodedMatrix, dtype: mx.Dtype
) -> bool:
    """Return whether a path works with all tiles of 1 to 8 rows, so that all may take it."""
    tiles = dict.fromkeys(_tiles(matrix).values())
    return all(selftest.passes(path, twin, matrix.bits, dtype, tile) for tile in tiles)


def _tiles(matrix: CodedMatrix) -> dict[int, Tile]:
    """Return the tile for each number of rows."""
    counts = range(1, QMV_ROWS + 1)
    return {M: kernels.qmv_tile(matrix.bits, M, *matrix.shape) for M in counts}


def can_embed(bits: int, dtype: mx.Dtype) -> bool:
    """Return whether `kernels.embed` works on this machine."""
    return selftest.passes(rows_of, codec.embed, bits, dtype)


def few_rows(x: Input, matrix: CodedMatrix, tile: Tile | None = None) -> mx.array:
    """Rotate and multiply by `kernels.qmv`."""
    x = Activation.of(x)
    rows, leading = x.rotated_rows(_rotate), x.plain.shape[:-1]
    return kernels.qmv(rows, matrix, dtype=x.dtype, tile=tile, leading=leading)


def few_geglu(x: Input, matrix: CodedMatrix, tile: Tile | None = None) -> mx.array:
    """Rotate and multiply by `kernels.geglu`."""
    x = Activation.of(x)
    rows, leading = x.rotated_rows(_rotate), x.plain.shape[:-1]
    return kernels.geglu(rows, matrix, dtype=x.dtype, tile=tile, leading=leading)


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
    largest = _largest(most, least)
    y = _scaled(rotated, largest) @ kernels.rotated_weight(matrix, dtype=mx.float16).T
    return _unscaled(x.dtype)(y, largest)


@partial(mx.compile, shapeless=True)  # one pass over memory, where every step would be one
def _largest(most: mx.array, least: mx.array) -> mx.array:
    return mx.maximum(mx.maximum(most, -least), 1e-30)


@partial(mx.compile, shapeless=True)
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
