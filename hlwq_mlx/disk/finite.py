"""Find NaN and infinity among floating numbers by the bits of their exponents.

Looks at a cache's worth at a time, so that it costs little beside writing them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# NaN and infinity alone have every bit of the exponent set.
_EXPONENTS: Mapping[str, np.unsignedinteger[Any]] = {
    "BF16": np.uint16(0x7F80),
    "F16": np.uint16(0x7C00),
    "F32": np.uint32(0x7F800000),
    "F64": np.uint64(0x7FF0000000000000),
}
_STEP_BYTES = 1 << 20


def find_not_finite(raw: NDArray[np.uint8], dtype: str) -> int | None:
    """Return the index of the first number that is NaN or infinite; None when all are finite.

    Shapes: raw, the bytes of whole numbers of a safetensors dtype.
    """
    mask = _EXPONENTS.get(dtype)
    if mask is None:
        return None
    for start in range(0, raw.size, _STEP_BYTES):
        exponents = raw[start : start + _STEP_BYTES].view(mask.dtype) & mask
        if exponents.max() == mask:
            return start // mask.itemsize + int(exponents.argmax())
    return None
