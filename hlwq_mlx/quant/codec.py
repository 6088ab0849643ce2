"""The definition of HLWQ: how a weight becomes codes, and what a product with codes must equal.

`encode` and `decode` are numpy, for files. They compute in float64 and apply the transform unscaled
(entries +1 and -1), so a decoded weight is the exact value, rounded once to float32. The rest are
the plain twins in mlx: each defines, in float32, the kernel of the same name. Twins need not be
fast, since backends choose what runs.

A block is 128 neighbours of one row; its rotation is the Walsh-Hadamard transform in natural order,
symmetric and its own inverse. W = norm * (centroids[code] / sqrt(128)) @ H. The twins take
a CodedMatrix and, but for `dequantize` and `embed`, an x that `hadamard` has rotated.

N rows, K columns padded to a multiple of 128. Source: arXiv 2603.29078 (PolarQuant, withdrawn) and
the writer printed in skills/polarquant-multi.md of caiovicentino/polarengine-vllm @ 78abeac.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError
from .matrix import CodedMatrix
from .packing import BLOCK, UNIT, p32_plane_widths

_SLICE_WEIGHTS = 1 << 18

MIN_NORM = 1e-10  # of a block of zeros; becomes 0 when it is stored as float16


class Fit(NamedTuple):
    """How the norm of a block is found: that is the encoder's to say, any norm decodes alike.

    It begins with the one of `starts`, in units of the block's own, whose codes can lose least.
    Each refit replaces the norm by the one that fits the chosen codes best, in least squares, and
    chooses the codes anew.
    """

    starts: tuple[float, ...] = (1.0,)
    refits: int = 0


# The publisher's writer takes the block's own norm. Refits alone end in the nearest minimum, and a
# block has many: its largest coordinates can take the last centroid, or be cut off. The last starts
# are for blocks with a strong mean.
OWN_NORM = Fit()
BEST_NORM = Fit((0.7, 0.76, 0.83, 0.91, 1.0, 1.09, 1.19, 1.3, 1.42, 2.0, 2.8), 2)


@cache
def _signs() -> NDArray[np.float64]:
    index = np.arange(BLOCK)
    return np.where(np.bitwise_count(index[:, None] & index) & 1, -1.0, 1.0)


def encode(
    weight: NDArray[np.floating], centroids: NDArray[np.float32], fit: Fit = OWN_NORM
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Code a matrix; rows are independent, so a slice of rows gives the slice of the result.

    Float64 inside; norms are rounded to float16 only to be stored. A value half way between two
    centroids takes the lower code.

    Shapes: weight [N, columns], centroids ascending [2..256] -> codes [N, K], norms [N, K/128].
    Raises: ShapeError for a weight that is not a matrix, or whose norms float16 cannot hold.
    """
    if weight.ndim != 2:
        raise ShapeError(
            f"[codec.encode] needed a weight [N, columns], got shape {weight.shape}. "
            "Only matrices are coded; keep other tensors as they are."
        )
    N, columns = weight.shape
    K = -(-columns // BLOCK) * BLOCK
    codes = np.empty((N, K), dtype=np.uint8)
    norms = np.empty((N, K // BLOCK), dtype=np.float16)
    for rows in _row_slices(N, K):
        padded = np.zeros((len(weight[rows]), K))
        padded[:, :columns] = weight[rows]
        blocks = padded.reshape(-1, BLOCK)
        lengths = np.maximum(np.sqrt(np.einsum("bk,bk->b", blocks, blocks)), MIN_NORM)
        if not (lengths <= np.finfo(np.float16).max).all():
            raise ShapeError(
                "[codec.encode] needed finite weights with block norms up to 65504, "
                f"got {lengths.max():.6g}. Look for infinities and NaN, or scale the weight down."
            )
        # Unscaled, the transform brings the factor sqrt(128) that makes entries about N(0, 1).
        chosen, found = _fit(blocks @ _signs(), lengths, centroids, fit)
        codes[rows] = chosen.reshape(-1, K)
        norms[rows] = found.reshape(-1, K // BLOCK)
    return codes, norms


def _fit(
    rotated: NDArray[np.float64],
    lengths: NDArray[np.float64],
    centroids: NDArray[np.float32],
    fit: Fit,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return codes [n, 128] and norms [n] for unscaled rotated blocks."""
    norms = lengths * _best_starts(rotated, lengths, centroids, fit.starts)
    codes = _nearest(rotated / norms[:, None], centroids)
    for _ in range(fit.refits):
        norms = _fitted_norms(rotated, codes, centroids)
        codes = _nearest(rotated / norms[:, None], centroids)
    return codes, norms


def _best_starts(
    rotated: NDArray[np.float64],
    lengths: NDArray[np.float64],
    centroids: NDArray[np.float32],
    starts: tuple[float, ...],
) -> NDArray[np.float64] | float:
    """Return for each block the start whose codes, once their norm is fitted, lose least."""
    if len(starts) == 1:
        return starts[0]
    values = centroids.astype(np.float64)
    explained = np.empty((len(starts), len(lengths)))
    for start, found in zip(starts, explained, strict=True):
        levels = values[_nearest(rotated / (start * lengths)[:, None], centroids)]
        products = np.einsum("bk,bk->b", rotated, levels)
        found[:] = products**2 / np.einsum("bk,bk->b", levels, levels)
    best: NDArray[np.float64] = np.array(starts)[explained.argmax(axis=0)]
    return best


def _fitted_norms(
    rotated: NDArray[np.float64], codes: NDArray[np.uint8], centroids: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the norms that bring these codes closest to the unscaled rotated blocks."""
    levels = centroids.astype(np.float64)[codes]
    products = np.einsum("bk,bk->b", rotated, levels)
    fitted: NDArray[np.float64] = products / np.einsum("bk,bk->b", levels, levels)
    return np.clip(fitted, MIN_NORM, np.finfo(np.float16).max)


def decode(
    codes: NDArray[np.uint8], norms: NDArray[np.float16], centroids: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the weight that codes and norms stand for, padding columns included.

    Exact: float64 inside loses nothing, and the result is rounded once.

    Shapes: codes [N, K], norms [N, K/128], centroids [2..256] -> [N, K].
    Raises: ShapeError when codes and norms disagree, or a code has no centroid.
    """
    expected = (*norms.shape[:-1], norms.shape[-1] * BLOCK)
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape != expected:
        raise ShapeError(
            f"[codec.decode] needed uint8 codes [N, K] for norms [N, K/{BLOCK}], got "
            f"{codes.dtype} {codes.shape} for {norms.shape}. Check how the codes were unpacked."
        )
    if codes.size and codes.max() >= centroids.size:
        raise ShapeError(
            f"[codec.decode] needed codes below {centroids.size}, got {codes.max()}. "
            "Take the table of the width that the codes were packed with."
        )
    levels = centroids.astype(np.float64)
    # sqrt(128) once for the centroids, which are those of N(0, 1), and once for the transform.
    scales = norms.astype(np.float64) / BLOCK
    weight = np.empty(codes.shape, dtype=np.float32)
    for rows in _row_slices(*codes.shape):
        blocks = levels[codes[rows]].reshape(-1, BLOCK) @ _signs()
        blocks *= scales[rows].reshape(-1, 1)
        weight[rows] = blocks.reshape(-1, codes.shape[1])
    return weight


def _row_slices(N: int, K: int) -> Iterator[slice]:
    """Return slices whose float64 temporaries fit the caches, which is several times faster."""
    step = max(1, _SLICE_WEIGHTS // max(1, K))
    return (slice(start, start + step) for start in range(0, N, step))


def _nearest(values: NDArray[np.float64], centroids: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the code of each value: how many midpoints between centroids lie below it.

    This is searchsorted, several times faster. A cell of the lookup table is half as wide as the
    narrowest gap between midpoints, so one comparison with the next midpoint settles the code.
    """
    levels = centroids.astype(np.float64)
    midpoints = (levels[1:] + levels[:-1]) / 2
    width = min(np.diff(midpoints), default=1.0) / 2
    low = midpoints[0] - width
    cells = int((midpoints[-1] - low) / width) + 2
    # Half a cell of slack covers the rounding of a value's own cell number.
    first = np.searchsorted(midpoints, low + width * (np.arange(cells) - 0.5)).astype(np.uint8)
    position = np.clip((values - low) * (1 / width), 0, cells - 1).astype(np.int32)
    codes: NDArray[np.uint8] = first[position]
    codes += values > np.append(midpoints, np.inf)[codes]
    return codes


def hadamard(x: mx.array) -> mx.array:
    """Rotate every block of 128; twice is the identity.

    Float32 inside, returns x.dtype.

    Shapes: x [..., K] -> [..., K].
    Raises: ShapeError when x is not floating or K is not a multiple of 128.
    """
    _check_activation("codec.hadamard", x)
    if x.shape[-1] % BLOCK:
        raise ShapeError(
            f"[codec.hadamard] needed x [..., K] with K a multiple of {BLOCK}, got {x.shape}. "
            "Pad the last axis with zeros."
        )
    blocks = x.astype(mx.float32).reshape(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK)
    return mx.hadamard_transform(blocks).reshape(x.shape).astype(x.dtype)


def gelu_mul(gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
    """Return gelu(gate) * up, with the tanh approximation, in gate's dtype, and its rotation.

    Float32 inside; the rotation is float32, and of the product before it is rounded.

    Shapes: gate, up [..., K] -> twice [..., K].
    Raises: ShapeError when they differ in shape, are not floating or K is not a multiple of 128.
    """
    if gate.shape != up.shape:
        raise ShapeError(
            f"[codec.gelu_mul] needed gate and up of one shape, got {gate.shape} and {up.shape}. "
            "Give as many columns of both."
        )
    product = gelu_mul_float32(gate, up)
    return product.astype(gate.dtype), hadamard(product)


def gelu_mul_float32(gate: mx.array, up: mx.array) -> mx.array:
    """Return gelu(gate) * up in float32, unrounded."""
    return gelu(gate.astype(mx.float32)) * up.astype(mx.float32)


def gelu(x: mx.array) -> mx.array:
    """Return gelu with the tanh approximation, in x's dtype."""
    # What PyTorch calls gelu_pytorch_tanh: Gemma's weights were trained with it, not with erf.
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def residual_norm(
    x: mx.array,
    update: mx.array,
    weight: mx.array,
    scale: mx.array,
    epsilon: float,
    next_weight: mx.array | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """Return h = (x + norm(update)) * scale, then h normed for the next layer, and its rotation.

    `normed` is made from h as it was rounded, with `next_weight` if there is one, else it is h.
    Float32 inside; the rotation is float32, the others are of x's dtype.

    Shapes: x, update [..., K], weights [K], scale [1] -> h, normed, rotated, each [..., K].
    Raises: ShapeError when x is not floating or K is not a multiple of 128.
    """
    h, normed = residual_norm_float32(x, update, weight, scale, epsilon, next_weight)
    return h, normed.astype(x.dtype), hadamard(normed)


def residual_norm_float32(
    x: mx.array,
    update: mx.array,
    weight: mx.array,
    scale: mx.array | None,
    epsilon: float,
    next_weight: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Return h in x's dtype and `normed` in float32, as `residual_norm`, for any K.

    Without a scale, nothing is multiplied.
    """
    added = mx.fast.rms_norm(update.astype(mx.float32), weight.astype(mx.float32), epsilon)
    h = x.astype(mx.float32) + added
    if scale is not None:
        h = h * scale.astype(mx.float32)
    h = h.astype(x.dtype)
    normed = h.astype(mx.float32)
    if next_weight is not None:
        normed = mx.fast.rms_norm(normed, next_weight.astype(mx.float32), epsilon)
    return h, normed


def qmv(x: mx.array, matrix: CodedMatrix) -> mx.array:
    """Multiply a few rotated rows by a coded matrix.

    Accumulates in float32, returns x.dtype.

    Shapes: x [..., K] rotated, matrix [N, K] -> [..., N].
    Raises: ShapeError when an array does not fit the others.
    """
    return _product("codec.qmv", x, matrix)


def gather_qmv(x: mx.array, experts: mx.array, matrix: CodedMatrix, count: int) -> mx.array:
    """Multiply each rotated row by some of a stack of `count` matrices, one below the other.

    Accumulates in float32, returns x.dtype.

    Shapes: x [..., K] rotated, experts below count [..., k], matrix [count * N, K] -> [..., k, N].
    Raises: ShapeError when an array does not fit the others.
    """
    matrix.check("codec.gather_qmv")
    N, K = matrix.shape
    check_product("codec.gather_qmv", x, K)
    check_experts("codec.gather_qmv", x, experts, N, count)
    stack = rotated_weight(matrix).reshape(count, N // count, K)
    rows = x.astype(mx.float32)[..., None, None, :]
    y = mx.gather_mm(rows, stack.swapaxes(-1, -2), rhs_indices=experts.astype(mx.uint32))
    return y[..., 0, :].astype(x.dtype)


def qmm(x: mx.array, matrix: CodedMatrix) -> mx.array:
    """Multiply many rotated rows by a coded matrix: the same numbers as `qmv`, row by row.

    Shapes and Raises: as `qmv`.
    """
    return _product("codec.qmm", x, matrix)


def gather_qmm(x: mx.array, starts: mx.array, matrix: CodedMatrix, count: int) -> mx.array:
    """Multiply rotated rows that are in the order of their experts: as `gather_qmv`, one for each.

    `starts` says where each expert's rows begin, and at last how many rows there are.

    Shapes: x [P, K] rotated, starts [count + 1], matrix [count * N, K] -> [P, N].
    Raises: as `gather_qmv`.
    """
    experts = (mx.arange(x.shape[0])[:, None] >= starts[1:]).sum(axis=-1, keepdims=True)
    return gather_qmv(x, experts, matrix, count)[:, 0]


def geglu(x: mx.array, matrix: CodedMatrix) -> mx.array:
    """Multiply rotated rows by a coded gate|up, and return gelu(gate) * up.

    The rows of gate come first, then those of up. Float32 throughout, returns x.dtype.

    Shapes: as `qmv`, but -> [..., N/2].
    Raises: ShapeError when an array does not fit the others or N is odd.
    """
    matrix.check_halves("codec.geglu")
    y = _product("codec.geglu", x.astype(mx.float32), matrix)
    return gelu_mul_float32(*mx.split(y, 2, axis=-1)).astype(x.dtype)


def dequantize(matrix: CodedMatrix) -> mx.array:
    """Return the weight itself, rotated back, in float32.

    Shapes: matrix [N, K] -> [N, K].
    Raises: ShapeError when an array does not fit the others.
    """
    matrix.check("codec.dequantize")
    return hadamard(_rotated_rows(planes(matrix), matrix.norms, matrix))


def embed(ids: mx.array, matrix: CodedMatrix) -> mx.array:
    """Return the rows `ids` of the weight, rotated back, in float32, decoding only those.

    Shapes: ids integer [...], matrix [N, K] -> [..., K].
    Raises: ShapeError when ids are not integers or an array does not fit the others.
    """
    matrix.check("codec.embed")
    check_ids("codec.embed", ids)
    flat = ids.reshape(-1)
    picked = [plane[flat] for plane in planes(matrix)]
    rows = hadamard(_rotated_rows(picked, matrix.norms[flat], matrix))
    return rows.reshape(*ids.shape, rows.shape[-1])


def rotated_weight(matrix: CodedMatrix) -> mx.array:
    """Return the weight in the rotated basis, where codes live, in float32: x @ this.T is `qmv`.

    Shapes and Raises: as `dequantize`.
    """
    matrix.check("codec.rotated_weight")
    return _rotated_rows(planes(matrix), matrix.norms, matrix)


def check_product(where: str, x: mx.array, K: int) -> None:
    """Raise ShapeError, whose text begins with `where`, when x does not fit K columns."""
    _check_activation(where, x)
    if x.shape[-1] != K:
        raise ShapeError(
            f"[{where}] needed x [..., {K}], got {x.shape}. "
            "Pad the last axis with zeros to the columns of the coded matrix."
        )


def check_experts(where: str, x: mx.array, experts: mx.array, rows: int, count: int) -> None:
    """Raise ShapeError, whose text begins with `where`, for experts that x or the stack lacks."""
    check_ids(where, experts)
    if experts.shape[:-1] != x.shape[:-1] or not experts.size:
        raise ShapeError(
            f"[{where}] needed experts {(*x.shape[:-1], 'k')} for x {x.shape}, got "
            f"{experts.shape}. Choose as many for each row, and one at least."
        )
    if count < 1 or rows % count:
        raise ShapeError(
            f"[{where}] needed rows of {count} matrices of one height, got {rows}. "
            "Check the number of experts."
        )


def check_ids(where: str, ids: mx.array) -> None:
    """Raise ShapeError, whose text begins with `where`, for ids that are not integers."""
    if not mx.issubdtype(ids.dtype, mx.integer):
        raise ShapeError(
            f"[{where}] needed integer ids, got {ids.dtype}. Pass token ids, not embeddings."
        )


def _check_activation(where: str, x: mx.array) -> None:
    if x.ndim == 0 or not mx.issubdtype(x.dtype, mx.floating):
        raise ShapeError(
            f"[{where}] needed a floating x [..., K], got {x.dtype} {x.shape}. "
            "Cast it, or pass the embeddings."
        )


def _product(where: str, x: mx.array, matrix: CodedMatrix) -> mx.array:
    matrix.check(where)
    check_product(where, x, matrix.shape[1])
    weight = _rotated_rows(planes(matrix), matrix.norms, matrix)
    return (x.astype(mx.float32) @ weight.T).astype(x.dtype)


def planes(matrix: CodedMatrix) -> list[mx.array]:
    """Split P32 into its planes, each [N, K/32, words of a unit]."""
    N, units = matrix.codes.shape[0], matrix.codes.shape[1] // matrix.bits
    flat = matrix.codes.reshape(-1)
    found, start = [], 0
    for width in p32_plane_widths(matrix.bits):
        stop = start + N * units * width
        found.append(flat[start:stop].reshape(N, units, width))
        start = stop
    return found


def _rotated_rows(planes: list[mx.array], norms: mx.array, matrix: CodedMatrix) -> mx.array:
    """Decode some rows, given by their planes and norms, in the rotated basis, in float32."""
    bits = matrix.bits
    words = mx.concatenate(planes, axis=-1)
    N, blocks = norms.shape
    first_bits = np.arange(UNIT) * bits
    word, shift = first_bits // 32, (first_bits % 32).astype(np.uint32)
    low = words[..., mx.array(word)] >> mx.array(shift)
    # A shift by 32 is undefined: the part from the next word is shifted in two steps.
    following = words[..., mx.array(np.minimum(word + 1, bits - 1))]
    high = (following << mx.array(31 - shift)) << 1
    fields = (low | high) & ((1 << bits) - 1)
    # [N, block, quarter, i, c] -> [N, block, i, quarter, c]: see packing for the order of a unit.
    index = fields.reshape(N, blocks, 4, 8, 4).transpose(0, 1, 3, 2, 4).reshape(N, blocks, BLOCK)
    # Centroids are those of N(0, 1), and the entries of a block of norm 1 are sqrt(128) smaller.
    scales = norms.astype(mx.float32)[..., None] / math.sqrt(BLOCK)
    return (matrix.centroids.astype(mx.float32)[index] * scales).reshape(N, blocks * BLOCK)
