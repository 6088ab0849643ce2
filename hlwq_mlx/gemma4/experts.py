"""Experts beside the dense MLP: a router picks a few of many small MLPs for each token.

Attribute names are the checkpoint's, but that a stack of matrices is a module whose parameter is
`weight`, as of every other product: `canonical` turns the checkpoint's name into that.
B batch, L positions, H hidden size, I width of an expert, E experts, k of them for a token.
Source: transformers 5.23.0, modeling_gemma4.py, Gemma4TextRouter and Gemma4TextExperts.
"""

import re
from typing import NamedTuple

import mlx.core as mx
from mlx import nn

from ..quant.layers import ExpertLinear, Linear
from ..quant.ops import gelu_mul
from .config import TextConfig

_STACK = re.compile(r"\.experts\.(gate_up|down)_proj$")


def canonical(name: str) -> str:
    """Return the name of a tensor in our tree; a checkpoint's stacks of experts have no suffix."""
    return f"{name}.weight" if _STACK.search(name) else name


def published(name: str) -> str:
    """Return the checkpoint's name of a tensor in our tree: the inverse of `canonical`."""
    bare = name.removesuffix(".weight")
    return bare if _STACK.search(bare) else name


class Chosen(NamedTuple):
    """The experts of each token in ascending order, and how much each of them counts.

    Shapes: experts uint32 [B, L, k], shares float32 [B, L, k].
    """

    experts: mx.array
    shares: mx.array


class Router(nn.Module):
    """Scores every expert for a token and chooses the best."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        assert config.num_experts is not None and config.top_k_experts is not None
        self.proj = Linear(config.hidden_size, config.num_experts, bias=False)
        self.scale = mx.ones((config.hidden_size,))
        self.per_expert_scale = mx.ones((config.num_experts,))
        self._count = config.top_k_experts
        # The reference scales what is normed by H**-0.5, which here goes into the norm's weight.
        self._factor, self._eps = config.hidden_size**-0.5, config.rms_norm_eps

    def __call__(self, x: mx.array) -> Chosen:
        """Choose from the residual stream itself: x [B, L, H].

        A softmax over the chosen scores is one over all, normed again to sum to 1.
        """
        weight = self.scale.astype(mx.float32) * self._factor
        normed = mx.fast.rms_norm(x.astype(mx.float32), weight, self._eps)
        scores = self.proj(normed.astype(x.dtype)).astype(mx.float32)
        best = mx.argpartition(-scores, self._count - 1, axis=-1)[..., : self._count]
        experts = mx.sort(best, axis=-1)
        shares = mx.softmax(mx.take_along_axis(scores, experts, axis=-1), axis=-1)
        return Chosen(experts, shares * self.per_expert_scale[experts].astype(mx.float32))


class Experts(nn.Module):
    """The sum of the chosen experts' down(gelu(gate(x)) * up(x)), each by its share."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        assert config.num_experts is not None and config.moe_intermediate_size is not None
        E, H, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = ExpertLinear(E, H, 2 * width)
        self.down_proj = ExpertLinear(E, width, H)

    def __call__(self, x: mx.array, chosen: Chosen) -> mx.array:
        """Shapes: x [B, L, H] -> [B, L, H]; summed in float32, an expert after the other."""
        gate, up = mx.split(self.gate_up_proj(x, chosen.experts), 2, axis=-1)
        each = self.down_proj(gelu_mul(gate, up), chosen.experts[..., None])[..., 0, :]
        return weighted_sum(each, chosen.shares).astype(x.dtype)


def weighted_sum(each: mx.array, shares: mx.array) -> mx.array:
    """Sum what experts gave, each by its share: [..., k, H], [..., k] -> float32 [..., H]."""
    return (each * shares[..., None]).sum(axis=-2)
