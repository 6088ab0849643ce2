"""One step of the engine: rows with their caches in, one or more tokens a row out.

A row is a sequence whose last token is chosen but not cached yet, with what chooses its next token.
Batching, drafting and several machines fit behind the protocol `Step`. This module never sees text.
R rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from ..gemma4.caches import Rows
from ..gemma4.model import Model
from ..quant.backends.choose import steady_rows
from .decoding import Chooser
from .draft import Course


@dataclass
class Row:
    """A sequence being answered: its caches, and its last token, which they do not hold yet.

    Only a row with its course can be drafted.
    """

    caches: list[Any]
    token: int
    chooser: Chooser
    course: Course | None = None


class Chosen(NamedTuple):
    """A token and the log probabilities it was chosen from; a drafted one took no pass of its own.

    Shapes: scores float32 [V].
    """

    token: int
    scores: mx.array
    is_drafted: bool = False


# What a step made of a row: its next tokens, or what its own chooser raised.
Outcome = list[Chosen] | Exception


class Step(Protocol):
    """Extends rows by one or more tokens each.

    A row's tokens do not depend on the other rows. A step changes the rows: their caches take the
    tokens that were read, choosers accept what was chosen, and `token` becomes the last of it.
    """

    @property
    def width(self) -> int:
        """How many rows a call takes, each with the very scores that it would have alone."""
        ...

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """Return the next tokens of each row, at least one.

        An exception of one row's chooser is that row's outcome, and the others go on. If the step
        itself raises, no chooser has changed, but caches may be half updated.
        """
        ...


def score(logits: mx.array) -> list[mx.array]:
    """Return each row's log probabilities, without evaluating anything.

    Shapes: logits float32 [R, V] -> R times [V].
    """
    scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return [*mx.split(scores.flatten(), len(logits))]


def start_row(
    caches: list[Any], logits: mx.array, chooser: Chooser, course: Course | None = None
) -> tuple[Row, Chosen]:
    """Choose the token behind a prompt that the caches hold.

    Shapes: logits float32 [1, V].
    """
    token, [scores] = chooser(logits), score(logits)
    mx.eval(token, scores)
    row = Row(caches, -1, chooser, course)
    return row, accept(row, token, scores)


class PlainStep:
    """One token a row: rows share the model's products, and each attends to its own caches."""

    def __init__(self, model: Model) -> None:
        self.width = steady_rows()
        self._model = model

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """Read each row's token and choose the next."""
        caches = rows[0].caches if len(rows) == 1 else self._together(rows)
        logits = self._model.decode(mx.array([[row.token] for row in rows]), caches)
        scores = score(logits)
        # An operation that serves all rows costs little more than one that serves a single row.
        own = mx.split(logits, len(rows))
        ids = [_try_choose(each, row.chooser) for each, row in zip(own, rows, strict=True)]
        # Where a chooser raised, the row's caches are whole all the same, and so are the others'.
        mx.eval(scores, [id for id in ids if not isinstance(id, Exception)])
        return [_try_accept(*each) for each in zip(rows, ids, scores, strict=True)]

    def _together(self, rows: Sequence[Row]) -> list[Rows]:
        return [Rows(entries) for entries in zip(*(row.caches for row in rows), strict=True)]


def accept(row: Row, token: mx.array, scores: mx.array, *, is_drafted: bool = False) -> Chosen:
    """Take a row's next token."""
    row.token = int(np.array(token)[0])
    row.chooser.accept(row.token)
    if row.course is not None:
        row.course.take(row.token)
    return Chosen(row.token, scores, is_drafted)


def _try_choose(logits: mx.array, chooser: Chooser) -> mx.array | Exception:
    try:
        return chooser(logits)
    except Exception as problem:  # noqa: BLE001 - a constraint's own, of any kind
        return problem


def _try_accept(row: Row, token: mx.array | Exception, scores: mx.array) -> Outcome:
    if isinstance(token, Exception):
        return token
    try:
        return [accept(row, token, scores)]
    except Exception as problem:  # noqa: BLE001 - a constraint's own, of any kind
        return problem
