"""Where this machine computes: on a CPU, or by Metal on some generation of Apple's GPUs.

Kernels and backends are chosen elsewhere, from what these functions return.
"""

from functools import cache

import mlx.core as mx

from .chips import Chip, chip_named


@cache
def chip() -> Chip:
    """Return what is chosen by this machine's chip."""
    info = mx.device_info()
    return chip_named(str(info.get("device_name")), str(info.get("architecture")))


def has_metal() -> bool:
    """Return whether arrays are computed by Metal."""
    return mx.metal.is_available() and mx.default_device() == mx.Device(mx.gpu)


def is_cpu() -> bool:
    """Return whether arrays are computed by a CPU."""
    return bool(mx.default_device() == mx.Device(mx.cpu))


def activation_dtype() -> mx.Dtype:
    """Return the dtype that activations should have on the default device."""
    return mx.float32 if is_cpu() else chip().activations
