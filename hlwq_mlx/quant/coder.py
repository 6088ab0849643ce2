"""Code many rows fast, bit for bit as `codec.encode` defines it.

The transform of a block is that of 8 by 16 columns, two products in float32 so small that no
library splits them among threads of its own, which would wait for those that code other rows.
Each call of numpy takes as many blocks as the caches allow: threads wait for each other between
calls. A table of cells then gives the code of every value that cannot lie near the midpoint of two
centroids. The few others are settled in float64, as the definition does; its sums are exact, in
whatever order, unless weights of one block are more than 2**22 apart (bfloat16: 2**38).

N rows, K columns padded to blocks.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError
from .codec import MIN_NORM, decode
from .packing import BLOCK, Codes

_CHUNK_BLOCKS = 1 << 11
_CELLS = 1 << 16
_MARGIN = 0.1  # between the last midpoint and the last cell, which takes what lies beyond
# What float32 may be wrong by, in whatever order the products sum: a value is the sum of 8 sums of
# 16, off by 22 * 2**-24 of all magnitudes, at most 8**0.5 * 4 norms: 1.5e-5. The factor of a block
# and its product add 2**-24 of sqrt(128) each, the cell's number 2**-8 cells.
TOLERANCE = 2e-5


def _signs(size: int) -> NDArray[np.float64]:
    index = np.arange(size)
    return np.where(np.bitwise_count(index[:, None] & index) & 1, -1.0, 1.0)


_SIGNS = _signs(BLOCK)
_TALL, _WIDE = _signs(8).astype(np.float32), _signs(16).astype(np.float32)


class Energies(NamedTuple):
    """Sums of squares: of weights, of what their codes stand for, and of the difference."""

    weights: float
    decoded: float
    errors: float


class Coded(NamedTuple):
    """Codes uint8 [N, K], norms float16 [N, K/128], and what coding cost.

    With means, float16 [N, K/128], the codes are those of what is left without them.
    """

    codes: Codes
    norms: NDArray[np.float16]
    energies: Energies
    means: NDArray[np.float16] | None = None


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
        reach = np.abs(midpoints).max() + _MARGIN
        self._scale = _CELLS / (2 * reach)
        edges = np.arange(_CELLS + 1) / self._scale - reach
        below, above = (
            np.searchsorted(midpoints, side)
            for side in (edges[:-1] - TOLERANCE, edges[1:] + TOLERANCE)
        )
        # Above the code, a bit says that the cell does not settle it.
        self._cells = (below | (below != above) << 8).astype(np.uint16)
        self._levels = centroids[below]  # of settled cells

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
        energies = Energies(*self._code(blocks, codes, norms))
        coded = Coded(codes.reshape(N, -1), norms.reshape(N, nb), energies)
        return self._without_padding(coded, columns) if columns % BLOCK else coded

    def _code(
        self, blocks: NDArray[np.float32], codes: Codes, norms: NDArray[np.float16]
    ) -> tuple[float, float, float]:
        """Code blocks [n, 128] into codes [n, 128] and norms [n]; return sums of squares."""
        sums = np.zeros(len(Energies._fields))
        buffers = _Buffers(min(len(blocks), _CHUNK_BLOCKS))
        for start in range(0, len(blocks), _CHUNK_BLOCKS):
            part = slice(start, start + _CHUNK_BLOCKS)
            chunk = blocks[part]
            buffers.keep(len(chunk))  # the last one may be smaller
            sums += self._chunk(chunk, codes[part], norms[part], buffers)
        weights, decoded, errors = sums.tolist()
        return weights, decoded, errors

    def _chunk(
        self,
        blocks: NDArray[np.float32],
        codes: Codes,
        norms: NDArray[np.float16],
        buffers: "_Buffers",
    ) -> tuple[float, float, float]:
        """Do what `_code` does with a few blocks."""
        lengths = block_lengths(blocks, buffers.wide)
        rotated, position = buffers.rotated, buffers.position
        _rotate(blocks, position, rotated)
        np.multiply(rotated, (self._scale / lengths).astype(np.float32)[:, None], out=position)
        position += np.float32(_CELLS // 2)
        cells = buffers.wide.view(np.int64)
        np.copyto(cells, position, casting="unsafe")
        np.take(self._cells, cells, out=buffers.found, mode="clip")
        np.copyto(codes, buffers.found, casting="unsafe")
        places = np.flatnonzero(buffers.found > 255)
        flat = codes.reshape(-1)
        self._settle(flat, places, position.reshape(-1), blocks, lengths)
        norms[:] = lengths
        decoded = np.take(self._levels, cells, out=position, mode="clip")
        decoded.reshape(-1)[places] = self._centroids[flat[places]]
        decoded *= norms.astype(np.float32)[:, None]
        rotated -= decoded
        # The unscaled transform multiplies squares by 128.
        return float(lengths @ lengths), _squares(decoded) / BLOCK, _squares(rotated) / BLOCK

    def _settle(
        self,
        codes: Codes,
        places: NDArray[np.intp],
        position: NDArray[np.float32],
        blocks: NDArray[np.float32],
        lengths: NDArray[np.float64],
    ) -> None:
        """Code the values at `places` of [n * 128], in float64 where float32 cannot tell.

        A value half way between two centroids takes the lower code.
        """
        values = (position[places].astype(np.float64) - _CELLS // 2) / self._scale
        below = codes[places]
        midpoint = self._midpoints[below]
        codes[places] = below + (values > midpoint)
        beyond = self._midpoints[below.astype(np.intp) + 1]  # in the same cell if the table is odd
        is_near = (np.abs(values - midpoint) <= TOLERANCE) | (values + TOLERANCE >= beyond)
        near = places[is_near]
        empty = lengths <= MIN_NORM
        empty[empty] = ~blocks[empty].any(axis=1)
        is_empty = empty[near // BLOCK]
        codes[near[is_empty]] = np.searchsorted(self._midpoints[:-2], 0.0)
        near = near[~is_empty]
        block, column = np.divmod(near, BLOCK)
        for part in range(0, near.size, _CHUNK_BLOCKS):  # every value, where all of them are ties
            rows, signs = (each[part : part + _CHUNK_BLOCKS] for each in (block, column))
            exact = np.einsum("ik,ik->i", blocks[rows].astype(np.float64), _SIGNS[signs])
            found = np.searchsorted(self._midpoints[:-2], exact / lengths[rows])
            codes[near[part : part + _CHUNK_BLOCKS]] = found

    def _without_padding(self, coded: Coded, columns: int) -> Coded:
        """Take what the padding columns decode to, which is never read, out of the energies."""
        last = decode(coded.codes[:, -BLOCK:], coded.norms[:, -1:], self._centroids)
        padding = last[:, columns % BLOCK :].astype(np.float64)
        extra = float(np.vdot(padding, padding))
        weights, decoded, errors = coded.energies
        return coded._replace(energies=Energies(weights, decoded - extra, errors - extra))


class _Buffers:
    """Room for what is computed of n blocks, each [n, 128], which chunks use in turn."""

    def __init__(self, blocks: int) -> None:
        shape = blocks, BLOCK
        self.wide = np.empty(shape, dtype=np.float64)
        self.rotated, self.position = np.empty((2, *shape), dtype=np.float32)
        self.found = np.empty(shape, dtype=np.uint16)

    def keep(self, blocks: int) -> None:
        """Keep the room of the first blocks alone."""
        self.wide, self.rotated = self.wide[:blocks], self.rotated[:blocks]
        self.position, self.found = self.position[:blocks], self.found[:blocks]


def block_lengths(blocks: NDArray[np.float32], wide: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the norms of blocks, as the definition computes them."""
    np.copyto(wide, blocks)
    lengths: NDArray[np.float64] = np.maximum(np.sqrt(np.einsum("bk,bk->b", wide, wide)), MIN_NORM)
    if not (lengths <= np.finfo(np.float16).max).all():
        raise ShapeError(
            "[coder] needed finite weights with block norms up to 65504, "
            f"got {lengths.max():.6g}. Look for infinities and NaN, or scale the weight down."
        )
    return lengths


def _rotate(
    blocks: NDArray[np.float32], spare: NDArray[np.float32], rotated: NDArray[np.float32]
) -> None:
    """Apply the unscaled Walsh-Hadamard transform: blocks [n, 128] -> rotated [n, 128]."""
    half = spare.reshape(-1, 8, 16)
    np.matmul(blocks.reshape(-1, 8, 16), _WIDE, out=half)
    np.matmul(_TALL, half, out=rotated.reshape(-1, 8, 16))


def _squares(rows: NDArray[np.float32]) -> float:
    """Sum squares, in float64 from row to row."""
    return float(np.vecdot(rows, rows).sum(dtype=np.float64))
