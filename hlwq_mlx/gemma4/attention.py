"""Gemma 4 attention: normed queries, keys and values, scale 1, keys shared between layers.

A layer either makes keys and values (`produce`) or is handed another layer's; both then attend the
same way to a `View`. Which layer borrows from which is text.py's business.
B batch, L positions, K keys, H hidden size, D head dimensions.
Source: transformers 5.23.0, modeling_gemma4.py, Gemma4TextAttention.
"""

from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn

from .config import TextConfig
from .masks import Mask, last_row
from .rope import rotate, wavelengths


class View(NamedTuple):
    """What the queries of one forward pass see.

    Shapes: keys and values [B, kv_heads, K, D] exactly as their producer's attention saw them (a
    ring buffer forgets positions that a sharing layer still needs), offset [] or [B] of the first
    query before the cache moved on.
    """

    keys: mx.array
    values: mx.array
    mask: Mask
    offset: mx.array

    def last(self, length: int) -> "View":
        """The same view for the last of `length` queries."""
        return View(self.keys, self.values, last_row(self.mask), self.offset + (length - 1))


class Attention(nn.Module):  # type: ignore[misc]  # nn.Module is untyped
    """Attention of one layer; without `has_kv` it has queries only."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        layer = config.layer(index)
        heads, kv_heads = config.num_attention_heads, layer.num_key_value_heads
        self.head_dim = layer.head_dim
        self.eps = config.rms_norm_eps
        self.k_eq_v = layer.k_eq_v
        self._waves = wavelengths(config.rope_parameters[layer.layer_type], layer.head_dim)
        self.q_proj = nn.Linear(config.hidden_size, heads * self.head_dim, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, self.eps)
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size, bias=False)
        if layer.has_kv:
            self.k_proj = nn.Linear(config.hidden_size, kv_heads * self.head_dim, bias=False)
            self.k_norm = nn.RMSNorm(self.head_dim, self.eps)
        if layer.has_kv and not layer.k_eq_v:
            self.v_proj = nn.Linear(config.hidden_size, kv_heads * self.head_dim, bias=False)

    def produce(self, h: mx.array, mask: Mask, cache: Any) -> View:
        """Make keys and values of new positions and append them to the cache.

        Shapes: h [B, L, H]. Values get a norm without weights and no rotation.
        """
        keys = self._heads(self.k_proj(h))
        values = keys if self.k_eq_v else self._heads(self.v_proj(h))
        offset = mx.array(cache.offset)
        keys = rotate(self.k_norm(keys), self._waves, offset)
        values = mx.fast.rms_norm(values, None, self.eps)
        keys, values = cache.update_and_fetch(keys, values)
        return View(keys, values, mask, offset)

    def __call__(self, h: mx.array, view: View) -> mx.array:
        """Attend from each position to the view.

        Shapes: h [B, L, H] -> [B, L, H]. Softmax is float32.
        """
        B, L, _ = h.shape
        queries = rotate(self.q_norm(self._heads(self.q_proj(h))), self._waves, view.offset)
        out = mx.fast.scaled_dot_product_attention(
            queries, view.keys, view.values, scale=1.0, mask=view.mask
        )
        mixed: mx.array = self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))
        return mixed

    def _heads(self, x: mx.array) -> mx.array:
        """[B, L, heads * D] -> [B, heads, L, D]"""
        B, L, _ = x.shape
        return x.reshape(B, L, -1, self.head_dim).transpose(0, 2, 1, 3)
