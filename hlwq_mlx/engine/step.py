"""One step of the engine: prepared rows and caches in, one or more tokens a row out.

A row is a sequence whose last token is chosen and not yet cached. What chooses tokens, samplers and
grammars, stands beside the row; what batches requests, drafts tokens or spreads a model over
machines stands behind `Step`. Knows ids, never text.
R rows, V vocabulary.
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
    """A sequence in flight: its caches, and the last token, which they do not hold yet."""

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
    """Takes rows onward by one or more tokens each.

    A row's result is the same alone and in company. A step writes to the rows: their caches take
    what was read, and `token` becomes the last one chosen.
    """

    def __call__(self, rows: Sequence[Row]) -> list[list[Chosen]]:
        """Return what each row goes on with, at least one token."""
        ...


def choose(logits: mx.array, row_choose: Choose) -> tuple[mx.array, mx.array]:
    """Choose a token by one row's logits; nothing is evaluated.

    Shapes: logits float32 [1, V] -> id [1], log probabilities [V].
    """
    scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return row_choose(scores), scores.squeeze(0)


class PlainStep:
    """One token a row: all rows go through the model's products together, and attend each alone."""

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
