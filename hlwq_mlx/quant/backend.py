"""The one place that chooses how a product with a coded weight runs, and what leads to it.

Where MLX has Metal, our kernels run: `Kernels` chooses one by the number of rows and the chip, each
after selftest has tried it. Elsewhere, and where a kernel does not work, stock MLX does. A small
weight is decoded once and kept dense: exact, and as fast. A larger one becomes an affine-8 image,
by which stock `mx.quantized_matmul` multiplies: every centroid is rounded to the nearest step of an
even grid of 256, and where a table's tails are too uneven for that, every 64 weights get a grid of
their own. Both rotate the activation, run in float32 whatever x is (on a CPU stock bfloat16 is nine
times slower), and return x.dtype. Not the definition of the numbers: that is codec, and IMAGE_ERROR
says how far the image may be from it.

M rows of x, N rows and K columns of the weight, K padded to a multiple of 128.
"""

import math
import re
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from . import codec, kernels, selftest
from .kernels import QMV_ROWS, Coded, Tile
from .packing import BLOCK, unpack_p32
from .tables import cell_probabilities, error_energy

DENSE_WEIGHTS = 1 << 22  # 16 MiB in float32
DECODED_ROWS = 64  # of x, from which on decoding an image costs little beside the product

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
_FITTED_GROUP = 64


class Chip(NamedTuple):
    """What a generation of Apple's GPUs is good at.

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
    17: Chip(mx.bfloat16, QMV_ROWS),
}


def chip() -> Chip:
    """Return the chip's entry of CHIPS; the newest one for a chip that is not in it."""
    found = re.fullmatch(r"applegpu_g(\d+).*", str(mx.device_info().get("architecture")))
    return CHIPS.get(int(found[1]) if found else 0, CHIPS[max(CHIPS)])


def has_metal() -> bool:
    """Say whether arrays are computed by Metal."""
    return mx.metal.is_available() and mx.default_device() == mx.Device(mx.gpu)


def activation_dtype() -> mx.Dtype:
    """Return the dtype that activations should have on the default device."""
    is_cpu = mx.default_device() == mx.Device(mx.cpu)
    return mx.float32 if is_cpu else chip().activations


class Rotated(NamedTuple):
    """An activation, and its rotation in float32 by the kernel that has made it."""

    plain: mx.array
    rotated: mx.array


Activation = mx.array | Rotated


def plain(x: Activation) -> mx.array:
    """Return an activation as a layer takes it that is not coded."""
    return x.plain if isinstance(x, Rotated) else x


class Product(Protocol):
    """A weight made ready to be multiplied by."""

    def __call__(self, x: mx.array) -> mx.array:
        """Multiply rows by the weight: x [..., K], neither rotated nor cast -> [..., N]."""


class Dense:
    """The decoded weight in the rotated basis: 32 bits a weight, the twin's own numbers."""

    def __init__(self, codes: mx.array, norms: mx.array, centroids: mx.array, bits: int) -> None:
        self._weight = codec.rotated_weight(codes, norms, centroids, bits)
        mx.eval(self._weight)

    def __call__(self, x: mx.array) -> mx.array:
        codec.check_product("backend.Dense", x, self._weight.shape[1])
        return (codec.hadamard(x.astype(mx.float32)) @ self._weight.T).astype(x.dtype)


class AffineImage:
    """The weight on 8-bit grids: 8.5 or 9 bits a weight, within IMAGE_ERROR of the twin."""

    def __init__(self, codes: mx.array, norms: mx.array, centroids: mx.array, bits: int) -> None:
        codec.check_coded("backend.AffineImage", codes, norms, centroids, bits)
        table = np.array(centroids[: 1 << bits], dtype=np.float64)
        levels, step = affine_grid(table)
        excess = cell_probabilities(table) @ (step * (levels - _ZERO) - table) ** 2
        if excess <= _MAX_RISE * error_energy(table):
            self._group_size = BLOCK
            self._image = _translated(codes, norms, bits, levels)
            self._scales = norms.astype(mx.float32) * (step / math.sqrt(BLOCK))
            self._biases = self._scales * -_ZERO
        else:
            self._group_size = _FITTED_GROUP
            self._image, self._scales, self._biases = _fitted(codes, norms, centroids, bits)
        mx.eval(self._image, self._scales, self._biases)

    def __call__(self, x: mx.array) -> mx.array:
        K = 4 * self._image.shape[1]
        codec.check_product("backend.AffineImage", x, K)
        rotated = codec.hadamard(x.astype(mx.float32))
        if x.size // K >= DECODED_ROWS:
            return self._multiply_decoded(rotated).astype(x.dtype)
        y = mx.quantized_matmul(
            rotated,
            self._image,
            self._scales,
            self._biases,
            group_size=self._group_size,
            bits=8,
        )
        return y.astype(x.dtype)

    def _multiply_decoded(self, rotated: mx.array) -> mx.array:
        """Decode some rows of the weight at a time and multiply by them.

        For many rows of x stock matmul is as fast as the image, and with a BLAS that is made for
        the processor, as Apple's or a preloaded OpenBLAS, many times faster.
        """
        step = max(1, _SLICE_WEIGHTS // rotated.shape[-1])
        products = []
        for start in range(0, self._image.shape[0], step):
            image, scales, biases = (
                part[start : start + step] for part in (self._image, self._scales, self._biases)
            )
            weight = mx.dequantize(image, scales, biases, group_size=self._group_size, bits=8)
            products.append(rotated @ weight.T)
            mx.eval(products[-1])  # or all slices would be in memory at once
        return mx.concatenate(products, axis=-1)


class Kernels:
    """The codes themselves, multiplied by our Metal kernels: exactly `bits` bits a weight."""

    def __init__(self, codes: mx.array, norms: mx.array, centroids: mx.array, bits: int) -> None:
        self._matrix = Coded(codes, norms, centroids, bits)
        kernels.check_matrix("backend.Kernels", self._matrix)
        self._qmm_rows = chip().qmm_rows
        self._stock: Product | None = None

    def __call__(self, x: Activation) -> mx.array:
        M, tile = self._rows_and_tile(x)
        bits, dtype = self._matrix.bits, plain(x).dtype
        if tile is not None and selftest.is_sound(few_rows, rotated_product, bits, dtype, tile):
            return few_rows(x, self._matrix, tile)
        is_for_qmm = QMV_ROWS < M <= self._qmm_rows
        if is_for_qmm and selftest.is_sound(many_rows, rotated_product, bits, dtype):
            return many_rows(x, self._matrix)
        if selftest.is_sound(decoded, rotated_product, bits, dtype):
            return decoded(x, self._matrix)
        if self._stock is None:
            self._stock = _stock(*self._matrix)
        return self._stock(plain(x))

    def geglu(self, x: Activation) -> mx.array:
        """Multiply by a gate|up and return gelu(gate) * up; one kernel for a few rows."""
        _, tile = self._rows_and_tile(x)
        bits, dtype = self._matrix.bits, plain(x).dtype
        if tile is not None and selftest.is_sound(few_gated, rotated_geglu, bits, dtype, tile):
            return few_gated(x, self._matrix, tile)
        return halves_gated(self(x))

    def _rows_and_tile(self, x: Activation) -> tuple[int, Tile | None]:
        """Count the rows of x; qmv takes a few, in tiles."""
        N, blocks = self._matrix.norms.shape
        codec.check_product("backend.Kernels", plain(x), blocks * BLOCK)
        M = plain(x).size // (blocks * BLOCK)
        if not 1 <= M <= QMV_ROWS:
            return M, None
        return M, kernels.qmv_tile(self._matrix.bits, M, N, blocks * BLOCK)


def few_rows(x: Activation, matrix: Coded, tile: Tile | None = None) -> mx.array:
    """Rotate and multiply by `kernels.qmv`."""
    return kernels.qmv(_rotation(x), *matrix, dtype=plain(x).dtype, tile=tile)


def few_gated(x: Activation, matrix: Coded, tile: Tile | None = None) -> mx.array:
    """Rotate and multiply by `kernels.geglu`."""
    return kernels.geglu(_rotation(x), *matrix, dtype=plain(x).dtype, tile=tile)


def many_rows(x: Activation, matrix: Coded, tile: Tile | None = None) -> mx.array:
    """Rotate and multiply by `kernels.qmm`, which has but one tile."""
    return kernels.qmm(_rotation(x), *matrix, dtype=plain(x).dtype)


def decoded(x: Activation, matrix: Coded, tile: Tile | None = None) -> mx.array:
    """Rotate, decode the weight to float16 and multiply by it with `mx.matmul`.

    Rows are scaled to at most 1, so that float16 holds them and the result.
    """
    rotated = _rotation(x)
    largest = mx.maximum(mx.abs(rotated).max(axis=-1, keepdims=True), 1e-30)
    weight = kernels.rotated_weight(*matrix, dtype=mx.float16)
    y = (rotated / largest).astype(mx.float16) @ weight.T
    return (y.astype(mx.float32) * largest).astype(plain(x).dtype)


def _rotation(x: Activation) -> mx.array:
    return x.rotated if isinstance(x, Rotated) else kernels.hadamard(x, dtype=mx.float32)


def tail(
    x: mx.array,
    update: mx.array,
    weight: mx.array,
    scale: mx.array | None,
    epsilon: float,
    next_weight: mx.array | None = None,
) -> tuple[mx.array, Activation]:
    """Close a part of a layer and open the next, which gets its input rotated where kernels run.

    Shapes: as codec.tail; no scale is a scale of 1.
    """
    scale = mx.array([1.0], x.dtype) if scale is None else scale
    K = x.shape[-1]
    norm = None if next_weight is None else (K,)
    case = ((2, K), (2, K), (K,), (1,), epsilon, norm)
    is_for_kernel = has_metal() and kernels.can_close(K)
    if is_for_kernel and selftest.is_sound_on(kernels.tail, codec.tail, case, x.dtype):
        h, opened, rotated = kernels.tail(x, update, weight, scale, epsilon, next_weight)
        return h, Rotated(opened, rotated)
    h, opened, _ = codec.tail(x, update, weight, scale, epsilon, next_weight)
    return h, opened


def gated(gate: mx.array, up: mx.array) -> Activation:
    """Return gelu(gate) * up, and rotated where kernels run.

    Shapes: gate, up [..., K] -> [..., K].
    """
    case = ((2, gate.shape[-1]),) * 2
    is_for_kernel = has_metal() and kernels.can_rotate(gate.shape[-1])
    if is_for_kernel and selftest.is_sound_on(kernels.gated, codec.gated, case, gate.dtype):
        return Rotated(*kernels.gated(gate, up))
    return _gated(gate, up)


def halves_gated(y: mx.array) -> mx.array:
    """Return gelu(gate) * up of a product with gate|up; float32 inside."""
    return _gated(*mx.split(y, 2, axis=-1))


@partial(mx.compile, shapeless=True)  # a few launches, where every step of gelu would be one
def _gated(gate: mx.array, up: mx.array) -> mx.array:
    return (codec.gelu(gate.astype(mx.float32)) * up.astype(mx.float32)).astype(gate.dtype)


def rotated_product(
    x: mx.array, codes: mx.array, norms: mx.array, centroids: mx.array, bits: int
) -> mx.array:
    """What the paths compute, by the twins alone, in float32."""
    return codec.qmv(codec.hadamard(x.astype(mx.float32)), codes, norms, centroids, bits)


def rotated_geglu(
    x: mx.array, codes: mx.array, norms: mx.array, centroids: mx.array, bits: int
) -> mx.array:
    """What `few_gated` computes, by the twins alone, in float32."""
    return codec.geglu(codec.hadamard(x.astype(mx.float32)), codes, norms, centroids, bits)


def prepare(codes: mx.array, norms: mx.array, centroids: mx.array, bits: int) -> Product:
    """Choose a path for one coded weight and do its work ahead of the first product.

    Shapes: codes uint32 [N, K*bits/32], norms [N, K/128], centroids [>= 2**bits].
    Raises: ShapeError when an array does not fit the others.
    """
    codec.check_coded("backend.prepare", codes, norms, centroids, bits)
    if has_metal() and kernels.can_address(Coded(codes, norms, centroids, bits)):
        return Kernels(codes, norms, centroids, bits)
    return _stock(codes, norms, centroids, bits)


def prepared_bytes(weights: int, *, has_kernels: bool) -> int:
    """Return what `prepare` makes of that many coded weights takes, beside their codes.

    Kernels multiply by the codes themselves, and take nothing.
    """
    if has_kernels:
        return 0
    if weights <= DENSE_WEIGHTS:
        return 4 * weights
    return weights + 2 * 4 * (weights // _FITTED_GROUP)  # levels, and scales and biases, at most


def multiply(product: Product, x: Activation) -> mx.array:
    """Multiply by a weight made ready: x [..., K], not cast -> [..., N]."""
    return product(x) if isinstance(product, Kernels) else product(plain(x))


def geglu(product: Product, x: Activation) -> mx.array:
    """Multiply by a gate|up made ready, and return gelu(gate) * up.

    Shapes: x [..., K], not cast -> [..., N/2].
    """
    return product.geglu(x) if isinstance(product, Kernels) else halves_gated(product(plain(x)))


def embed(
    ids: mx.array, codes: mx.array, norms: mx.array, centroids: mx.array, bits: int
) -> mx.array:
    """Return the rows `ids` of a coded weight in the dtype that activations have.

    Shapes and Raises: as codec.embed.
    """
    dtype = activation_dtype()
    matrix = Coded(codes, norms, centroids, bits)
    if (
        has_metal()
        and kernels.can_address(matrix)
        and selftest.is_sound(rows_of, codec.embed, bits, dtype)
    ):
        return rows_of(ids, matrix)
    return codec.embed(ids, *matrix).astype(dtype)


def rows_of(ids: mx.array, matrix: Coded, tile: Tile | None = None) -> mx.array:
    """Look up rows by `kernels.embed`."""
    return kernels.embed(ids, *matrix, dtype=activation_dtype())


def _stock(codes: mx.array, norms: mx.array, centroids: mx.array, bits: int) -> Product:
    is_small = norms.size * BLOCK <= DENSE_WEIGHTS
    return (Dense if is_small else AffineImage)(codes, norms, centroids, bits)


def _row_slices(codes: mx.array, norms: mx.array, bits: int) -> Iterator[NDArray[np.uint8]]:
    """Unpack codes, some rows at a time."""
    N, K = norms.shape[0], norms.shape[1] * BLOCK
    words = np.asarray(codes)
    row_count = max(1, _SLICE_WEIGHTS // K)
    for start in range(0, N, row_count):
        yield unpack_p32(words, bits, start, min(row_count, N - start))


def _translated(codes: mx.array, norms: mx.array, bits: int, levels: NDArray[np.uint8]) -> mx.array:
    """Replace every code by its level on a grid: four in a word, [N, K/4]."""
    # bytes.translate is numpy's take for bytes, several times faster.
    translation = levels.tobytes().ljust(256)
    slices = []
    for rows in _row_slices(codes, norms, bits):
        image = np.frombuffer(rows.tobytes().translate(translation), dtype="<u4")
        slices.append(mx.array(image.reshape(len(rows), -1)))
    return mx.concatenate(slices)


def _fitted(
    codes: mx.array, norms: mx.array, centroids: mx.array, bits: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Decode a slice of rows at a time, in the rotated basis, and quantize it as stock MLX does."""
    table = np.array(centroids, dtype=np.float32)
    scales = np.array(norms, dtype=np.float32) / np.float32(math.sqrt(BLOCK))
    parts = []
    start = 0
    for rows in _row_slices(codes, norms, bits):
        slice_scales = scales[start : start + len(rows)].repeat(BLOCK, axis=1)
        start += len(rows)
        weight = mx.array(table[rows] * slice_scales)
        parts.append(mx.quantize(weight, group_size=_FITTED_GROUP, bits=8))
        mx.eval(parts[-1])  # before the next slice is decoded
    image, group_scales, biases = (mx.concatenate([*part]) for part in zip(*parts, strict=True))
    return image, group_scales, biases


def affine_grid(centroids: NDArray[np.float64]) -> tuple[NDArray[np.uint8], float]:
    """Fit an even grid to a table: centroid[i] is about step * (level[i] - 127.5).

    Tries every grid of 40 to 127 steps a side, each refitted by least squares, every centroid
    weighted by how often a normal variable takes it.

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
