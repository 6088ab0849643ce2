"""The weight on 8-bit grids, for stock `mx.quantized_matmul`: 8.5 or 9 bits a weight.

Every centroid is rounded to the nearest of 256 even steps. Where a table's outer centroids are too
unevenly spaced for that, every 64 weights get a grid of their own. IMAGE_ERROR bounds the distance
from the twin. It runs in float32 for any x, because stock bfloat16 is nine times slower on a CPU.

Rows: on a CPU `mx.quantized_matmul` multiplies row by row, so a row has the same bits among any
number of rows below DECODED_ROWS. From there on the image is decoded for `mx.matmul`, which sums in
another order. The levels 0..255 of a grid stand for step * (level - 127.5).

M rows of x, N rows and K columns of the weight.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..activation import Activation
from ..matrix import CodedMatrix
from ..packing import BLOCK, unpack_p32
from ..tables import cell_probabilities, error_energy
from .base import ExpertProduct, Product, rotate

DECODED_ROWS = 64  # of x, from which on decoding an image costs little beside the product
FITTED_GROUP = 64  # weights to a grid, where one grid does not fit the whole table

# |image - twin| / |twin| over weights coded from a normal distribution, at most, for 1 to 8 bits.
# The energy of the coding error itself rises by 1 % at most, except where every 64 weights have
# their grid: converged by 5 %, 18 % and 73 % at 6, 7 and 8 bits, inf_100 by 37 % at 8.
IMAGE_ERROR: dict[str, tuple[float, ...]] = {
    "clip4_100": (1e-6, 3.2e-4, 6.2e-4, 3.2e-3, 5.7e-3, 1.6e-3, 4.9e-4, 2.9e-4),
    "inf_100": (1e-6, 2.6e-4, 8.7e-4, 3.8e-3, 5.1e-3, 2.2e-3, 9.9e-4, 5.6e-3),
    "converged": (1e-6, 2.6e-4, 8.7e-4, 4.0e-3, 5.1e-3, 5.6e-3, 5.6e-3, 5.6e-3),
}

_ZERO = 127.5  # of the grid 0..255: symmetric, like the tables
_REFITS = 3
_SLICE_WEIGHTS = 1 << 22
_MAX_RISE = 0.02  # of the coding error, by one grid for the whole table


class Image(NamedTuple):
    """A weight on 8-bit grids, four levels in a word, and the weights that share a grid.

    Shapes: levels uint32 [..., K/4], scales and biases float32 [..., K/group_size].
    """

    levels: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int

    @classmethod
    def of(cls, matrix: CodedMatrix) -> "Image":
        """Make the image of a matrix, within IMAGE_ERROR of the twin."""
        matrix.check("affine.Affine")
        table = np.array(matrix.centroids[: 1 << matrix.bits], dtype=np.float64)
        levels, step = affine_grid(table)
        excess = cell_probabilities(table) @ (step * (levels - _ZERO) - table) ** 2
        if excess <= _MAX_RISE * error_energy(table):
            scales = matrix.norms.astype(mx.float32) * (step / math.sqrt(BLOCK))
            image = cls(_translated(matrix, levels), scales, scales * -_ZERO, BLOCK)
        else:
            image = cls(*_fitted(matrix), FITTED_GROUP)
        mx.eval(image[:3])
        return image

    @property
    def columns(self) -> int:
        """K, the padding columns included."""
        return 4 * int(self.levels.shape[-1])

    def rows(self, start: int, stop: int) -> "Image":
        """Return the image of some rows."""
        levels, scales, biases = (part[start:stop] for part in self[:3])
        return Image(levels, scales, biases, self.group_size)

    def decode(self) -> mx.array:
        """Return the weights themselves, in the rotated basis: [..., K]."""
        return mx.dequantize(
            self.levels, self.scales, self.biases, group_size=self.group_size, bits=8
        )

    def stack(self, count: int) -> "Image":
        """Return the image as that of so many matrices below each other: [count, N/count, ...]."""
        levels, scales, biases = (part.reshape(count, -1, part.shape[-1]) for part in self[:3])
        return Image(levels, scales, biases, self.group_size)


class Affine(Product):
    """A quantized product with the image of a weight."""

    def __init__(self, matrix: CodedMatrix) -> None:
        self._image = Image.of(matrix)

    def __call__(self, x: Activation) -> mx.array:
        x.check("affine.Affine", self._image.columns)
        rotated = x.rotated(rotate)
        multiply = self._multiply if x.rows < DECODED_ROWS else self._multiply_decoded
        return multiply(rotated).astype(x.dtype)

    def _multiply(self, rotated: mx.array) -> mx.array:
        image = self._image
        return mx.quantized_matmul(
            rotated,
            image.levels,
            image.scales,
            image.biases,
            group_size=image.group_size,
            bits=8,
        )

    def _multiply_decoded(self, rotated: mx.array) -> mx.array:
        """Decode some rows of the weight at a time and multiply by them.

        For many rows of x stock matmul is as fast as the image, and many times faster with a BLAS
        made for the processor (Apple's, or a preloaded OpenBLAS).
        """
        step = max(1, _SLICE_WEIGHTS // rotated.shape[-1])
        products = []
        for start in range(0, self._image.levels.shape[0], step):
            products.append(rotated @ self._image.rows(start, start + step).decode().T)
            mx.eval(products[-1])  # or all slices would be in memory at once
        return mx.concatenate(products, axis=-1)


class AffineExperts(ExpertProduct):
    """Quantized products with the images of a stack, a row and an expert at a time."""

    def __init__(self, matrix: CodedMatrix, experts: int) -> None:
        self._stack = Image.of(matrix).stack(experts)

    def __call__(self, x: Activation, experts: mx.array) -> mx.array:
        x.check("affine.AffineExperts", self._stack.columns)
        rows = x.rotated(rotate)[..., None, None, :]
        y = mx.gather_qmm(
            rows,
            self._stack.levels,
            self._stack.scales,
            self._stack.biases,
            rhs_indices=experts,
            group_size=self._stack.group_size,
            bits=8,
        )
        return y[..., 0, :].astype(x.dtype)


def _row_slices(matrix: CodedMatrix) -> Iterator[NDArray[np.uint8]]:
    """Unpack codes, some rows at a time."""
    N, K = matrix.shape
    words = np.asarray(matrix.codes)
    row_count = max(1, _SLICE_WEIGHTS // K)
    for start in range(0, N, row_count):
        yield unpack_p32(words, matrix.bits, start, min(row_count, N - start))


def _translated(matrix: CodedMatrix, levels: NDArray[np.uint8]) -> mx.array:
    """Return the codes as levels on a grid, four in a word: [N, K/4]."""
    # bytes.translate does what numpy's take does, several times faster.
    translation = levels.tobytes().ljust(256)
    slices = []
    for rows in _row_slices(matrix):
        image = np.frombuffer(rows.tobytes().translate(translation), dtype="<u4")
        slices.append(mx.array(image.reshape(len(rows), -1)))
    return mx.concatenate(slices)


def _fitted(matrix: CodedMatrix) -> tuple[mx.array, mx.array, mx.array]:
    """Decode a slice of rows at a time, in the rotated basis, and quantize it as stock MLX does."""
    table = np.array(matrix.centroids, dtype=np.float32)
    scales = np.array(matrix.norms, dtype=np.float32) / np.float32(math.sqrt(BLOCK))
    parts = []
    start = 0
    for rows in _row_slices(matrix):
        slice_scales = scales[start : start + len(rows)].repeat(BLOCK, axis=1)
        start += len(rows)
        weight = mx.array(table[rows] * slice_scales)
        parts.append(mx.quantize(weight, group_size=FITTED_GROUP, bits=8))
        mx.eval(parts[-1])  # before the next slice is decoded
    image, group_scales, biases = (mx.concatenate([*part]) for part in zip(*parts, strict=True))
    return image, group_scales, biases


def affine_grid(centroids: NDArray[np.float64]) -> tuple[NDArray[np.uint8], float]:
    """Fit an even grid to a table: centroid[i] is about step * (level[i] - 127.5).

    It tries all grids of 40 to 127 steps a side, fits each by least squares, and takes the best. A
    centroid's weight is how often a normal variable falls to it.

    Shapes: centroids ascending [2..256] -> levels uint8 of the same length, and the step.
    """
    weights = cell_probabilities(centroids)
    steps = np.abs(centroids).max() / (np.arange(40, 128)[:, None] + 0.5)
    for _ in range(_REFITS):
        offsets = _levels(centroids, steps) - _ZERO
        products = (weights * offsets * centroids).sum(axis=1, keepdims=True)
        steps = products / (weights * offsets**2).sum(axis=1, keepdims=True)
    errors = weights * (steps * (_levels(centroids, steps) - _ZERO) - centroids) ** 2
    best = errors.sum(axis=1).argmin()
    return _levels(centroids, steps[best]).astype(np.uint8), float(steps[best, 0])


def _levels(centroids: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    levels: NDArray[np.float64] = np.clip(np.rint(centroids / steps + _ZERO), 0, 255)
    return levels
