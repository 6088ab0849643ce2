"""Hold the scores of one answer to what a grammar allows.

The grammar is another room's, and knows nothing of arrays of MLX.
V vocabulary of the model.
"""

from typing import Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


class Guide(Protocol):
    """Holds which tokens may come next, and is told which one came."""

    def allowed(self) -> NDArray[np.bool_]:
        """Return which tokens may come next; the vocabulary may be larger or smaller than V."""
        ...

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""
        ...


class GuideMask:
    """The constraint of a row (see engine.constraint) that a guide decides."""

    def __init__(self, guide: Guide) -> None:
        self._guide = guide

    def mask(self, scores: mx.array) -> mx.array:
        """Return the scores with -inf for tokens that may not come next, or are in no vocabulary.

        Shapes: [1, V] -> [1, V].
        """
        size = scores.shape[-1]
        allowed = self._guide.allowed()[:size]
        if len(allowed) < size:
            allowed = np.pad(allowed, (0, size - len(allowed)))
        return mx.where(mx.array(allowed), scores, -mx.inf)

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""
        self._guide.accept(token)
