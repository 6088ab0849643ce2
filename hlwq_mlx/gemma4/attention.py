"""Gemma 4 attention: normed queries, keys and values, scale 1, keys shared between layers.

A layer either makes keys and values (`produce`) or is handed another layer's; both attend the same
way to a `View`. Which layer borrows from which is text.py's business.
B batch, L positions, K keys, H hidden size, D head dimensions.
Source: transformers 5.23.0, modeling_gemma4.py, Gemma4TextAttention.
"""

from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from ..quant.activation import Input
from ..quant.layers import Linear
from .config import TextConfig
from .masks import Mask, last_row
from .rope import rotate, wavelengths

SCORES = 1 << 25  # of one attention at once: 64 MiB in 16 bits


class View(NamedTuple):
    """What the queries of one forward pass see.

    Shapes: keys and values [B, kv_heads, K, D] exactly as their producer's attention saw them (a
    ring buffer forgets positions that a sharing layer still needs), as codes where its `cache`
    codes them; offset [] or [B] of the first query before the cache moved on.
    """

    keys: Any
    values: Any
    mask: Mask
    offset: mx.array
    cache: Any

    def last(self, length: int) -> "View":
        """The same view for the last of `length` queries."""
        return self._replace(mask=last_row(self.mask), offset=self.offset + (length - 1))

    def attend(self, queries: mx.array) -> mx.array:
        """Mix the values by a float32 softmax of unscaled scores.

        All scores of a call may be in memory at once, so many queries go block by block.
        Shapes: queries [B, heads, L, D], normed and rotated -> [B, heads, L, D].
        """
        B, heads, L, _ = queries.shape
        K = (self.keys[0] if isinstance(self.keys, tuple) else self.keys).shape[2]
        step = max(1, SCORES // (B * heads * K))
        blocks = [
            self._rows(start, min(start + step, L), K - L)._attend(
                queries[:, :, start : start + step]
            )
            for start in range(0, L, step)
        ]
        return blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=2)

    def _rows(self, start: int, stop: int, cached: int) -> "View":
        """The same view for some of the queries; a causal one without the keys behind them."""
        if isinstance(self.mask, mx.array):
            return self._replace(mask=self.mask[..., start:stop, :])
        if self.mask is None:
            return self
        seen = (..., slice(cached + stop), slice(None))
        keys, values = tree_map(lambda array: array[seen], (self.keys, self.values))
        return self._replace(keys=keys, values=values)

    def _attend(self, queries: mx.array) -> mx.array:
        if isinstance(self.keys, tuple):
            return attend_coded(queries, self)
        return mx.fast.scaled_dot_product_attention(
            queries, self.keys, self.values, scale=1.0, mask=self.mask
        )


def attend_coded(queries: mx.array, view: View) -> mx.array:
    """Mix coded values by a float32 softmax of unscaled scores.

    Heads that share keys are rows of one product. As a batch, which is mlx-lm's way, each of them
    reads the keys again, and on a CPU MLX copies them for each.
    Shapes: queries [B, heads, L, D] -> [B, heads, L, D].
    """
    B, heads, L, D = queries.shape
    keys, key_scales, key_biases = view.keys
    values, value_scales, value_biases = view.values
    kv_heads, K = keys.shape[1:3]
    how = {"group_size": view.cache.group_size, "bits": view.cache.bits}
    rows = queries.reshape(B, kv_heads, -1, D)
    scores = mx.quantized_matmul(rows, keys, key_scales, key_biases, **how)
    if view.mask is not None:
        seen = mx.tri(L, K, K - L, mx.bool_) if isinstance(view.mask, str) else view.mask
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

    def produce(self, h: Input, mask: Mask, cache: Any) -> tuple[mx.array, View]:
        """Append keys and values of new positions to the cache, and attend to what it then holds.

        Shapes: h [B, L, H] -> [B, L, H]. Values get a norm without weights and no rotation.
        """
        queries, keys, values = self._projections(h)
        offset = mx.array(cache.offset)
        keys = rotate(self.k_norm(self._heads(keys)), self._waves, offset)
        values = mx.fast.rms_norm(self._heads(values), None, self.eps)
        keys, values = cache.update_and_fetch(keys, values)
        view = View(keys, values, mask, offset, cache)
        return self._attend(queries, view), view

    def __call__(self, h: Input, view: View) -> mx.array:
        """Attend from each position to the keys and values of another layer.

        Shapes: h [B, L, H] -> [B, L, H].
        """
        return self._attend(self.q_proj(h), view)

    def _projections(self, h: Input) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values, each [B, L, heads * D]; values may be the keys."""
        if "qkv" in self:
            queries, keys, *values = self.qkv(h)
        else:
            queries, keys = self.q_proj(h), self.k_proj(h)
            values = [] if self.k_eq_v else [self.v_proj(h)]
        return queries, keys, values[0] if values else keys

    def _attend(self, queries: mx.array, view: View) -> mx.array:
        """queries [B, L, heads * D] -> [B, L, H]"""
        B, L, _ = queries.shape
        queries = rotate(self.q_norm(self._heads(queries)), self._waves, view.offset)
        out = view.attend(queries)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))

    def _heads(self, x: mx.array) -> mx.array:
        """[B, L, heads * D] -> [B, heads, L, D]"""
        B, L, _ = x.shape
        return x.reshape(B, L, -1, self.head_dim).transpose(0, 2, 1, 3)
