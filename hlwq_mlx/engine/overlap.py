"""A step that leaves the host no time of its own: the next one is built while MLX computes this.

A call finds its tokens under way. Before it waits for them it builds the graph of the step behind
them, in which they are arrays that are not known yet. Once they are, only what needs them is left:
rows of the per-layer table, penalties and constraints. That is handed to MLX before the tokens are
returned, so MLX computes while the caller writes them down.

What is under way belongs to a row, not to a set of rows: those that come find the others' tokens
there, and those that leave take theirs along. Results are those of PlainStep, bit for bit.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..gemma4.caches import Mark
from ..gemma4.late_rows import can_be_late
from ..gemma4.model import Model
from ..quant.backends.choose import steady_rows
from ..quant.layers import is_lazy
from .step import Outcome, PlainStep, Row, SharedStep, Step, choose, read, take, together, wait


def make_step(model: Model) -> Step:
    """Return the step that decodes a token a row soonest.

    A model that evaluates something while its graph is built needs its rows first.
    """
    if not model.works_ahead:
        return SharedStep(model)
    return OverlappedStep(model) if is_lazy(model) and can_be_late() else PlainStep(model)


class OverlappedStep:
    """One token a row, the next already under way."""

    def __init__(self, model: Model) -> None:
        self.width = steady_rows()
        self._model = model

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """Return each row's token that is under way, and begin with the one behind it.

        Raises: what the step of a row raised when it began, too.
        """
        for row in rows:
            if isinstance(row.under_way, Exception):
                raise row.under_way
        fresh = [row for row in rows if row.under_way is None]
        if fresh:
            choose(fresh, read(self._model, fresh))
        ahead = _Ahead(self._model, [row for row in rows if _may_go_on(row)])
        try:
            wait(rows)
        except BaseException:
            ahead.undo()
            raise
        ahead.begin()
        outcomes = take(rows)
        ahead.finish()
        return outcomes


def _may_go_on(row: Row) -> bool:
    """Return whether a token may follow the one that is under way."""
    return row.chosen.is_sound and row.left > 1


def _tokens(rows: Sequence[Row]) -> mx.array:
    """Return the tokens that are under way as inputs [R, 1]."""
    tokens = [row.chosen.token for row in rows]
    return mx.stack([token for token in tokens if isinstance(token, mx.array)])


class _Ahead:
    """The graph of the step that reads the tokens which are under way.

    A row that ends with its token has the graph undone for the others too.
    """

    def __init__(self, model: Model, rows: Sequence[Row]) -> None:
        self._model, self._rows = model, rows
        self._marks: list[tuple[Any, Mark]] = []
        if not rows:
            return
        self._late = model.late_rows(len(rows))
        self._marks = [(cache, cache.mark()) for row in rows for cache in row.caches]
        layers: list[mx.array] = []
        try:
            self._logits = model.decode_late(
                _tokens(rows), self._late, together(rows), layers.append
            )
        except BaseException:
            self.undo()
            raise
        self._first = layers[0]

    def undo(self) -> None:
        """Make the caches what they were."""
        for cache, mark in self._marks:
            cache.undo(mark)
        self._rows = ()

    def begin(self) -> None:
        """Hand the first layer to MLX, now that the tokens are known: MLX has nothing else to do.

        Raises: what MLX raises as it begins.
        """
        tokens = [int(np.array(row.chosen.token)[0]) for row in self._rows]
        if any(token in row.stop_ids for token, row in zip(tokens, self._rows, strict=True)):
            self.undo()
        elif self._rows and self._fill(tokens):
            self._marks = []
            mx.async_eval(self._first)

    def finish(self) -> None:
        """Hand the rest to MLX, with what choosers make of the scores.

        The next call raises what MLX raises here, because this one's tokens are taken.
        """
        if not self._rows:
            return
        try:
            choose(self._rows, self._logits)
        except Exception as problem:  # noqa: BLE001 - of any kind, and raised later
            for row in self._rows:
                row.under_way = problem

    def _fill(self, tokens: Sequence[int]) -> bool:
        """Fill in the rows of the table; where they cannot be read, the next call meets that."""
        if self._late is None:
            return True
        try:
            self._late.fill(self._model.read_rows(np.array(tokens)[:, None]))
        except Exception:  # noqa: BLE001 - of any kind, and met again
            self.undo()
            return False
        return True
