"""Fewer launches: layers that share their input become one, where they are coded alike.

Works on a loaded model, in place, and frees what it replaces; the model can then no longer be saved
as a checkpoint. Worth it on Metal, where a launch costs what a thousand weights do. Not a change of
numbers: the rows of a product do not know of each other.
"""

import mlx.core as mx
import numpy as np
from mlx import nn

from .layers import HLWQGateUp, HLWQLinear
from .packing import concatenate_p32


def fuse_gate_up(model: nn.Module) -> int:
    """Replace `gate_proj` and `up_proj` by `gate_up` in every module that has both; count them.

    The module itself has to use `gate_up` when it has it. Pairs stay as they are when one is not
    coded, or they differ in shape, width or table.
    """
    count = 0
    for _, module in model.named_modules():
        if "gate_proj" in module and "up_proj" in module:
            gate, up = module.gate_proj, module.up_proj
            if _is_pair(gate, up):
                module.gate_up = _joined(gate, up)
                mx.eval(module.gate_up.parameters())
                del module.gate_proj, module.up_proj
                count += 1
    return count


def _is_pair(gate: nn.Module, up: nn.Module) -> bool:
    if type(gate) is not HLWQLinear or type(up) is not HLWQLinear:
        return False
    are_alike = gate.code_bits == up.code_bits and gate.codes.shape == up.codes.shape
    has_bias = "bias" in gate or "bias" in up
    return (
        are_alike
        and not has_bias
        and gate.input_dims == up.input_dims
        and bool(mx.array_equal(gate.centroids, up.centroids))
    )


def _joined(gate: HLWQLinear, up: HLWQLinear) -> HLWQGateUp:
    joined = HLWQGateUp(gate.input_dims, gate.output_dims, gate.code_bits)
    words = [np.asarray(module.codes) for module in (gate, up)]
    joined.codes = mx.array(concatenate_p32(words, gate.code_bits))
    joined.norms = mx.concatenate([gate.norms, up.norms])
    joined.centroids = gate.centroids
    return joined
