"""Rows of the per-layer table for a graph that is built before its tokens are known.

The table stays on disk, so its rows need the tokens on the host; all else of a step does not. A
leaf of the graph stands for the rows, and the host writes them into its memory before MLX reads it.
Until then it is NaN: scores of a step that read it too early are NaN, and no token is taken from
those. A leaf serves one step, so that none can read what another left there.
B sequences, W width of a row.
"""

import mlx.core as mx
import numpy as np


class LateRows:
    """Rows float32 [B, 1, W], which hold those of any table's dtype exactly."""

    def __init__(self, sequences: int, width: int) -> None:
        self.array = mx.array(np.full((sequences, 1, width), np.nan, np.float32))
        self._view = np.asarray(self.array)

    def fill(self, rows: mx.array) -> None:
        """Write the rows, before the graph is evaluated; the GPU's stream is not waited for.

        Shapes: rows [B, 1, W].
        """
        self._view[...] = np.asarray(rows.astype(mx.float32, stream=mx.cpu))


def can_be_late() -> bool:
    """Return whether what the host writes into an array's memory is what MLX then reads."""
    rows = LateRows(1, 1)
    doubled = rows.array * 2
    rows.fill(mx.ones((1, 1, 1)))
    return bool(doubled.item() == 2)
