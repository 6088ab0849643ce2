"""Code many rows fast, bit for bit as `codec.encode` defines it.

Blocks stand in columns, so that each butterfly of the transform adds whole rows. It runs in
float32; a table of cells then gives the code of every value that cannot lie near the midpoint of
two centroids. The few others are settled in float64, as the definition does; its sums are exact, in
whatever order, unless weights of one block are more than 2**22 apart (bfloat16: 2**38). No product
of matrices: threads of numpy's own would wait for those that code other rows.

N rows, K columns padded to blocks.
"""

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError
from .codec import MIN_NORM, decode
from .packing import BLOCK, Codes

_Float = TypeVar("_Float", np.float32, np.float64)

_CHUNK_BLOCKS = 1 << 10  # the temporaries of a chunk stay in the second-level cache
_CELLS = 1 << 16
# A block of norm 1 has no coordinate beyond sqrt(128); the last cells take what rounding adds.
_REACH = 11.32
_SCALE = _CELLS / (2 * _REACH)
# What float32 may be wrong by. Seven butterflies err by 7 * 2**-24 of the block's norm, sqrt(128);
# the factor of a block, its product and the cell's number by 2**-24 of 11.32 each, and 2**-8 cells.
_TOLERANCE = 1e-5


class Energies(NamedTuple):
    """Sums of squares: of weights, of what their codes stand for, and of the difference."""

    weights: float
    decoded: float
    errors: float


class Coded(NamedTuple):
    """Codes uint8 [N, K], norms float16 [N, K/128], and what coding cost."""

    codes: Codes
    norms: NDArray[np.float16]
    energies: Energies


def energies_of(weight: NDArray[np.float32], decoded: NDArray[np.float32]) -> Energies:
    """Return the energies of weights and of what they decode to, both of one shape."""
    wide, other = weight.astype(np.float64), decoded.astype(np.float64)
    return Energies(*(float(np.vdot(each, each)) for each in (wide, other, wide - other)))


class Coder:
    """Codes rows with one table of centroids, ascending [2..256]; threads may share it."""

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        self._centroids = centroids
        levels = centroids.astype(np.float64)
        midpoints = (levels[1:] + levels[:-1]) / 2
        self._midpoints = np.append(midpoints, (np.inf, np.inf))
        edges = (np.arange(_CELLS + 1) / _SCALE) - _REACH
        below, above = (
            np.searchsorted(midpoints, side)
            for side in (edges[:-1] - _TOLERANCE, edges[1:] + _TOLERANCE)
        )
        # Above the code, a bit says that the cell does not settle it.
        self._cells = (below | (below != above) << 8).astype(np.uint16)

    def __call__(self, weight: NDArray[np.float32]) -> Coded:
        """Code a matrix; rows are independent.

        Shapes: weight [N, columns].
        Raises: ShapeError for weights that are not finite, or whose norms float16 cannot hold.
        """
        N, columns = weight.shape
        nb = -(-columns // BLOCK)
        if columns % BLOCK:
            weight = np.pad(weight, ((0, 0), (0, nb * BLOCK - columns)))
        blocks = np.ascontiguousarray(weight).reshape(-1, BLOCK)
        codes = np.empty(blocks.shape, dtype=np.uint8)
        norms = np.empty(len(blocks), dtype=np.float16)
        sums = np.zeros(len(Energies._fields))
        for start in range(0, len(blocks), _CHUNK_BLOCKS):
            part = slice(start, start + _CHUNK_BLOCKS)
            codes[part], norms[part], energies = self._chunk(blocks[part])
            sums += energies
        coded = Coded(codes.reshape(N, -1), norms.reshape(N, nb), Energies(*sums.tolist()))
        return self._without_padding(coded, columns) if columns % BLOCK else coded

    def _chunk(
        self, blocks: NDArray[np.float32]
    ) -> tuple[Codes, NDArray[np.float16], tuple[float, float, float]]:
        """Code some blocks [n, 128]; return codes [n, 128], norms [n] and the sums of squares."""
        lengths = _lengths(blocks)
        rotated = _rotate(blocks, np.float32)
        position = rotated * (_SCALE / lengths).astype(np.float32)
        position += np.float32(_CELLS // 2)
        found = np.take(self._cells, position.astype(np.intp), mode="clip")
        codes = found.astype(np.uint8)
        self._settle(codes.reshape(-1), np.flatnonzero(found > 255), position, blocks, lengths)
        norms = lengths.astype(np.float16)
        decoded = np.take(self._centroids, codes, mode="clip")
        decoded *= norms.astype(np.float32)
        rotated -= decoded
        # The unscaled transform multiplies squares by 128.
        sums = (float(lengths @ lengths), _squares(decoded) / BLOCK, _squares(rotated) / BLOCK)
        return codes.T, norms, sums

    def _settle(
        self,
        codes: Codes,
        places: NDArray[np.intp],
        position: NDArray[np.float32],
        blocks: NDArray[np.float32],
        lengths: NDArray[np.float64],
    ) -> None:
        """Code the values at `places` of [128, n], in float64 where float32 cannot tell.

        A value half way between two centroids takes the lower code.
        """
        values = (position.reshape(-1)[places].astype(np.float64) - _CELLS // 2) / _SCALE
        below = codes[places]
        midpoint = self._midpoints[below]
        codes[places] += values > midpoint
        beyond = self._midpoints[below.astype(np.intp) + 1]  # in the same cell if the table is odd
        is_near = (np.abs(values - midpoint) <= _TOLERANCE) | (values + _TOLERANCE >= beyond)
        near = places[is_near]
        if not near.size:
            return
        row, column = np.divmod(near, len(blocks))
        chosen, among = np.unique(column, return_inverse=True)
        exact = _rotate(blocks[chosen], np.float64)[row, among] / lengths[column]
        codes[near] = np.searchsorted(self._midpoints[:-2], exact)

    def _without_padding(self, coded: Coded, columns: int) -> Coded:
        """Take what the padding columns decode to, which is never read, out of the energies."""
        last = decode(coded.codes[:, -BLOCK:], coded.norms[:, -1:], self._centroids)
        padding = last[:, columns % BLOCK :].astype(np.float64)
        extra = float(np.vdot(padding, padding))
        weights, decoded, errors = coded.energies
        return coded._replace(energies=Energies(weights, decoded - extra, errors - extra))


def _lengths(blocks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the norms of blocks, as the definition computes them."""
    wide = blocks.astype(np.float64)
    lengths: NDArray[np.float64] = np.maximum(np.sqrt(np.einsum("bk,bk->b", wide, wide)), MIN_NORM)
    if not (lengths <= np.finfo(np.float16).max).all():
        raise ShapeError(
            "[coder] needed finite weights with block norms up to 65504, "
            f"got {lengths.max():.6g}. Look for infinities and NaN, or scale the weight down."
        )
    return lengths


def _rotate(blocks: NDArray[np.float32], dtype: type[_Float]) -> NDArray[_Float]:
    """Apply the unscaled Walsh-Hadamard transform: blocks [n, 128] -> [128, n]."""
    n = len(blocks)
    values = np.ascontiguousarray(blocks.T, dtype=dtype)
    other = np.empty_like(values)
    step = 1
    while step < BLOCK:
        pairs, sums = (array.reshape(-1, 2, step, n) for array in (values, other))
        np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        values, other, step = other, values, 2 * step
    return values


def _squares(rows: NDArray[np.float32]) -> float:
    """Sum squares, in float64 from row to row."""
    return float(np.einsum("kb,kb->k", rows, rows).sum(dtype=np.float64))
