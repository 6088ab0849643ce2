"""Attention by the native library: heads normed and rotated, and queries that meet their keys.

A query's result depends on its own keys alone, as long as the others are finite: many queries and
sequences have in one call the bits that each has alone.
B batch, L positions, K keys, D head dimensions.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..quant.backends.native.library import Floats, Keys, Library
from .masks import Causal, Mask, Seen

LANES = 16  # of which a head has whole ones


def can_attend(keys: Any, mask: Mask) -> bool:
    """Return whether the library takes such keys: plain numbers, each query with its own mask."""
    return (
        isinstance(keys, mx.array)
        and keys.shape[-1] % LANES == 0
        and (not isinstance(mask, mx.array) or mask.dtype == mx.bool_)
    )


def heads(
    library: Library,
    x: mx.array,
    columns: int,
    epsilon: float,
    weight: mx.array | None = None,
    waves: mx.array | None = None,
    offset: int | mx.array = 0,
) -> mx.array:
    """Norm each head, with or without a weight, and rotate it if there are waves.

    Shapes: x [B, L, heads * D], weight [D], waves [D/2], offset a number or [B]
    -> [B, heads, L, D].
    """
    offsets = np.broadcast_to(np.asarray(offset, np.int64), x.shape[:1])
    found = library.heads(
        _floats(x), _maybe(weight), epsilon, _maybe(waves), np.ascontiguousarray(offsets), columns
    )
    return mx.array(found).astype(x.dtype)


def attend(
    library: Library,
    queries: mx.array,
    keys: Sequence[mx.array],
    values: Sequence[mx.array],
    mask: Mask,
) -> mx.array:
    """Let each sequence's queries attend to its own keys, under the mask that all share.

    Shapes: queries [B, heads, L, D], keys and values [1 or B, kv_heads, K, D] each -> queries'.
    """
    mx.eval(queries, *keys, *values)
    pairs = None
    if isinstance(mask, Seen):
        pairs = mask.pairs
    elif isinstance(mask, mx.array):
        pairs = np.asarray(mask)
    B, _, L, _ = queries.shape
    own_keys = [own for array in keys for own in _sequences(array)]
    own_values = [own for array in values for own in _sequences(array)]
    seen = [
        Keys(k, v, None if pairs is None else _rows_of(pairs, row, L, k.shape[1]))
        for row, (k, v) in enumerate(zip(own_keys, own_values, strict=True))
    ]
    assert len(seen) == B
    is_causal = mask is not None
    window = (mask.window or 0) if isinstance(mask, Causal) else 0
    found = library.attend(_floats(queries), seen, window=window, is_causal=is_causal)
    return mx.array(found).astype(queries.dtype)


def joined(heads: mx.array) -> mx.array:
    """Lay the heads of each position side by side: [B, heads, L, D] -> [B, L, heads * D]."""
    B, _, L, _ = heads.shape
    turned = np.asarray(heads).transpose(0, 2, 1, 3)
    return mx.array(np.ascontiguousarray(turned).reshape(B, L, -1))


def _sequences(array: mx.array) -> list[Floats]:
    """Return each sequence's [kv_heads, K, D], whose positions lie one behind the other."""
    view = np.asarray(array.astype(mx.float32))
    if view.strides[-1] != 4 or view.strides[-2] != 4 * view.shape[-1]:
        view = np.ascontiguousarray(view)
    return [*view]


def _rows_of(pairs: "np.ndarray[Any, np.dtype[np.bool_]]", row: int, L: int, K: int) -> Any:
    """Return one sequence's pairs [L, K] of booleans [L, K], or [B, 1, L, K]."""
    own = pairs if pairs.ndim == 2 else pairs[min(row, len(pairs) - 1), 0]
    return np.ascontiguousarray(np.broadcast_to(own, (L, K)))


def _floats(x: mx.array) -> Floats:
    return np.ascontiguousarray(np.asarray(x.astype(mx.float32)))


def _maybe(x: mx.array | None) -> Floats | None:
    return None if x is None else _floats(x)
