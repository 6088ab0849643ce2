"""Fewer launches: layers that share their input become one, and what lies between them does, too.

Layers are joined where they are coded alike. What lies between, norms and residual or a gate, is
one kernel that hands the next layers their input rotated. Works on a loaded model, in place, and
frees what it replaces; the model can then no longer be saved as a checkpoint. Worth it on Metal,
where a launch costs what a thousand weights do; elsewhere numbers change by their rounding at most.
"""

import mlx.core as mx
import numpy as np
from mlx import nn

from . import backend, kernels
from .backend import Activation
from .layers import CodedLayer, HLWQGateUp, HLWQLinear, HLWQRows, PlainLinear
from .packing import concatenate_p32

GATE_UP = ("gate_proj", "up_proj")
QKV = ("q_proj", "k_proj", "v_proj")


PER_LAYER = ("per_layer_input_gate", "per_layer_projection")


def blocks(model: nn.Module) -> list[nn.Module]:
    """List the modules that `fuse` may find something to do in."""
    return [
        module
        for module in model.modules()
        if GATE_UP[1] in module or QKV[1] in module or "mlp" in module
    ]


def fuse(block: nn.Module) -> int:
    """Make what can be made of a block, and count it.

    `gate_up` of gate and up; `qkv` of q, k and, if there is one, v; kernels of what the block has
    as `gated` and `tail`. The block itself has to use them when it has them. Layers stay as they
    are when one is not coded, or they differ in width or table; `tail` is for models whose linear
    layers are plain or coded, and for all of their blocks or none.
    """
    is_joined = _fuse_gate_up(block)
    return is_joined + _fuse_qkv(block) + _fuse_gated(block) + _fuse_tail(block)


def _fuse_gated(block: nn.Module) -> bool:
    name = "down_proj" if GATE_UP[1] in block else PER_LAYER[1]
    if name not in block:
        return False
    _let_take_rotated(block, name)
    is_coded = type(block[name]) is HLWQLinear
    columns = block[name].input_dims if is_coded else block[name].weight.shape[1]
    is_fitting = kernels.can_rotate(columns)
    if is_fitting:
        block.gated = backend.gated
    return is_fitting


def _fuse_tail(block: nn.Module) -> bool:
    if "mlp" not in block or not kernels.can_close(block.input_layernorm.weight.size):
        return False
    for owner, names in ((block.self_attn, QKV), (block.mlp, GATE_UP), (block, PER_LAYER[:1])):
        for name in names:
            _let_take_rotated(owner, name)
    block.tail = tail
    return True


def _let_take_rotated(owner: nn.Module, name: str) -> None:
    """Make a plain layer one that may be given a rotated activation, as coded ones may."""
    if name in owner and type(owner[name]) is nn.Linear:
        rows, columns = owner[name].weight.shape
        taking = PlainLinear(columns, rows, bias="bias" in owner[name])
        taking.update(owner[name].parameters())
        setattr(owner, name, taking)


def tail(
    x: mx.array,
    update: mx.array,
    norm: nn.RMSNorm,
    following: nn.RMSNorm | None = None,
    scale: mx.array | None = None,
) -> tuple[mx.array, Activation]:
    """Close a part of a layer and open the next, as `backend.tail` does.

    Shapes: x, update [..., K], scale [1] -> twice [..., K].
    """
    next_weight = None if following is None else following.weight
    return backend.tail(x, update, norm.weight, scale, norm.eps, next_weight)


def _fuse_gate_up(block: nn.Module) -> bool:
    parts = [block[name] for name in GATE_UP if name in block]
    if not _are_alike(parts) or parts[0].output_dims != parts[1].output_dims:
        return False
    gate = parts[0]
    block.gate_up = HLWQGateUp(gate.input_dims, gate.output_dims, gate.code_bits)
    _fill(block.gate_up, parts)
    _remove(block, GATE_UP)
    return True


def _fuse_qkv(block: nn.Module) -> bool:
    parts = [block[name] for name in QKV if name in block]
    if not _are_alike(parts):
        return False
    heights = [part.output_dims for part in parts]
    block.qkv = HLWQRows(parts[0].input_dims, heights, parts[0].code_bits)
    _fill(block.qkv, parts)
    _remove(block, QKV)
    return True


def _are_alike(parts: list[nn.Module]) -> bool:
    """Say whether there are layers to join, and all are coded in one way."""
    if len(parts) < 2 or any(type(part) is not HLWQLinear or "bias" in part for part in parts):
        return False
    first = parts[0]
    return all(
        part.code_bits == first.code_bits
        and part.input_dims == first.input_dims
        and bool(mx.array_equal(part.centroids, first.centroids))
        for part in parts[1:]
    )


def _fill(joined: CodedLayer, parts: list[HLWQLinear]) -> None:
    words = [np.asarray(part.codes) for part in parts]
    joined.codes = mx.array(concatenate_p32(words, joined.code_bits))
    joined.norms = mx.concatenate([part.norms for part in parts])
    joined.centroids = parts[0].centroids
    mx.eval(joined.parameters())  # now, so that the parts can go


def _remove(block: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        if name in block:
            delattr(block, name)
