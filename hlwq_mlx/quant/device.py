"""Where this machine computes: on a CPU, or by Metal on some generation of Apple's GPUs.

Kernels and backends are chosen elsewhere, from what these functions return.
"""

import re
from typing import NamedTuple

import mlx.core as mx


class Chip(NamedTuple):
    """A generation of GPUs.

    Up to qmm_rows rows of x, qmm is faster than decoding the weight for `mx.matmul`: a weight
    decoded costs the same for one row as for a thousand, and qmm decodes it for every 32 rows.
    """

    activations: mx.Dtype
    qmm_rows: int


# By the number in the architecture's name, applegpu_g13g for M1 to applegpu_g17s for M5. M1 and M2
# have no bfloat16; M5 has matrix units, which `mx.matmul` uses. From a model, nothing measured.
CHIPS = {
    13: Chip(mx.float16, 512),
    14: Chip(mx.float16, 512),
    15: Chip(mx.bfloat16, 512),
    16: Chip(mx.bfloat16, 512),
    17: Chip(mx.bfloat16, 8),
}


def chip() -> Chip:
    """Return the chip's entry of CHIPS; the newest one for a chip that is not in it."""
    found = re.fullmatch(r"applegpu_g(\d+).*", str(mx.device_info().get("architecture")))
    return CHIPS.get(int(found[1]) if found else 0, CHIPS[max(CHIPS)])


def has_metal() -> bool:
    """Return whether arrays are computed by Metal."""
    return mx.metal.is_available() and mx.default_device() == mx.Device(mx.gpu)


def activation_dtype() -> mx.Dtype:
    """Return the dtype that activations should have on the default device."""
    is_cpu = mx.default_device() == mx.Device(mx.cpu)
    return mx.float32 if is_cpu else chip().activations
