"""Read a share of a tensor from disk: its rows and its blocks, and nothing of the others.

A file is mapped, so a copy of the share touches the pages that the share lies on. Codes lie in
planes (quant.packing), each of which holds some words of every unit of 32 columns.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..disk.tensorfile import TensorFile
from ..quant.packing import BLOCK, UNIT, p32_plane_widths
from .shares import Run, Share

_UNITS = BLOCK // UNIT
CODES, CENTROIDS = "codes", "centroids"
BY_BLOCK = ("norms", "means")


def read(file: TensorFile, name: str, share: Share, bits: int | None) -> mx.array:
    """Read a share of a tensor; `bits` is the width of its codes, None where it has none.

    Shapes: of `codes` [N, words], of BY_BLOCK [N, blocks], of others [..., N, K] or [N].
    """
    view, part = file.view(name), name.rpartition(".")[2]
    if bits is not None and part == CODES:
        taken = _codes(view, share, bits)
    elif bits is not None and part in BY_BLOCK:
        taken = _matrix(view, Share(share.rows, _blocks(share.columns)))
    elif share == Share() or part == CENTROIDS:
        taken = np.array(view)
    else:
        taken = _matrix(view, share)
    array = mx.array(taken)
    return array.view(mx.bfloat16) if file.specs[name].dtype == "BF16" else array


def _matrix(view: NDArray, share: Share) -> NDArray:  # type: ignore[type-arg]
    """Copy a share of a matrix, or of a stack whose matrices all lose the same."""
    *stack, _, width = view.shape
    rows = _rows(view.reshape(-1, width), share.rows, share.columns)
    columns = rows.shape[-1]
    if not stack:
        return rows
    height = _height(view.shape[-2], stack[0], share.rows)
    return rows.reshape(-1, height, columns)


def _height(rows: int, count: int, runs: Sequence[Run] | None) -> int:
    """Return the rows of each matrix that is left of a stack."""
    if runs is None or len(runs) == 1:  # whole matrices
        return rows
    return sum(map(len, runs)) // count


def _codes(view: NDArray[np.uint32], share: Share, bits: int) -> NDArray[np.uint32]:
    N, words = view.shape
    units, flat = words // bits, view.reshape(-1)
    blocks = _blocks(share.columns)
    span = None if blocks is None else blocks.times(_UNITS)
    planes, start = [], 0
    for width in p32_plane_widths(bits):
        plane = flat[start : start + N * units * width].reshape(N, units * width)
        columns = None if span is None else span.times(width)
        planes.append(_rows(plane, share.rows, columns))
        start += N * units * width
    rows = len(planes[0])
    return np.concatenate([plane.reshape(-1) for plane in planes]).reshape(rows, -1)


def _rows(matrix: NDArray, runs: Sequence[Run] | None, columns: Run | None) -> NDArray:  # type: ignore[type-arg]
    span = slice(None) if columns is None else slice(*columns)
    every = [Run(0, len(matrix))] if runs is None else runs
    return np.concatenate([matrix[run.start : run.stop, span] for run in every])


def _blocks(columns: Run | None) -> Run | None:
    """Return the blocks of a run of columns, the last of which may be padded."""
    return None if columns is None else Run(columns.start // BLOCK, -(-columns.stop // BLOCK))
