"""Gemma 4 attention: normed queries, keys and values, scale 1, keys shared between layers.

A layer either makes keys and values (`run_with_kv`) or is handed another layer's; both attend the
same way to a `SharedKV`. Which layer borrows from which is text.py's business.
B batch, L positions, K keys, H hidden size, D head dimensions.
Source: transformers 5.23.0, modeling_gemma4.py, Gemma4TextAttention.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from ..quant.activation import Input
from ..quant.backends.native.library import native_library
from ..quant.layers import Linear
from . import by_cpu
from .caches import Rows
from .config import TextConfig
from .masks import Causal, Mask, Seen
from .rope import rotate, wavelengths

SCORES = 1 << 25  # of one attention at once: 64 MiB in 16 bits
BLOCK = 128  # queries of one attention at once: more score more keys that only some of them see
FEW = 8  # queries that attend one by one, so that each sums as it would alone


class SharedKV(NamedTuple):
    """The keys and values that the queries of one forward pass attend to.

    They are exactly what the attention of the layer that made them saw, since its cache may forget
    positions that a sharing layer still needs. `offset` is the first query's position, read before
    the cache took the new positions.
    Shapes: keys and values [B, kv_heads, K, D], or codes where `cache` codes them; offset [] or
    [B], or a number.
    """

    keys: Any
    values: Any
    mask: Mask
    offset: int | mx.array
    cache: Any

    def last(self, length: int) -> "SharedKV":
        """Return the keys and values that the last of `length` queries sees."""
        seen = self._rows(length - 1, length, self._key_count() - length)
        return seen._replace(offset=self.offset + (length - 1))

    def attend(self, queries: mx.array) -> mx.array:
        """Mix the values by a float32 softmax of unscaled scores.

        The scores of a block are in memory at once, and each of its queries scores every key that
        any of them sees, so many queries go block by block.
        Shapes: queries [B, heads, L, D], normed and rotated -> [B, heads, L, D].
        """
        library = native_library()
        if library and by_cpu.can_attend(self.keys, self.mask):
            return by_cpu.attend(library, queries, [self.keys], [self.values], self.mask)
        B, heads, L, _ = queries.shape
        K = self._key_count()
        step = 1 if L <= FEW else min(BLOCK, max(1, SCORES // (B * heads * K)))
        blocks = []
        for start in range(0, L, step):
            part = self._rows(start, min(start + step, L), K - L)
            blocks.append(part._attend(queries[:, :, start : start + step]))
            if B * heads * L * K > SCORES:
                mx.eval(blocks[-1])  # or all blocks' scores could be in memory at once
        return blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=2)

    def _key_count(self) -> int:
        keys = self.keys[0] if isinstance(self.keys, tuple) else self.keys
        return int(keys.shape[2])

    def _rows(self, start: int, stop: int, cached: int) -> "SharedKV":
        """Return the keys and values for queries `start` to `stop`.

        Keys that none of them sees are cut off, if the mask tells.
        """
        if self.mask is None:
            return self
        if isinstance(self.mask, mx.array):
            return self._replace(mask=self.mask[..., start:stop, :])
        span, mask = self.mask.part(start, stop, cached)
        if span == slice(0, self._key_count()):
            return self._replace(mask=mask)
        seen = (..., span, slice(None))
        keys, values = tree_map(lambda array: array[seen], (self.keys, self.values))
        return self._replace(keys=keys, values=values, mask=mask)

    def _attend(self, queries: mx.array) -> mx.array:
        L, K = queries.shape[2], self._key_count()
        assert not isinstance(self.mask, Seen)  # a part has arrays
        mask = self.mask.within(L, K) if isinstance(self.mask, Causal) else self.mask
        if isinstance(self.keys, tuple):
            return attend_coded(queries, self, mask)
        # No 1/sqrt(D): the norms of queries and keys set the scale.
        return mx.fast.scaled_dot_product_attention(
            queries, self.keys, self.values, scale=1.0, mask=mask
        )


class RowsKV(NamedTuple):
    """A `SharedKV` for each row of a batch: each sequence has its own keys and values."""

    rows: Sequence[SharedKV]
    offset: mx.array

    def last(self, length: int) -> "RowsKV":
        """Return the keys and values that the last of `length` queries sees, row by row."""
        return RowsKV([row.last(length) for row in self.rows], self.offset + (length - 1))

    def attend(self, queries: mx.array) -> mx.array:
        """Attend row by row, as each would alone.

        Shapes: queries [B, heads, L, D] -> [B, heads, L, D].
        """
        library, mask = native_library(), self.rows[0].mask
        if library and by_cpu.can_attend(self.rows[0].keys, mask):
            keys, values = [row.keys for row in self.rows], [row.values for row in self.rows]
            return by_cpu.attend(library, queries, keys, values, mask)
        own = mx.split(queries, len(self.rows))
        return mx.concatenate([row.attend(q) for row, q in zip(self.rows, own, strict=True)])


def extend(cache: Any, keys: mx.array, values: mx.array, mask: Mask) -> SharedKV | RowsKV:
    """Append keys and values of new positions to a cache; return what their queries attend to."""
    before = cache.offset
    offset = mx.array(before)
    if not isinstance(cache, Rows):
        keys, values = cache.update_and_fetch(keys, values)
        return SharedKV(keys, values, mask, offset, cache)
    count = len(cache.entries)
    each = zip(cache.entries, before, mx.split(keys, count), mx.split(values, count), strict=True)
    rows = [
        SharedKV(*entry.update_and_fetch(k, v), mask, position, entry)
        for entry, position, k, v in each
    ]
    return RowsKV(rows, offset)


def attend_coded(queries: mx.array, view: SharedKV, mask: mx.array | str | None) -> mx.array:
    """Mix coded values by a float32 softmax of unscaled scores.

    Heads that share keys are rows of one product. mlx-lm makes them a batch, where each head reads
    the keys again and MLX copies them for each on a CPU.
    Shapes: queries [B, heads, L, D] -> [B, heads, L, D].
    """
    B, heads, L, D = queries.shape
    keys, key_scales, key_biases = view.keys
    values, value_scales, value_biases = view.values
    kv_heads, K = keys.shape[1:3]
    how = {"group_size": view.cache.group_size, "bits": view.cache.bits}
    rows = queries.reshape(B, kv_heads, -1, D)
    scores = mx.quantized_matmul(rows, keys, key_scales, key_biases, **how)
    if mask is not None:
        seen = mx.tri(L, K, K - L, mx.bool_) if isinstance(mask, str) else mask
        if seen.ndim == 4:  # [B, 1, L, K]
            seen = seen[:, :, None]
        scores = mx.where(seen, scores.reshape(B, kv_heads, -1, L, K), -mx.inf)
    weights = mx.softmax(scores.reshape(B, kv_heads, -1, K), axis=-1, precise=True)
    mixed = mx.quantized_matmul(weights, values, value_scales, value_biases, transpose=False, **how)
    return mixed.reshape(B, heads, L, D)


class Attention(nn.Module):
    """Attention of one layer; without `has_kv` it has queries only.

    quant.fuse may have made one layer, `qkv`, of the projections.
    """

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        layer = config.layer(index)
        heads, kv_heads = config.num_attention_heads, layer.num_key_value_heads
        self.head_dim = layer.head_dim
        self.eps = config.rms_norm_eps
        self.k_eq_v = layer.k_eq_v
        self._waves = wavelengths(config.rope_parameters[layer.layer_type], layer.head_dim)
        self.q_proj = Linear(config.hidden_size, heads * self.head_dim, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, self.eps)
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size, bias=False)
        if layer.has_kv:
            self.k_proj = Linear(config.hidden_size, kv_heads * self.head_dim, bias=False)
            self.k_norm = nn.RMSNorm(self.head_dim, self.eps)
        if layer.has_kv and not layer.k_eq_v:
            self.v_proj = Linear(config.hidden_size, kv_heads * self.head_dim, bias=False)

    def run_with_kv(self, h: Input, mask: Mask, cache: Any) -> tuple[mx.array, SharedKV | RowsKV]:
        """Append keys and values of new positions to the cache, and attend to what it then holds.

        Shapes: h [B, L, H] -> [B, L, H].
        """
        queries, shared = self.fill(h, mask, cache)
        return self.attend(queries, shared), shared

    def fill(self, h: Input, mask: Mask, cache: Any) -> tuple[mx.array, SharedKV | RowsKV]:
        """Append keys and values of new positions to the cache; return what `attend` takes.

        Shapes: h [B, L, H] -> [B, L, heads * D]. Values get a norm without weights and no rotation.
        """
        # With k_eq_v, values are the keys' projection from before its norm and rotation.
        queries, keys, values = self._projections(h)
        offset = mx.array(cache.offset)
        keys = self._turned(keys, self.k_norm, offset)
        return queries, extend(cache, keys, self._normed(values), mask)

    def __call__(self, h: Input, shared: SharedKV | RowsKV) -> mx.array:
        """Attend from each position to the keys and values of another layer.

        Shapes: h [B, L, H] -> [B, L, H].
        """
        return self.attend(self.q_proj(h), shared)

    def attend(self, queries: mx.array, shared: SharedKV | RowsKV) -> mx.array:
        """Attend by queries as they are projected.

        Shapes: queries [B, L, heads * D] -> [B, L, H].
        """
        B, L, _ = queries.shape
        queries = self._turned(queries, self.q_norm, shared.offset)
        out = shared.attend(queries)
        if native_library() and out.dtype == mx.float32:
            return self.o_proj(by_cpu.joined(out))
        # A single position needs no transpose: its heads are one behind the other either way.
        out = out if L == 1 else out.transpose(0, 2, 1, 3)
        return self.o_proj(out.reshape(B, L, -1))

    def _projections(self, h: Input) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values, each [B, L, heads * D]; values may be the keys."""
        if "qkv" in self:
            queries, keys, *values = self.qkv(h)
        else:
            queries, keys = self.q_proj(h), self.k_proj(h)
            values = [] if self.k_eq_v else [self.v_proj(h)]
        return queries, keys, values[0] if values else keys

    def _turned(self, x: mx.array, norm: nn.RMSNorm, offset: int | mx.array) -> mx.array:
        """Norm and rotate heads: [B, L, heads * D] -> [B, heads, L, D]."""
        library = native_library()
        if library:
            how = self.head_dim, self.eps, norm.weight, self._waves, offset
            return by_cpu.heads(library, x, *how)
        return rotate(norm(self._heads(x)), self._waves, offset)

    def _normed(self, x: mx.array) -> mx.array:
        """Norm heads, without a weight: [B, L, heads * D] -> [B, heads, L, D]."""
        library = native_library()
        if library:
            return by_cpu.heads(library, x, self.head_dim, self.eps)
        return mx.fast.rms_norm(self._heads(x), None, self.eps)

    def _heads(self, x: mx.array) -> mx.array:
        """[B, L, heads * D] -> [B, heads, L, D]"""
        B, L, _ = x.shape
        if L == 1:
            return x.reshape(B, -1, 1, self.head_dim)
        return x.reshape(B, L, -1, self.head_dim).transpose(0, 2, 1, 3)
