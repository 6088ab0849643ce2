"""Choose the backend of each coded weight, and prepare it before the first product.

With Metal our kernels run on the codes themselves, on a CPU the native library does. Where neither
can, a small weight is decoded and a larger one becomes an affine image, for stock MLX. Layers that
only look up rows choose here too. Each backend is a file beside this one.

N rows, K columns.
"""

from collections.abc import Callable

import mlx.core as mx

from .. import codec, device, kernels
from ..chips import MOST_TOKENS
from ..matrix import CodedMatrix
from ..packing import BLOCK
from . import metal
from .affine import DECODED_ROWS, FITTED_GROUP, Affine, AffineExperts
from .base import FEW_ROWS, ExpertProduct, GateUp, Product
from .dense import Dense, DenseExperts
from .native.library import native_library
from .native.product import Native, NativeExperts, NativeGateUp, NativeRows

DENSE_WEIGHTS = 1 << 22  # 16 MiB in float32

Rows = Callable[[mx.array], mx.array]


def prepare(matrix: CodedMatrix) -> Product:
    """Return the product with a matrix, its kernels tried or its image made.

    Raises: ShapeError when an array does not fit the others.
    """
    matrix.check("choose.prepare")
    if _is_for_kernels(matrix):
        return metal.Metal(matrix, prepare_stock)
    native = native_library()
    return Native(matrix, native) if native else prepare_stock(matrix)


def prepare_gate_up(matrix: CodedMatrix) -> Product:
    """Return the product with gate above up that gives gelu(gate) * up.

    Raises: ShapeError when an array does not fit the others or the number of rows is odd.
    """
    matrix.check("choose.prepare_gate_up")
    matrix.check_halves("choose.prepare_gate_up")
    if _is_for_kernels(matrix):
        return metal.MetalGateUp(matrix, prepare_stock)
    native = native_library()
    return NativeGateUp(matrix, native) if native else GateUp(prepare_stock(matrix))


def prepare_experts(matrix: CodedMatrix, experts: int) -> ExpertProduct:
    """Return the product with a stack of `experts` matrices, whose rows follow each other.

    Raises: ShapeError when an array does not fit the others.
    """
    matrix.check("choose.prepare_experts")
    if _is_for_kernels(matrix):
        return metal.MetalExperts(matrix, experts, prepare_stock_experts)
    native = native_library()
    if native:
        return NativeExperts(matrix, experts, native)
    return prepare_stock_experts(matrix, experts)


def prepare_rows(matrix: CodedMatrix) -> Rows:
    """Return a function from ids [...] to those rows of a matrix, [..., K] of activation_dtype().

    Raises: ShapeError when an array does not fit the others.
    """
    matrix.check("choose.prepare_rows")
    dtype = device.activation_dtype()
    if _is_for_kernels(matrix) and metal.can_embed(matrix.bits, dtype):
        return lambda ids: kernels.embed(ids, matrix, dtype=dtype)
    native = native_library()
    if native:
        return NativeRows(matrix, native)
    return lambda ids: codec.embed(ids, matrix).astype(dtype)


def prepare_stock(matrix: CodedMatrix) -> Product:
    """Return the product by stock MLX."""
    return (Dense if _is_small(matrix) else Affine)(matrix)


def prepare_stock_experts(matrix: CodedMatrix, experts: int) -> ExpertProduct:
    """Return the product with a stack by stock MLX."""
    return (DenseExperts if _is_small(matrix) else AffineExperts)(matrix, experts)


def steady_rows() -> int:
    """Return among how many rows a row of any product has the bits that it has alone."""
    return FEW_ROWS if device.has_metal() else DECODED_ROWS - 1


def tokens_a_pass(bits: int) -> int:
    """Return how many tokens cost about what one does, of a model whose codes have `bits` bits.

    With Metal, as many as the chip multiplies while memory delivers the weights, by counts of
    instructions or as measured. No count is made for a CPU: there, as many as a tile takes.
    """
    return device.chip().tokens_a_pass[bits - 1] if device.has_metal() else MOST_TOKENS


def prepared_bytes(weights: int, *, has_kernels: bool) -> int:
    """Return how many bytes `prepare` adds to the codes of that many weights.

    Kernels multiply by the codes themselves, so they add none.
    """
    if has_kernels:
        return 0
    if weights <= DENSE_WEIGHTS:
        return 4 * weights
    return weights + 2 * 4 * (weights // FITTED_GROUP)  # levels, and scales and biases, at most


def _is_small(matrix: CodedMatrix) -> bool:
    return matrix.norms.size * BLOCK <= DENSE_WEIGHTS


def _is_for_kernels(matrix: CodedMatrix) -> bool:
    return device.has_metal() and kernels.can_address(matrix)
