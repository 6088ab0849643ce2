"""What a layer does behind its attention, by one call of the native library.

It makes the bits that the layer's own products and norms make one by one: a call of Python's and
the arrays between two of them cost as long as a product by a small matrix.
B batch, L positions, H hidden size, d per-layer input width.
"""

from typing import Any

import mlx.core as mx
from mlx import nn

from ..quant.activation import Activation
from ..quant.backends.native import library as native
from ..quant.backends.native.library import Norm, floats, native_library
from ..quant.plain import weight_of


class Rest:
    """The weights of one layer as the library takes them, kept until others are loaded."""

    def __init__(self) -> None:
        self._kept: tuple[list[Any], native.Rest] | None = None

    def __call__(
        self,
        layer: nn.Module,
        x: mx.array,
        attended: mx.array,
        own: mx.array | None,
        following: nn.RMSNorm | None,
    ) -> tuple[mx.array, Activation] | None:
        """Return the layer's output, and that normed by `following`; None where others compute it.

        Shapes: x, attended [B, L, H], own [B, L, d] -> twice [B, L, H].
        """
        library = native_library()
        is_plain = isinstance(layer.mlp, nn.Module) and "experts" not in layer
        if library is None or x.dtype != mx.float32 or not is_plain:
            return None
        rest = self._of(layer, own is not None, following)
        if rest is None:
            return None
        extra = None if own is None else floats(own)
        h, normed = library.finish(rest, floats(x), floats(attended), extra)
        out = mx.array(h.reshape(x.shape))
        return out, Activation(out if normed is h else mx.array(normed.reshape(x.shape)))

    def _of(
        self, layer: nn.Module, has_own: bool, following: nn.RMSNorm | None
    ) -> native.Rest | None:
        gate_and_up = ["gate_up"] if "gate_up" in layer.mlp else ["gate_proj", "up_proj"]
        products = [layer.mlp[name] for name in (*gate_and_up, "down_proj")]
        norms = [layer.post_attention_layernorm, layer.post_feedforward_layernorm]
        if has_own:
            products += [layer.per_layer_input_gate, layer.per_layer_projection]
            norms.append(layer.post_per_layer_input_norm)
        weights = [each for each in map(weight_of, products) if each is not None]
        if len(weights) != len(products):
            return None
        between = layer.pre_feedforward_layernorm
        arrays = [norm["weight"] for norm in (*norms, between, *filter(None, [following]))]
        made_from = [*weights, *arrays, layer.layer_scalar]
        if self._kept is None or not _are_same(self._kept[0], made_from):
            in_mlp = len(gate_and_up) + 1
            norm_weights = _norms(norms, between, following, layer.layer_scalar)
            self._kept = made_from, native.Rest(norm_weights, weights[:in_mlp], weights[in_mlp:])
        return self._kept[1]


def _norms(
    norms: list[nn.RMSNorm], between: nn.RMSNorm, following: nn.RMSNorm | None, scalar: mx.array
) -> list[Norm]:
    first, *others = ((floats(norm["weight"])[0], norm.eps) for norm in norms)
    *middle, last = others
    scale = float(floats(scalar)[0, 0])
    behind = None if following is None else floats(following["weight"])[0]
    return [
        Norm(*first, following=floats(between["weight"])[0]),
        *(Norm(*each) for each in middle),
        Norm(*last, scale, behind),
    ]


def _are_same(kept: list[Any], found: list[Any]) -> bool:
    return len(kept) == len(found) and all(a is b for a, b in zip(kept, found, strict=True))
