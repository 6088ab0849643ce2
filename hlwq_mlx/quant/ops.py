"""The operations between the products of a layer: the residual stream with its norms, and the gate.

Each has one definition, in codec. `PLAIN` computes it by stock MLX. `fused_ops` returns kernels,
which also rotate the input of the next layers, where they run and pass their self-test. The
products themselves are in backends.

K columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from . import codec, device, kernels, selftest
from .activation import Activation, Input
from .backends.native.library import Library, Norm, floats, native_library


@partial(mx.compile, shapeless=True)  # a few launches, where every step of gelu would be one
def gelu_mul(gate: mx.array, up: mx.array) -> mx.array:
    """Return gelu(gate) * up with the tanh approximation; float32 inside, rounded to gate's dtype.

    Shapes: gate, up [..., K] -> [..., K].
    """
    return codec.gelu_mul_float32(gate, up).astype(gate.dtype)


def _residual_norm_by_mlx(x: mx.array, *others: Any) -> tuple[mx.array, Activation]:
    h, normed = codec.residual_norm_float32(x, *others)
    return h, Activation(normed.astype(x.dtype))


def residual_norm(
    x: mx.array,
    update: mx.array,
    norm: nn.RMSNorm,
    following: nn.RMSNorm | None = None,
    scale: mx.array | None = None,
    *,
    run: Callable[..., tuple[mx.array, Activation]] = _residual_norm_by_mlx,
) -> tuple[mx.array, Activation]:
    """Return h = (x + norm(update)) * scale, and h normed by the following norm.

    Without a following norm the second is h itself. Computes in float32; `run` is what computes it.

    Shapes: x, update [..., K], scale [1] -> twice [..., K].
    """
    next_weight = None if following is None else following["weight"]
    return run(x, update, norm["weight"], scale, norm.eps, next_weight)


def norm_input(x: mx.array, norm: nn.RMSNorm) -> Activation:
    """Return x normed, as products take it: [..., K] -> [..., K]."""
    return Activation(norm(x))


def cap_scores_later(scores: mx.array, cap: float) -> mx.array:
    """Return cap * tanh(scores / cap) as a graph of MLX's: float32 [...] -> [...]."""
    return mx.tanh(scores / cap) * cap


def cap_scores(scores: mx.array, cap: float) -> mx.array:
    """Return cap * tanh(scores / cap): float32 [...] -> [...]."""
    library = native_library()
    if library is None:
        return cap_scores_later(scores, cap)
    return mx.array(library.cap_scores(floats(scores), cap).reshape(scores.shape))


@dataclass(frozen=True)
class Ops:
    """The operations as one layer runs them."""

    residual_norm: Callable[..., tuple[mx.array, Activation]] = residual_norm
    gelu_mul: Callable[[mx.array, mx.array], Input] = gelu_mul
    norm: Callable[[mx.array, nn.RMSNorm], Activation] = norm_input


PLAIN = Ops()


def fused_ops(residual_columns: int, eps: float, gelu_columns: int) -> Ops:
    """Return the operations of one layer, natively or by kernels that pass their self-test.

    A count of 0 columns means that the layer has no such operation.
    """
    library = native_library()
    if library:
        run = partial(_residual_norm_natively, library)
        return Ops(
            partial(residual_norm, run=run),
            partial(_gelu_mul_natively, library),
            partial(_norm_natively, library),
        )
    if not device.has_metal():
        return PLAIN
    dtype = device.activation_dtype()
    has_residual = kernels.can_residual_norm(residual_columns) and all(
        selftest.passes_on(kernels.residual_norm, codec.residual_norm, case, dtype)
        for case in residual_norm_cases(residual_columns, eps)
    )
    has_gelu = kernels.can_rotate(gelu_columns) and selftest.passes_on(
        kernels.gelu_mul, codec.gelu_mul, gelu_mul_case(gelu_columns), dtype
    )
    return Ops(
        partial(residual_norm, run=_residual_norm_by_kernel) if has_residual else residual_norm,
        _gelu_mul_by_kernel if has_gelu else gelu_mul,
    )


def residual_norm_cases(K: int, eps: float = 1e-6) -> list[selftest.Arguments]:
    """Return what the self-test gives `kernels.residual_norm`, without and with a next norm."""
    return [((2, K), (2, K), (K,), (1,), eps, following) for following in (None, (K,))]


def gelu_mul_case(K: int) -> selftest.Arguments:
    """Return what the self-test gives `kernels.gelu_mul`."""
    return (2, K), (2, K)


def _residual_norm_by_kernel(
    x: mx.array, update: mx.array, weight: mx.array, scale: mx.array | None, *others: Any
) -> tuple[mx.array, Activation]:
    scale = _one(x.dtype) if scale is None else scale
    h, normed, rotated = kernels.residual_norm(x, update, weight, scale, *others)
    return h, Activation(normed, rotated)


@cache
def _one(dtype: mx.Dtype) -> mx.array:
    return mx.array([1.0], dtype)


def _gelu_mul_by_kernel(gate: mx.array, up: mx.array) -> Activation:
    return Activation(*kernels.gelu_mul(gate, up))


def _residual_norm_natively(
    library: Library,
    x: mx.array,
    update: mx.array,
    weight: mx.array,
    scale: mx.array | None,
    epsilon: float,
    next_weight: mx.array | None,
) -> tuple[mx.array, Activation]:
    factor = 1.0 if scale is None else float(floats(scale)[0, 0])
    following = None if next_weight is None else floats(next_weight)
    norm = Norm(floats(weight), epsilon, factor, following)
    found = library.residual_norm(norm, floats(x), floats(update))
    h, normed = (mx.array(each.reshape(x.shape)).astype(x.dtype) for each in found)
    return h, Activation(normed)


def _norm_natively(library: Library, x: mx.array, norm: nn.RMSNorm) -> Activation:
    """Norm as `residual_norm` norms what it returns, bit for bit."""
    rows = floats(x)[None]
    weight, offsets = floats(norm["weight"]), np.zeros(1, np.int64)
    normed = library.heads(rows, weight, norm.eps, None, offsets, rows.shape[-1])
    return Activation(mx.array(normed.reshape(x.shape)).astype(x.dtype))


def _gelu_mul_natively(library: Library, gate: mx.array, up: mx.array) -> mx.array:
    found = library.gelu_mul(floats(gate), floats(up))
    return mx.array(found.reshape(gate.shape)).astype(gate.dtype)
