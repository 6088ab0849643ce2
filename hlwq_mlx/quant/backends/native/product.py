"""The codes themselves, multiplied by the processor's own instructions: `bits` bits a weight.

Every product is computed within the call, in float32 for any x.

Rows: a row's sums are taken in one order, whatever the number of rows, threads or tiles.
"""

import mlx.core as mx
import numpy as np

from ...activation import Activation
from ...matrix import CodedMatrix
from ..base import ExpertProduct, Product
from .library import Floats, Library, Weight, floats


class Native(Product):
    """A product with the codes of a matrix."""

    is_lazy = False
    _gated = False

    def __init__(self, matrix: CodedMatrix, library: Library) -> None:
        self._library = library
        self.weight = Weight.coded(matrix)

    def __call__(self, x: Activation) -> mx.array:
        x.check("native.Native", self.weight.columns)
        y = self._library.multiply(self.weight, floats(x.plain), gated=self._gated)
        return _array(y, x, y.shape[-1])


class NativeGateUp(Native):
    """A product with gate|up that returns gelu(gate) * up: [..., K] -> [..., N/2]."""

    _gated = True


class NativeExperts(ExpertProduct):
    """A product with the codes of a stack; an expert's rows are decoded once for all."""

    is_lazy = False

    def __init__(self, matrix: CodedMatrix, experts: int, library: Library) -> None:
        self._library = library
        self._count = experts
        self._weight = Weight.coded(matrix)

    def __call__(self, x: Activation, experts: mx.array) -> mx.array:
        x.check("native.NativeExperts", self._weight.columns)
        chosen = np.asarray(experts.astype(mx.uint32)).reshape(-1, experts.shape[-1])
        rows = floats(x.plain)
        y = self._library.multiply_experts(
            self._weight, rows, np.ascontiguousarray(chosen), self._count
        )
        return _array(y, x, *y.shape[1:])


class NativeRows:
    """Rows of a coded matrix, rotated back."""

    def __init__(self, matrix: CodedMatrix, library: Library) -> None:
        self._library = library
        self._weight = Weight.coded(matrix)

    def __call__(self, ids: mx.array) -> mx.array:
        """Look up: integer ids [...] -> [..., K]."""
        flat = np.asarray(ids).astype(np.int64).reshape(-1)
        rows = self._library.look_up(self._weight, np.ascontiguousarray(flat))
        return mx.array(rows.reshape(*ids.shape, -1))


def _array(y: Floats, x: Activation, *shape: int) -> mx.array:
    # Shaped by numpy: an array of MLX's graph would make the next product wait for MLX's thread.
    return mx.array(y.reshape(*x.plain.shape[:-1], *shape)).astype(x.dtype)
