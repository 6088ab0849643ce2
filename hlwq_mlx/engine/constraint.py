"""What limits an answer to a form, as a grammar does; the engine knows none itself.

V vocabulary.
"""

from typing import Protocol

import mlx.core as mx


class Constraint(Protocol):
    """Masks tokens that may not come next in one answer; the engine's thread makes both calls.

    An exception of either ends that answer alone.
    """

    def mask(self, scores: mx.array) -> mx.array:
        """Return the scores with -inf for what may not follow; nothing else changes.

        It is called again before `accept` when a step has to be repeated. Shapes: [1, V] -> [1, V].
        """
        ...

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""
        ...
