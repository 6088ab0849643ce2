"""Choose who codes and lays out: the native library where it is built, else numpy.

Both give the same bits.
"""

import numpy as np
from numpy.typing import NDArray

from . import device, packing
from .backends.native import build
from .backends.native.coding import Coding
from .backends.native.library import library
from .coder import Coder
from .packing import BitOrder, Codes, Words


def make_coder(centroids: NDArray[np.float32]) -> Coder:
    """Return a coder with one table of centroids, ascending [2..256]."""
    native = _native()
    return native.make_coder(centroids) if native else Coder(centroids)


def stream_planes(stream: Codes, bits: int, order: BitOrder) -> tuple[Words, ...]:
    """Lay whole blocks of a stream out in P32, as `packing.stream_planes`."""
    native = _native()
    return (native or packing).stream_planes(stream, bits, order)


def p32_planes(codes: Codes, bits: int) -> tuple[Words, ...]:
    """Lay rows of codes out in P32, as `packing.p32_planes`."""
    return stream_planes(packing.pack(codes, bits, "lsb"), bits, "lsb")


def _native() -> Coding | None:
    """Return the library. Where there is a GPU it is not compiled for this alone."""
    is_wanted = device.is_cpu() or build.is_there()
    found = library() if is_wanted else None
    return found.coding if found else None
