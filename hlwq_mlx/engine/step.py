"""One step of the engine: rows with their caches in, one or more tokens a row out.

A row is a sequence whose last token is chosen but not cached yet, with the function that chooses
its next token. Batching, drafting and several machines fit behind the protocol `Step`. This module
never sees text. R rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from ..gemma4.caches import Rows
from ..gemma4.model import Model
from .sampling import Choose


@dataclass
class Row:
    """A sequence being answered: its caches, and its last token, which they do not hold yet."""

    caches: list[Any]
    token: int
    choose: Choose


class Chosen(NamedTuple):
    """A token and the log probabilities it was chosen from.

    Shapes: scores float32 [V].
    """

    token: int
    scores: mx.array


class Step(Protocol):
    """Extends rows by one or more tokens each.

    A row's tokens do not depend on the other rows. A step changes the rows: their caches take the
    tokens that were read, and `token` becomes the last one chosen.
    """

    def __call__(self, rows: Sequence[Row]) -> list[list[Chosen]]:
        """Return the next tokens of each row, at least one."""
        ...


def choose(logits: mx.array, row_choose: Choose) -> tuple[mx.array, mx.array]:
    """Choose a token by one row's logits, without evaluating anything.

    Shapes: logits float32 [1, V] -> id [1], log probabilities [V].
    """
    scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return row_choose(scores), scores.squeeze(0)


class PlainStep:
    """One token a row: rows share the model's products, and each attends to its own caches."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __call__(self, rows: Sequence[Row]) -> list[list[Chosen]]:
        """Read each row's token and choose the next."""
        caches = rows[0].caches if len(rows) == 1 else self._together(rows)
        logits = self._model(mx.array([[row.token] for row in rows]), caches)[:, -1]
        chosen = [choose(logits[i : i + 1], row.choose) for i, row in enumerate(rows)]
        mx.eval(chosen)
        found = [Chosen(int(np.array(token)[0]), scores) for token, scores in chosen]
        for row, (token, _) in zip(rows, found, strict=True):
            row.token = token
        return [[each] for each in found]

    def _together(self, rows: Sequence[Row]) -> list[Rows]:
        return [Rows(entries) for entries in zip(*(row.caches for row in rows), strict=True)]
