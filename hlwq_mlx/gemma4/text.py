"""Gemma 4's text stack: embeddings, decoder layers, per-layer inputs, final norm and tied head.

Attribute names are the checkpoint's. The rows of the per-layer-embedding table are passed in, since
the table stays on disk. Token ids, masks and caches are prepared in model.py.
B batch, L positions, H hidden size, I MLP width, N layers, d per-layer input width, V vocabulary.
Source: transformers 5.23.0, modeling_gemma4.py, Gemma4TextModel and Gemma4TextDecoderLayer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn

from ..quant.activation import Activation, Input
from ..quant.layers import Linear
from ..quant.ops import PLAIN, cap_scores, cap_scores_later
from .attention import Attention, RowsKV, SharedKV
from .config import TextConfig
from .experts import Experts, Router
from .masks import Mask
from .rest_by_cpu import Rest

_AT_ONCE = 2048  # rows of a table that are decoded together

Shared = SharedKV | RowsKV
AfterLayer = Callable[[mx.array], object]


def nothing(x: mx.array) -> None:
    """Let the layers be built one after another."""


def scaled(x: mx.array, factor: float) -> mx.array:
    """Multiply in float32 and round once: MLX would round the factor to x's dtype first."""
    return (x.astype(mx.float32) * factor).astype(x.dtype)


def whole(dense: mx.array, sparse: mx.array) -> tuple[mx.array, mx.array]:
    """Return what a dense MLP and experts made, of which this machine has all."""
    return dense, sparse


class Filled(NamedTuple):
    """A pass whose keys and values are cached, before the last layer that made some attends.

    Shapes: x [B, L, H], queries [B, L, heads * D].
    """

    x: mx.array
    queries: mx.array
    shared: dict[str, Shared]


class MLP(nn.Module):
    """down(gelu(gate(x)) * up(x)); quant.fuse may have made one layer of gate and up."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False)
        self.ops = PLAIN

    def __call__(self, x: Input) -> mx.array:
        """Shapes: x [B, L, H] -> [B, L, H]."""
        if "gate_up" in self:
            return self.down_proj(self.gate_up(x))
        return self.down_proj(self.ops.gelu_mul(self.gate_proj(x), self.up_proj(x)))


class DecoderLayer(nn.Module):
    """One layer of the stack, in the order attention, MLP and experts, per-layer input, scalar.

    Besides its input it takes the input normed by `input_layernorm`, if the layer before made that,
    and it returns its output normed by `following`. quant.fuse may have put kernels into `ops`.
    """

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        layer = config.layer(index)
        H, d, eps = config.hidden_size, config.hidden_size_per_layer_input, config.rms_norm_eps
        self.layer_type = layer.layer_type
        self.self_attn = Attention(config, index)
        self.mlp = MLP(H, layer.intermediate_size)
        self.input_layernorm = nn.RMSNorm(H, eps)
        self.post_attention_layernorm = nn.RMSNorm(H, eps)
        self.pre_feedforward_layernorm = nn.RMSNorm(H, eps)
        self.post_feedforward_layernorm = nn.RMSNorm(H, eps)
        if config.enable_moe_block:
            self.router = Router(config)
            self.experts = Experts(config)
            self.summed = whole  # over the machines that hold shares of both
            self.post_feedforward_layernorm_1 = nn.RMSNorm(H, eps)
            self.pre_feedforward_layernorm_2 = nn.RMSNorm(H, eps)
            self.post_feedforward_layernorm_2 = nn.RMSNorm(H, eps)
        if d:
            self.per_layer_input_gate = Linear(H, d, bias=False)
            self.per_layer_projection = Linear(d, H, bias=False)
            self.post_per_layer_input_norm = nn.RMSNorm(H, eps)
        self.layer_scalar = mx.ones((1,))
        self.ops = PLAIN
        self._rest = Rest()

    def run_with_kv(
        self,
        x: mx.array,
        normed: Activation | None,
        mask: Mask,
        cache: Any,
        per_layer_input: mx.array | None,
        following: nn.RMSNorm | None,
    ) -> tuple[mx.array, Activation, Shared]:
        """Run a layer that makes keys and values; return them for the layers that share them."""
        attended, shared = self.self_attn.run_with_kv(self._normed(x, normed), mask, cache)
        return *self._finish(x, attended, per_layer_input, following), shared

    def fill(
        self, x: mx.array, normed: Activation | None, mask: Mask, cache: Any
    ) -> tuple[mx.array, Shared]:
        """Append keys and values to the cache; return what `go_on` takes beside x."""
        return self.self_attn.fill(self._normed(x, normed), mask, cache)

    def go_on(
        self, x: mx.array, queries: mx.array, shared: Shared, per_layer_input: mx.array | None
    ) -> mx.array:
        """Run the rest of a layer whose keys and values are cached.

        Shapes: x [B, L, H], queries [B, L, heads * D], per_layer_input [B, L, d] -> [B, L, H].
        """
        return self._finish(x, self.self_attn.attend(queries, shared), per_layer_input, None)[0]

    def __call__(
        self,
        x: mx.array,
        normed: Activation | None,
        shared: Shared,
        per_layer_input: mx.array | None,
        following: nn.RMSNorm | None,
    ) -> tuple[mx.array, Activation]:
        """Run a layer that attends to another layer's keys and values.

        Shapes: x, normed [B, L, H], per_layer_input [B, L, d] -> twice [B, L, H].
        """
        attended = self.self_attn(self._normed(x, normed), shared)
        return self._finish(x, attended, per_layer_input, following)

    def _normed(self, x: mx.array, normed: Activation | None) -> Activation:
        return self.ops.norm(x, self.input_layernorm) if normed is None else normed

    def _finish(
        self,
        x: mx.array,
        attended: mx.array,
        per_layer_input: mx.array | None,
        following: nn.RMSNorm | None,
    ) -> tuple[mx.array, Activation]:
        found = self._rest(self, x, attended, per_layer_input, following)
        if found is not None:
            return found
        x, normed = self.ops.residual_norm(
            x, attended, self.post_attention_layernorm, self.pre_feedforward_layernorm
        )
        update, norm = self.mlp(normed), self.post_feedforward_layernorm
        if "experts" in self:
            update = self._beside_experts(x, update)
        if per_layer_input is not None:
            # No following norm: the gate reads the residual stream itself.
            x, normed = self.ops.residual_norm(x, update, norm)
            gated = self.ops.gelu_mul(self.per_layer_input_gate(normed), per_layer_input)
            update, norm = self.per_layer_projection(gated), self.post_per_layer_input_norm
        # The scalar multiplies the whole residual stream, not the update alone.
        return self.ops.residual_norm(x, update, norm, following, self.layer_scalar)

    def _beside_experts(self, x: mx.array, update: mx.array) -> mx.array:
        """Add what the experts make of the same residual stream to the dense MLP's update."""
        sparse = self.experts(self.pre_feedforward_layernorm_2(x), self.router(x))
        dense, sparse = self.summed(update, sparse)
        dense = self.post_feedforward_layernorm_1(dense)
        return dense + self.post_feedforward_layernorm_2(sparse)


Span = list[tuple[DecoderLayer, nn.RMSNorm | None]]


class TextModel(nn.Module):
    """The stack in its two parts: layers that make keys and values, and layers that share them."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        N, d = config.num_hidden_layers, config.hidden_size_per_layer_input
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config, i) for i in range(N)]
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        if d:
            self.per_layer_model_projection = nn.Linear(config.hidden_size, N * d, bias=False)
            # The reference scales the projection by H**-0.5 before this norm, where a factor
            # survives through eps alone: dividing eps by its square is the same without rounding.
            eps = config.rms_norm_eps * config.hidden_size
            self.per_layer_projection_norm = nn.RMSNorm(d, eps)

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype of activations."""
        return self.norm.weight.dtype

    def embed(self, ids: mx.array) -> mx.array:
        """Look up and scale token embeddings; as in the reference, sqrt(H) has their dtype.

        Shapes: ids int [B, L] -> [B, L, H].
        """
        x = self.embed_tokens(ids).astype(self.dtype)
        return x * mx.array(self.config.hidden_size**0.5, self.dtype)

    def per_layer_inputs(
        self, x: mx.array, rows: mx.array, layers: slice = slice(None)
    ) -> list[mx.array]:
        """Mix each layer's own embedding of the token with a projection of its input embedding.

        Shapes: x [B, L, H] with soft features in place, rows [B, L, N * d] -> as many times
        [B, L, d] as there are `layers`.
        """
        N, d = self.config.num_hidden_layers, self.config.hidden_size_per_layer_input
        shape = (*x.shape[:2], N, d)
        projected = self.per_layer_model_projection(x).reshape(shape)[:, :, layers]
        context = self.per_layer_projection_norm(projected)
        own = rows.reshape(shape)[:, :, layers]
        identity = own.astype(x.dtype) * mx.array(d**0.5, x.dtype)
        mixed = scaled(context + identity, 2**-0.5)
        count = mixed.shape[2]
        # One operation for all, where an index would be two for each.
        return [*mx.split(mixed.flatten(2), count, axis=-1)] if count else []

    def run_kv_layers(
        self,
        x: mx.array,
        per_layer: Sequence[mx.array | None],
        masks: Mapping[str, Mask],
        cache: Sequence[Any],
        after_layer: AfterLayer = nothing,
    ) -> tuple[mx.array, dict[str, Shared]]:
        """Run the layers that make keys and values; return the last ones of each layer type.

        `after_layer` gets what each layer returns, before the next one is built.
        Shapes: x [B, L, H] -> [B, L, H].
        """
        x, _, shared = self._run_kv(
            self._span(0, self.config.first_shared), x, per_layer, masks, cache, after_layer
        )
        return x, shared

    def fill_caches(
        self,
        x: mx.array,
        per_layer: Sequence[mx.array | None],
        masks: Mapping[str, Mask],
        cache: Sequence[Any],
        after_layer: AfterLayer = nothing,
    ) -> Filled:
        """Run the layers that make keys and values, the last of them no farther than that.

        `after_layer` as in `run_kv_layers`. Shapes: x [B, L, H].
        """
        *span, (last, _) = self._span(0, self.config.first_shared)
        x, normed, shared = self._run_kv(span, x, per_layer, masks, cache, after_layer)
        queries, own = last.fill(x, normed, masks[last.layer_type], cache[len(span)])
        return Filled(x, queries, {**shared, last.layer_type: own})

    def go_on(
        self, filled: Filled, per_layer_input: mx.array | None
    ) -> tuple[mx.array, dict[str, Shared]]:
        """Finish the last layer that made keys and values, for the last position alone.

        Shapes: per_layer_input [B, 1, d] -> [B, 1, H].
        """
        layer, length = self.layers[self.config.first_shared - 1], filled.x.shape[1]
        shared = {layer_type: each.last(length) for layer_type, each in filled.shared.items()}
        last = filled.x[:, -1:], filled.queries[:, -1:], shared[layer.layer_type]
        return layer.go_on(*last, per_layer_input), shared

    def _run_kv(
        self,
        span: Span,
        x: mx.array,
        per_layer: Sequence[mx.array | None],
        masks: Mapping[str, Mask],
        cache: Sequence[Any],
        after_layer: AfterLayer,
    ) -> tuple[mx.array, Activation | None, dict[str, Shared]]:
        shared: dict[str, Shared] = {}
        normed = None
        for (layer, following), entry, extra in zip(span, cache, per_layer, strict=False):
            x, normed, shared[layer.layer_type] = layer.run_with_kv(
                x, normed, masks[layer.layer_type], entry, extra, following
            )
            after_layer(x)
        return x, normed, shared

    def run_shared_layers(
        self,
        x: mx.array,
        per_layer: Sequence[mx.array | None],
        shared: Mapping[str, Shared],
        after_layer: AfterLayer = nothing,
    ) -> mx.array:
        """Run the layers that share keys and values, and the final norm.

        `after_layer` as in `run_kv_layers`. Shapes: x [B, L, H] -> [B, L, H].
        """
        normed = None
        first, N = self.config.first_shared, self.config.num_hidden_layers
        for (layer, following), extra in zip(self._span(first, N), per_layer[first:], strict=True):
            x, normed = layer(x, normed, shared[layer.layer_type], extra, following)
            after_layer(x)
        return self.norm(x)

    def _span(self, first: int, end: int) -> Span:
        """Return layers `first` to `end`, each with the norm of the next one's input."""
        layers = self.layers[first:end]
        following = [*(layer.input_layernorm for layer in layers[1:]), None]
        return list(zip(layers, following, strict=False))

    def logits(self, h: mx.array) -> mx.array:
        """Score the vocabulary with the tied embedding and cap the scores, in float32.

        Shapes: h [B, L, H] -> float32 [B, L, V].
        """
        # The head is the embedding as stored: only the input side is scaled by sqrt(H).
        return self.capped(self.embed_tokens.as_linear(h))

    def logits_later(self, h: mx.array) -> mx.array:
        """Score as `logits` does, by stock MLX and only once somebody looks at the scores.

        A part of the table is decoded at a time. Shapes: as `logits`.
        """
        V, x = self.config.vocab_size, h.astype(mx.float32)
        parts = mx.split(mx.arange(V), [*range(_AT_ONCE, V, _AT_ONCE)])
        scores = mx.concatenate([x @ self.embed_tokens.decoded(ids).T for ids in parts], axis=-1)
        cap = self.config.final_logit_softcapping
        return scores if cap is None else cap_scores_later(scores, cap)

    def capped(self, scores: mx.array) -> mx.array:
        """Cap scores of tokens, in float32: [...] -> [...]."""
        scores, cap = scores.astype(mx.float32), self.config.final_logit_softcapping
        return scores if cap is None else cap_scores(scores, cap)
