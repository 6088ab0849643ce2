"""The means of blocks, stored beside the codes of what is left of the weights without them.

Rotated, a block's mean is its first coordinate, sqrt(128) times as large. With a strong mean that
lies beyond every table, which cuts it off (spec: data.md, finding 4). Such a matrix is coded as
norm * code + mean, an affine code of 0.125 bits a weight more. A product then adds the means times
the first coordinates of rotated x.

Rows: few rows are multiplied one by one, so that each sums as it would alone.
N rows, K columns padded to a multiple of 128.
"""

import math

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError
from .activation import Activation
from .backends.base import FEW_ROWS, ExpertProduct, Product, rotate
from .backends.native.library import Weight, floats, native_library
from .packing import BLOCK

Floats = NDArray[np.float32]
_SCALE = math.sqrt(BLOCK)


def part(weight: Floats) -> tuple[NDArray[np.float16], Floats]:
    """Take the means of blocks out of a weight.

    Deviations are from the means as float16 rounds them, so that their codes make that good.

    Shapes: weight [N, columns] -> means [N, K/128], deviations [N, columns].
    Raises: ShapeError when float16 cannot hold a mean.
    """
    columns = weight.shape[1]
    starts = np.arange(0, columns, BLOCK)
    lengths = np.diff(starts, append=columns)
    sums = np.add.reduceat(weight, starts, axis=1)
    with np.errstate(over="ignore"):
        means = (sums / lengths).astype(np.float16)
    if not np.isfinite(means).all():
        raise ShapeError(
            "[means.part] needed finite weights with means of blocks up to 65504, got others. "
            "Look for infinities and NaN, or scale the weight down."
        )
    return means, weight - spread(means, columns)


def spread(means: NDArray[np.float16], columns: int) -> Floats:
    """Give every column the mean of its block: [N, K/128] -> [N, columns]."""
    return np.repeat(means.astype(np.float32), BLOCK, axis=1)[:, :columns]


def add_to_rows(rows: mx.array, means: mx.array, ids: mx.array) -> mx.array:
    """Add the means of some rows of a weight to them: rows [..., columns], ids [...]."""
    own = mx.repeat(means[ids].astype(mx.float32), BLOCK, axis=-1)
    return (rows.astype(mx.float32) + own[..., : rows.shape[-1]]).astype(rows.dtype)


class WithMeans(Product):
    """A product with the codes of a matrix and with the means of its blocks, [N, K/128]."""

    def __init__(self, product: Product, means: mx.array) -> None:
        self._product = product
        self._means = means
        self._library = native_library()
        self._weight = Weight.plain(means) if self._library else None
        self.is_lazy = product.is_lazy

    def __call__(self, x: Activation) -> mx.array:
        y = self._product(x)
        return (y.astype(mx.float32) + self._multiply(x)).astype(y.dtype)

    def _multiply(self, x: Activation) -> mx.array:
        first = _first_coordinates(x)
        if self._library and self._weight:
            found = self._library.multiply(self._weight, floats(first))
            return mx.array(found.reshape(*first.shape[:-1], -1))
        means = self._means.astype(mx.float32).T
        if x.rows > FEW_ROWS:
            return first @ means
        rows = first.reshape(-1, 1, first.shape[-1])
        products = [row @ means for row in rows]
        return mx.concatenate(products).reshape(*first.shape[:-1], -1)


class ExpertsWithMeans(ExpertProduct):
    """A product with the codes of a stack and the means of its blocks, [experts * N, K/128]."""

    def __init__(self, product: ExpertProduct, means: mx.array, experts: int) -> None:
        self._product = product
        self._means = means.reshape(experts, -1, means.shape[-1])
        self._library = native_library()
        self._weight = Weight.plain(means) if self._library else None
        self.is_lazy = product.is_lazy

    def __call__(self, x: Activation, experts: mx.array) -> mx.array:
        y = self._product(x, experts)
        return (y.astype(mx.float32) + self._multiply(x, experts)).astype(y.dtype)

    def _multiply(self, x: Activation, experts: mx.array) -> mx.array:
        first = _first_coordinates(x)
        if self._library and self._weight:
            chosen = np.asarray(experts.astype(mx.uint32)).reshape(-1, experts.shape[-1])
            found = self._library.multiply_experts(
                self._weight, floats(first), np.ascontiguousarray(chosen), len(self._means)
            )
            return mx.array(found.reshape(*experts.shape, -1))
        means = self._means
        if x.rows <= FEW_ROWS:  # they meet a small part of the stack
            means = means[experts.reshape(-1)]
            experts = mx.arange(experts.size, dtype=mx.uint32).reshape(experts.shape)
        stack = means.astype(mx.float32).swapaxes(-1, -2)
        return mx.gather_mm(first[..., None, None, :], stack, rhs_indices=experts)[..., 0, :]


def _first_coordinates(x: Activation) -> mx.array:
    """Return the sum of each block of x: [..., K/128]."""
    return x.rotated(rotate)[..., ::BLOCK] * _SCALE
