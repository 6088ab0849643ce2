"""The decoded weight, kept in float32 in the rotated basis: 32 bits a weight, the twin's numbers.

It serves small weights, where it is exact and as fast as any other way. It runs in float32 for any
x, because stock bfloat16 is nine times slower on a CPU.

Rows: `mx.matmul` of MLX's own CPU build sums a row in one order for any number of rows. A preloaded
BLAS, and Metal, choose the order by the number of rows.
"""

import mlx.core as mx

from .. import codec
from ..activation import Activation
from ..matrix import CodedMatrix
from .base import ExpertProduct, Product, rotate


class Dense(Product):
    """A matrix product with the decoded weight."""

    def __init__(self, matrix: CodedMatrix) -> None:
        self._weight = codec.rotated_weight(matrix)
        mx.eval(self._weight)

    def __call__(self, x: Activation) -> mx.array:
        x.check("dense.Dense", self._weight.shape[1])
        return (x.rotated(rotate) @ self._weight.T).astype(x.dtype)


class DenseExperts(ExpertProduct):
    """Matrix products with a stack of decoded weights, a row and an expert at a time."""

    def __init__(self, matrix: CodedMatrix, experts: int) -> None:
        weight = codec.rotated_weight(matrix)
        self._stack = weight.reshape(experts, -1, weight.shape[1])
        mx.eval(self._stack)

    def __call__(self, x: Activation, experts: mx.array) -> mx.array:
        x.check("dense.DenseExperts", self._stack.shape[-1])
        rows = x.rotated(rotate)[..., None, None, :]
        y = mx.gather_mm(rows, self._stack.swapaxes(-1, -2), rhs_indices=experts)
        return y[..., 0, :].astype(x.dtype)
