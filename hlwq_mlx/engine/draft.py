"""What a drafter is: it proposes how an answer goes on, and a step of the engine checks that.

A proposal never changes an answer, only how many passes it takes (see speculate). This module knows
no drafter.
H hidden size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


class Seen(NamedTuple):
    """An answer as a drafter sees it.

    `ids` are the keys of the prompt (negative for soft tokens of media) and the tokens of the
    answer; the caches hold all but the last one, which is chosen but not read yet. `caches` are
    those of the layers that make keys and values; `peek` returns what they hold.
    `hidden` is the model's output behind its final norm at the last position that the caches hold,
    from which the last token was chosen; None where the drafter needs none, or it is not known.
    Shapes: ids [L], hidden [1, 1, H].
    """

    ids: NDArray[np.int64]
    caches: Sequence[Any]
    hidden: mx.array | None


class Drafter(Protocol):
    """Proposes the next tokens of answers; one drafter serves all answers and keeps no state.

    `needs_hidden` says whether `draft` is to be given the hidden state. `cost` is what one drafted
    token costs, in passes of the model.
    """

    needs_hidden: bool
    cost: float

    def draft(self, seen: Seen, count: int) -> Sequence[int] | mx.array:
        """Return at most `count` tokens that may follow, or none.

        An array may be unevaluated: it is evaluated once, whole. It may hold any id; a draft is cut
        off before one that the model never chooses.
        Shapes: -> int [k], k <= count.
        """
        ...
