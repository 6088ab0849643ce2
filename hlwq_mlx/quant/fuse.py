"""Fewer launches: layers that share their input become one, where they are coded alike.

Works on a loaded model, in place, and frees what it replaces; the model can then no longer be saved
as a checkpoint. Worth it on Metal, where a launch costs what a thousand weights do. Not a change of
numbers: the rows of a product do not know of each other.
"""

import mlx.core as mx
import numpy as np
from mlx import nn

from .layers import CodedLayer, HLWQGateUp, HLWQLinear, HLWQRows
from .packing import concatenate_p32

GATE_UP = ("gate_proj", "up_proj")
QKV = ("q_proj", "k_proj", "v_proj")


def blocks(model: nn.Module) -> list[nn.Module]:
    """List the modules that `fuse` may find something to do in."""
    return [module for module in model.modules() if GATE_UP[1] in module or QKV[1] in module]


def fuse(block: nn.Module) -> int:
    """Make `gate_up` of gate and up, and `qkv` of q, k and, if there is one, v; count what is made.

    The block itself has to use them when it has them. Layers stay as they are when one is not
    coded, or they differ in width or table.
    """
    return _fuse_gate_up(block) + _fuse_qkv(block)


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
