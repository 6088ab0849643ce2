"""Choose how products with a coded weight run, and do their work ahead of the first one.

Where MLX has Metal our kernels run on the codes themselves. Elsewhere, and for matrices they cannot
address, a small weight is decoded and a larger one becomes an affine image. Layers that only look
rows up choose here, too. Not the ways themselves: each is a file beside this one.

N rows, K columns.
"""

from collections.abc import Callable

import mlx.core as mx

from .. import codec, device, kernels
from ..matrix import CodedMatrix
from ..packing import BLOCK
from . import metal
from .affine import FITTED_GROUP, Affine
from .base import GateUp, Product
from .dense import Dense

DENSE_WEIGHTS = 1 << 22  # 16 MiB in float32

Rows = Callable[[mx.array], mx.array]


def prepare(matrix: CodedMatrix) -> Product:
    """Return the product with a matrix, its kernels tried or its image made.

    Raises: ShapeError when an array does not fit the others.
    """
    matrix.check("choose.prepare")
    return metal.Metal(matrix, stock) if _is_for_kernels(matrix) else stock(matrix)


def prepare_gate_up(matrix: CodedMatrix) -> Product:
    """Return the product with gate above up that gives gelu(gate) * up.

    Raises: ShapeError when an array does not fit the others or the number of rows is odd.
    """
    matrix.check("choose.prepare_gate_up")
    matrix.check_halves("choose.prepare_gate_up")
    return metal.MetalGateUp(matrix, stock) if _is_for_kernels(matrix) else GateUp(stock(matrix))


def prepare_rows(matrix: CodedMatrix) -> Rows:
    """Return a function from ids [...] to those rows of a matrix, [..., K] of activation_dtype().

    Raises: ShapeError when an array does not fit the others.
    """
    matrix.check("choose.prepare_rows")
    dtype = device.activation_dtype()
    if _is_for_kernels(matrix) and metal.can_embed(matrix.bits, dtype):
        return lambda ids: kernels.embed(ids, matrix, dtype=dtype)
    return lambda ids: codec.embed(ids, matrix).astype(dtype)


def stock(matrix: CodedMatrix) -> Product:
    """Return the product by stock MLX."""
    return (Dense if matrix.norms.size * BLOCK <= DENSE_WEIGHTS else Affine)(matrix)


def prepared_bytes(weights: int, *, has_kernels: bool) -> int:
    """Return what `prepare` makes of that many coded weights takes, beside their codes.

    Kernels multiply by the codes themselves, and take nothing.
    """
    if has_kernels:
        return 0
    if weights <= DENSE_WEIGHTS:
        return 4 * weights
    return weights + 2 * 4 * (weights // FITTED_GROUP)  # levels, and scales and biases, at most


def _is_for_kernels(matrix: CodedMatrix) -> bool:
    return device.has_metal() and kernels.can_address(matrix)
