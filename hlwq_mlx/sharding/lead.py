"""The model as rank 0's engine sees it: whole, though other machines compute parts of each pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn

from ..gemma4.caches import WHOLE, Caching
from ..gemma4.config import Gemma4Config
from ..gemma4.model import Model
from ..gemma4.text import AfterLayer, nothing
from . import mirror
from .control import Leader
from .passes import FILL, LAST, STATES, Kind, Worker
from .shares import Run


class LedModel(Model):
    """A Model of which this machine holds a part, and leads the others.

    Before each pass it tells them what to do, what was done to caches, and the ids, which is how
    they learn what was drawn. `read_bytes` are the weights that each machine read from disk.
    """

    works_ahead = False  # the others have to be told the token before a pass begins

    def __init__(
        self, args: Gemma4Config, worker: Worker, leader: Leader, read_bytes: Sequence[int]
    ) -> None:
        nn.Module.__init__(self)
        part = worker.part
        self.args, self.model_type = args, args.model_type
        self.model, self.resources = part.model, part.resources
        self._towers = part._towers
        self.worker, self.leader = worker, leader
        self._notes = mirror.Notes()
        self.read_bytes = tuple(read_bytes)

    def make_cache(self, caching: Caching = WHOLE) -> list[Any]:
        """Make an empty cache for each layer that makes keys and values, here and elsewhere.

        Raises: RequestError when they cannot be kept so.
        """
        return mirror.make_led(self.args.text_config, caching, self.worker.layers, self._notes)

    def embed(self, inputs: mx.array) -> mx.array:
        """As Model's."""
        ids = self._ids(inputs)
        with self._leading({"do": "embed", "ids": ids.tolist()}):
            return self.worker.part.embed(mx.array(ids))

    def states(
        self,
        inputs: mx.array,
        cache: Sequence[Any] | None = None,
        input_embeddings: mx.array | None = None,
        after_layer: AfterLayer = nothing,
    ) -> mx.array:
        """As Model's."""
        hidden = self._pass(STATES, inputs, cache, input_embeddings)
        assert hidden is not None
        return hidden

    def last_state(
        self,
        inputs: mx.array,
        cache: Sequence[Any],
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """As Model's."""
        hidden = self._pass(LAST, inputs, cache, input_embeddings)
        assert hidden is not None
        return hidden

    def fill_cache(
        self,
        inputs: mx.array,
        cache: Sequence[Any],
        input_embeddings: mx.array | None = None,
    ) -> None:
        """As Model's."""
        self._pass(FILL, inputs, cache, input_embeddings)

    def decode_likeliest(
        self, inputs: mx.array, cache: Sequence[Any], most: int
    ) -> tuple[mx.array, mx.array]:
        """As Model's."""
        hidden = self._pass(STATES, inputs, cache, None, most=most)
        assert hidden is not None
        with self._completing():
            scores, total = self.worker.likeliest(hidden, most)
            mx.eval(scores, total)
            return scores, total

    def logits(self, hidden: mx.array) -> mx.array:
        """As Model's, at once: the others score with this machine."""
        with self._completing():
            scores = super().logits(hidden)
            mx.eval(scores)
            return scores

    def _pass(
        self,
        kind: Kind,
        inputs: mx.array,
        cache: Sequence[Any] | None,
        x: mx.array | None,
        **how: Any,
    ) -> mx.array | None:
        ids = self._ids(inputs)
        led = self.make_cache() if cache is None else cache
        self._blocks(ids, is_cached=cache is not None)  # refused before the others hear of it
        message = {
            **{"do": "pass", "kind": kind, "ids": ids.tolist(), "has_x": x is not None},
            **{"sequences": mirror.sequences_of(led), **how},
        }
        with self._leading(message):
            own, others = self._apart(led)
            hidden = self.worker.run(kind, mx.array(ids), mirror.inner(own), x, x is not None)
            mirror.advance(mirror.inner(others), ids.shape[1])
        return hidden

    def _apart(self, cache: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return the caches of the layers that are here, and those of the others."""
        here: Run = self.worker.layers
        return cache[here.start : here.stop], cache[here.stop :]

    @contextmanager
    def _leading(self, message: dict[str, Any]) -> Iterator[None]:
        """Tell the others of what they and this machine do within the block."""
        notes = self._notes.take()
        self.leader.tell({**message, "notes": notes} if notes else message)
        with self._completing():
            yield

    @contextmanager
    def _completing(self) -> Iterator[None]:
        """Leave if what the others wait for does not happen."""
        try:
            yield
        except BaseException as problem:  # noqa: BLE001 - Ctrl-C too: the others would wait
            self.leader.give_up(problem)
