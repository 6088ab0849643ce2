"""Fewer launches: join layers that share their input, and fuse the operations between products.

Layers are joined where they are coded alike. The operations between them (norms with a residual, or
a gate) become one kernel each, which also rotates the input of the next layers: a layer's `ops`.
This works in place on a loaded model and frees what it replaces, so the model can no longer be
saved as a checkpoint. It pays on Metal, where a launch costs as much as a thousand weights;
elsewhere numbers change by rounding at most.
"""

import mlx.core as mx
from mlx import nn

from .codec import planes
from .layers import CodedLayer, HLWQGateUp, HLWQLinear, HLWQRows
from .ops import Ops, fused_ops

GATE_UP = ("gate_proj", "up_proj")
QKV = ("q_proj", "k_proj", "v_proj")
JOINED = (HLWQGateUp, HLWQRows)
# The modules that tell a block's operations their widths.
RESIDUAL_NORM = "input_layernorm"
GELU_MUL = ("down_proj", "per_layer_projection")


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the modules that `fuse` may change."""
    return [
        module
        for module in model.modules()
        if _has_ops(module) or any(name in module for name in (GATE_UP[1], QKV[1]))
    ]


def fuse(block: nn.Module) -> list[CodedLayer]:
    """Join the layers of a block, give it fused operations, and return what was joined.

    `gate_up` joins gate and up; `qkv` joins q, k and, if there is one, v. The block's own code uses
    them where it has them. Layers that are not coded, have means, or differ in width or table, stay
    apart.
    """
    joined = _fuse_gate_up(block), _fuse_qkv(block)
    if _has_ops(block):
        block.ops = _ops_for(block)
    return [layer for layer in joined if layer is not None]


def _has_ops(module: nn.Module) -> bool:
    return isinstance(getattr(module, "ops", None), Ops)


def _ops_for(block: nn.Module) -> Ops:
    """Return fused operations for the widths that a block has."""
    norm = block.get(RESIDUAL_NORM)
    gated = [block[name] for name in GELU_MUL if name in block and "gate_up" not in block]
    return fused_ops(
        residual_columns=norm.weight.size if norm else 0,
        eps=norm.eps if norm else 0.0,
        gelu_columns=gated[0].columns if gated else 0,
    )


def _fuse_gate_up(block: nn.Module) -> HLWQGateUp | None:
    parts = [block[name] for name in GATE_UP if name in block]
    if not _are_alike(parts) or parts[0].output_dims != parts[1].output_dims:
        return None
    gate = parts[0]
    joined = HLWQGateUp(gate.columns, gate.output_dims, gate.code_bits)
    _fill(joined, parts)
    _remove(block, GATE_UP)
    block.gate_up = joined
    return joined


def _fuse_qkv(block: nn.Module) -> HLWQRows | None:
    parts = [block[name] for name in QKV if name in block]
    if not _are_alike(parts):
        return None
    heights = [part.output_dims for part in parts]
    joined = HLWQRows(parts[0].columns, heights, parts[0].code_bits)
    _fill(joined, parts)
    _remove(block, QKV)
    block.qkv = joined
    return joined


def _are_alike(parts: list[nn.Module]) -> bool:
    """Return whether there are layers to join, and all are coded in one way."""
    if len(parts) < 2 or any(
        type(part) is not HLWQLinear or "bias" in part or "means" in part for part in parts
    ):
        return False
    first = parts[0]
    return all(
        part.code_bits == first.code_bits
        and part.columns == first.columns
        and bool(mx.array_equal(part.centroids, first.centroids))
        for part in parts[1:]
    )


def _fill(joined: CodedLayer, parts: list[HLWQLinear]) -> None:
    # Planes run over all rows, so those of a width go below each other.
    moved = [
        plane
        for same in zip(*(planes(part.matrix) for part in parts), strict=True)
        for plane in same
    ]
    words = parts[0].codes.shape[1]
    joined.codes = mx.concatenate([plane.reshape(-1) for plane in moved]).reshape(-1, words)
    joined.norms = mx.concatenate([part.norms for part in parts])
    joined.centroids = parts[0].centroids
    mx.eval(joined.parameters())  # now, so that the parts can go


def _remove(block: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        if name in block:
            delattr(block, name)
