"""What a drafter is: it proposes how an answer goes on, and a step of the engine checks that.

A proposal never changes an answer, only how many passes it takes (see speculate). This module knows
no drafter.
L tokens of prompt and answer, H hidden size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .pace import Pace


class Seen(NamedTuple):
    """An answer as a drafter sees it.

    `ids` are the keys of the prompt (negative for soft tokens of media) and the tokens of the
    answer; the caches hold all but the last one, which is chosen but not read yet. `caches` are
    those of the layers that make keys and values; `peek` returns what they hold.
    `hidden` is the model's output behind its final norm at the last position that the caches hold,
    from which the last token was chosen; None where the drafter needs none.
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

    @property
    def needs_hidden(self) -> bool: ...

    @property
    def cost(self) -> float: ...

    def draft(self, seen: Seen, count: int) -> Sequence[int] | mx.array:
        """Return at most `count` tokens that may follow, or none.

        An array may be unevaluated: it is evaluated once, whole. It may hold any id; a draft is cut
        off before one that the model never chooses.
        Shapes: -> int [k], k <= count.
        """
        ...


class Course:
    """An answer's tokens with the prompt's keys before them, and what is known for drafting.

    `hidden` is a hidden state, with the length of caches that it belongs to. `pace` is set by the
    step that drafts.
    """

    def __init__(self, keys: Sequence[int]) -> None:
        self._ids = np.array(keys, dtype=np.int64)
        self._length = len(keys)
        self.hidden: tuple[int, mx.array] | None = None
        self.pace: Pace | None = None

    def take(self, token: int) -> None:
        """Add a token to the answer."""
        if self._length == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
        self._ids[self._length] = token
        self._length += 1
        if self.pace is not None:
            self.pace.take()

    def hidden_behind(self, caches: Sequence[Any]) -> mx.array | None:
        """Return the hidden state at the last position that the caches hold, if it is known."""
        length, hidden = self.hidden or (None, None)
        return hidden if length == caches[0].offset else None

    def seen(self, caches: Sequence[Any]) -> Seen:
        """Return the answer as a drafter sees it."""
        return Seen(self._ids[: self._length], caches, self.hidden_behind(caches))
