"""The protocol of a backend: a product that is prepared before its first call.

A row of a result has the same bits alone and among up to FEW_ROWS rows, because it depends on its
own row of x only. Each backend's file says why that holds for it, and from how many rows on its
sums are taken in another order.

M rows of x, N rows and K columns of the matrix.
"""

from abc import ABC, abstractmethod

import mlx.core as mx

from .. import codec, ops
from ..activation import Activation
from ..kernels import QMV_ROWS
from ..matrix import CodedMatrix

FEW_ROWS = QMV_ROWS


class Prepared:
    """A coded weight, ready to be multiplied by.

    `is_lazy`: a call with a few rows only adds to MLX's graph, so that a step can be prepared while
    another is computed. A product that evaluates within the call sets it to False.
    """

    is_lazy = True


class Product(Prepared, ABC):
    """One weight by which every row is multiplied."""

    @abstractmethod
    def __call__(self, x: Activation) -> mx.array:
        """Multiply: x [..., K], neither rotated nor cast -> [..., N] of x's dtype.

        Raises: ShapeError when x does not fit.
        """


class GateUp(Product):
    """A product with gate|up that returns gelu(gate) * up: [..., K] -> [..., N/2]."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self.is_lazy = product.is_lazy

    def __call__(self, x: Activation) -> mx.array:
        return ops.gelu_mul(*mx.split(self._product(x), 2, axis=-1))


class ExpertProduct(Prepared, ABC):
    """A stack of weights of one shape, of which each row is multiplied by a few."""

    @abstractmethod
    def __call__(self, x: Activation, experts: mx.array) -> mx.array:
        """Multiply: x [..., K], neither rotated nor cast, experts uint32 [..., k] -> [..., k, N].

        The result keeps x's dtype. No row depends on another, however many there are.
        Raises: ShapeError when x does not fit.
        """


def reference(x: mx.array, matrix: CodedMatrix) -> mx.array:
    """Return what every product computes, by the twins alone, in float32."""
    return codec.qmv(codec.hadamard(x.astype(mx.float32)), matrix)


def reference_geglu(x: mx.array, matrix: CodedMatrix) -> mx.array:
    """Return what every product with gate|up computes, by the twins alone, in float32."""
    return codec.geglu(codec.hadamard(x.astype(mx.float32)), matrix)


def rotate(x: mx.array) -> mx.array:
    """Rotate to float32, whatever x is, by stock MLX."""
    return codec.hadamard(x.astype(mx.float32))
