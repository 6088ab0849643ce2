"""One step of the engine: rows with their caches in, one or more tokens a row out.

A row is a sequence whose last token is chosen, with what chooses its next token. Batching, working
ahead (overlap.py), drafting and several machines fit behind the protocol `Step`. This module never
sees text.
R rows, V vocabulary.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from ..gemma4.caches import Rows
from ..gemma4.model import Model
from ..quant.backends.choose import steady_rows
from .decoding import Chooser
from .draft import Course

LISTED = 32  # likeliest tokens that an answer may list with their probabilities, and more


class Chosen(NamedTuple):
    """A token and the log probabilities it was chosen from; a drafted one took no pass of its own.

    Shapes: scores float32 [V].
    """

    token: int
    scores: mx.array
    is_drafted: bool = False


class UnderWay(NamedTuple):
    """A row's next token, which MLX may still be computing, or what its own chooser raised.

    Shapes: token [1], scores float32 [V].
    """

    token: mx.array | Exception
    scores: mx.array

    @property
    def is_sound(self) -> bool:
        """Whether a token was chosen."""
        return isinstance(self.token, mx.array)


@dataclass
class Row:
    """A sequence being answered: its caches, its last token, and what chooses the next.

    The answer is over with a token of `stop_ids`, or when none are `left`. The caches do not hold
    the last token yet; while a step that reads it is `under_way`, they do. An exception there is
    what that step raised. Only a row with its course can be drafted.
    """

    caches: list[Any]
    token: int
    chooser: Chooser
    stop_ids: Collection[int] = ()
    left: float = math.inf
    under_way: UnderWay | Exception | None = None
    course: Course | None = None

    @property
    def is_over(self) -> bool:
        """Whether the last token ends the answer."""
        return self.token in self.stop_ids or self.left < 1

    @property
    def chosen(self) -> UnderWay:
        """What is under way."""
        assert isinstance(self.under_way, UnderWay)
        return self.under_way

    @property
    def is_broken(self) -> bool:
        """Whether what is under way raised, so that the caches are of no use."""
        return isinstance(self.under_way, Exception)


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


def score(logits: mx.array, total: mx.array | None = None) -> list[mx.array]:
    """Return each row's log probabilities, without evaluating anything.

    `total` is the logarithm of the scores' sum, where some are not there.
    Shapes: logits float32 [R, V], total [R, 1] -> R times [V].
    """
    total = mx.logsumexp(logits, axis=-1, keepdims=True) if total is None else total
    return [*mx.split((logits - total).flatten(), len(logits))]


def start_row(row: Row, logits: mx.array) -> Chosen:
    """Choose the first token of a row, behind a prompt that its caches hold.

    Shapes: logits float32 [1, V].
    """
    token, [scores] = row.chooser(logits), score(logits)
    mx.eval(token, scores)
    return accept(row, token, scores)


class PlainStep:
    """One token a row: rows share the model's products, and each attends to its own caches."""

    def __init__(self, model: Model) -> None:
        self.width = steady_rows()
        self._model = model

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """Read each row's token and choose the next."""
        fresh = [row for row in rows if row.under_way is None]
        if fresh:
            choose(fresh, read(self._model, fresh))
        wait(rows)
        return take(rows)


def read(model: Model, rows: Sequence[Row]) -> mx.array:
    """Read each row's token; the work begins while the graph is built.

    Shapes: -> float32 [R, V].
    """
    return model.decode(mx.array([[row.token] for row in rows]), together(rows))


class SharedStep(PlainStep):
    """PlainStep for a model of which other machines score their tokens.

    They send the likeliest ones, where no row's choice needs all.
    """

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """Read each row's token and choose the next."""
        most = _most(rows)
        if most is None or any(row.under_way is not None for row in rows):
            return super().__call__(rows)
        ids = mx.array([[row.token] for row in rows])
        logits, total = self._model.decode_likeliest(ids, together(rows), most)
        choose(rows, logits, total)
        wait(rows)
        return take(rows)


def _most(rows: Sequence[Row]) -> int | None:
    """Return how many of the likeliest tokens decide every row's choice, None where all do."""
    counts = [row.chooser.most for row in rows]
    known = [count for count in counts if count is not None]
    return max(LISTED, *known) if len(known) == len(counts) else None


def together(rows: Sequence[Row]) -> list[Any]:
    """Return the caches of rows as those of one step."""
    if len(rows) == 1:
        return rows[0].caches
    return [Rows(entries) for entries in zip(*(row.caches for row in rows), strict=True)]


def choose(rows: Sequence[Row], logits: mx.array, total: mx.array | None = None) -> None:
    """Choose each row's next token, and let MLX begin; it is under way from then on.

    `total` as in `score`. Shapes: logits float32 [R, V].
    """
    scores = score(logits, total)
    # An operation that serves all rows costs little more than one that serves a single row.
    own = mx.split(logits, len(rows))
    ids = [_try_choose(each, row.chooser) for each, row in zip(own, rows, strict=True)]
    # Where a chooser raised, the row's caches are whole all the same, and so are the others'.
    mx.async_eval([id for id in ids if not isinstance(id, Exception)], scores)
    for row, id, each in zip(rows, ids, scores, strict=True):
        row.under_way = UnderWay(id, each)


def wait(rows: Sequence[Row]) -> None:
    """Wait for the tokens that are under way.

    Raises: what MLX raises while it computes.
    """
    mx.eval([row.chosen.token for row in rows if row.chosen.is_sound])


def take(rows: Sequence[Row]) -> list[Outcome]:
    """Take the tokens that were waited for."""
    return [_take(row) for row in rows]


def _take(row: Row) -> Outcome:
    (token, scores), row.under_way = row.chosen, None
    if isinstance(token, Exception):
        return token
    try:
        return [accept(row, token, scores)]
    except Exception as problem:  # noqa: BLE001 - a constraint's own, of any kind
        return problem


def accept(row: Row, token: mx.array, scores: mx.array, *, is_drafted: bool = False) -> Chosen:
    """Take a row's next token."""
    row.token = int(np.array(token)[0])
    row.left -= 1
    row.chooser.accept(row.token)
    if row.course is not None:
        row.course.take(row.token)
    return Chosen(row.token, scores, is_drafted)


def _try_choose(logits: mx.array, chooser: Chooser) -> mx.array | Exception:
    try:
        return chooser(logits)
    except Exception as problem:  # noqa: BLE001 - a constraint's own, of any kind
        return problem
