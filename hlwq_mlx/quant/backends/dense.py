"""The decoded weight, kept in float32 in the rotated basis: 32 bits a weight, the twin's numbers.

For small weights, where it is exact and as fast as any other way. Runs in float32 whatever x is: on
a CPU stock bfloat16 is nine times slower.

Rows: `mx.matmul` of MLX's own CPU build takes the sums of a row in one order for any number of
rows. A BLAS that is preloaded in its place, and Metal, choose by the number of rows.
"""

import mlx.core as mx

from .. import codec
from ..activation import Activation
from ..matrix import CodedMatrix
from .base import Product, rotate


class Dense(Product):
    """A matrix product with the decoded weight."""

    def __init__(self, matrix: CodedMatrix) -> None:
        self._weight = codec.rotated_weight(matrix)
        mx.eval(self._weight)

    def __call__(self, x: Activation) -> mx.array:
        x.check("dense.Dense", self._weight.shape[1])
        return (x.rotated(rotate) @ self._weight.T).astype(x.dtype)
