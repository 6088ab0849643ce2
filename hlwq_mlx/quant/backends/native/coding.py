"""What conversion does with codes, by the functions of coding.cpp.

Many threads may call at once; each gives the bits of its namesake in `packing` or `coder`.
"""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...coder import TOLERANCE, Coder, block_lengths
from ...packing import BLOCK, BitOrder, Codes, Words, check_stream, p32_plane_widths

_CHUNK_BLOCKS = 1 << 11
_Sums = tuple[float, float, float]


class Coding:
    """Lays codes out, and makes coders."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._functions = functions
        functions.hlwq_lay_out.argtypes = (
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int),
            ctypes.POINTER(ctypes.c_void_p),
        )
        functions.hlwq_code.argtypes = (
            *(ctypes.POINTER(_Table), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p),
        )

    def stream_planes(self, stream: Codes, bits: int, order: BitOrder) -> tuple[Words, ...]:
        """Lay whole blocks of a stream out in P32, as `packing.stream_planes` does.

        Raises: ShapeError for order `half`, or a stream that ends within a block.
        """
        blocks = check_stream(stream, bits, order)
        flat = np.ascontiguousarray(stream)
        planes = [np.empty(4 * blocks * width, "<u4") for width in p32_plane_widths(bits)]
        targets = (ctypes.c_void_p * len(planes))(*(plane.ctypes.data for plane in planes))
        is_msb = order == "msb" and bits < 8
        self._functions.hlwq_lay_out(flat.ctypes.data, blocks, bits, is_msb, targets)
        return tuple(planes)

    def make_coder(self, centroids: NDArray[np.float32]) -> Coder:
        """Return a coder with one table of centroids, ascending [2..256]."""
        return _NativeCoder(self._functions, centroids)


class _Table(ctypes.Structure):
    """`Table` of coding.cpp."""

    _fields_ = (
        ("cells", ctypes.c_void_p),
        ("levels", ctypes.c_void_p),
        ("centroids", ctypes.c_void_p),
        ("midpoints", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("tolerance", ctypes.c_double),
    )


class _NativeCoder(Coder):
    def __init__(self, functions: ctypes.CDLL, centroids: NDArray[np.float32]) -> None:
        super().__init__(np.ascontiguousarray(centroids))
        self._code_blocks = functions.hlwq_code
        arrays: tuple[NDArray[Any], ...] = (
            *(self._cells, self._levels, self._centroids, self._midpoints),
        )
        pointers = (array.ctypes.data for array in arrays)
        self._table = _Table(*pointers, self._midpoints.size - 2, self._scale, TOLERANCE)

    def _code(self, blocks: NDArray[np.float32], codes: Codes, norms: NDArray[np.float16]) -> _Sums:
        lengths = np.empty(len(blocks))
        wide = np.empty((_CHUNK_BLOCKS, BLOCK))
        for start in range(0, len(blocks), _CHUNK_BLOCKS):
            chunk = blocks[start : start + _CHUNK_BLOCKS]
            lengths[start : start + _CHUNK_BLOCKS] = block_lengths(chunk, wide[: len(chunk)])
        norms[:] = lengths
        stored, energies = norms.astype(np.float32), np.empty(2)
        self._code_blocks(
            self._table,
            *(each.ctypes.data for each in (blocks, lengths, stored)),
            *(len(blocks), codes.ctypes.data, energies.ctypes.data),
        )
        decoded, errors = energies.tolist()
        return float(lengths @ lengths), decoded, errors
