"""What one machine does of a pass: its layers, or its share of every layer.

Every machine is told the ids, so that it knows masks and reads its own rows of the per-layer table.
By layers, hidden states go from machine to machine with the embeddings that per-layer inputs are
made of, and the last hidden state comes back to rank 0. By tensors, each sum of a layer's shares is
a collective (split.py), and embeddings with features of media are rank 0's.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import mlx.core as mx

from ..gemma4.model import Model
from .link import Link
from .shares import Run

Kind = Literal["states", "last", "fill"]
STATES: Kind = "states"
LAST: Kind = "last"
FILL: Kind = "fill"


class Worker(Protocol):
    """One machine's part of the model; `layers` are those whose caches it keeps."""

    part: Model
    layers: Run
    link: Link

    def run(
        self, kind: Kind, ids: mx.array, cache: Sequence[Any], x: mx.array | None, has_x: bool
    ) -> mx.array | None:
        """Do this machine's work of a pass; the hidden state is where it is scored.

        `has_x` says whether rank 0 has embeddings x for it, with features of media in them.
        Shapes: ids int [B, L], x [B, L, H] -> [B, L, H], or of the last position, or nothing.
        """
        ...

    def score(self, hidden: mx.array) -> None:
        """Take part in scoring a hidden state."""
        ...

    def likeliest(self, hidden: mx.array, most: int) -> tuple[mx.array, mx.array]:
        """Score the likeliest tokens: hidden [B, 1, H] -> as Model.decode_likeliest returns."""
        ...

    def embed(self, ids: mx.array) -> None:
        """Take part in embedding ids."""
        ...


class LayersWorker:
    """Some layers of the model."""

    def __init__(self, part: Model, layers: Run, link: Link) -> None:
        self.part, self.layers, self.link = part, layers, link
        # Per-layer inputs are mixed from embeddings, which only rank 0 makes.
        self._needs_x = part.args.text_config.hidden_size_per_layer_input > 0

    def run(
        self, kind: Kind, ids: mx.array, cache: Sequence[Any], x: mx.array | None, has_x: bool
    ) -> mx.array | None:
        """As Worker's; the hidden state comes back to rank 0."""
        link, H = self.link, self.part.args.text_config.hidden_size
        arrived = None
        if link.rank:
            shape = (1 + self._needs_x, *ids.shape, H)
            got = link.receive(shape, self._dtype, link.rank - 1)
            x, arrived = got[0], got[-1]
        start = self.part.start(ids, cache, x, arrived)
        if link.is_last:
            hidden = self._finish(kind, start)
            if hidden is not None:
                link.send(hidden, 0)
            return None
        passed = self.part.run(start, mx.async_eval if kind == STATES else mx.eval).x
        link.send(mx.stack([start.x, passed] if self._needs_x else [passed]), link.rank + 1)
        if link.rank or kind == FILL:
            return None
        length = ids.shape[1] if kind == STATES else 1
        return link.receive((len(ids), length, H), self._dtype, link.size - 1)

    def score(self, hidden: mx.array) -> None:
        """Do nothing: rank 0 has the head."""

    def likeliest(self, hidden: mx.array, most: int) -> tuple[mx.array, mx.array]:
        """Score all tokens, on rank 0."""
        logits = self.part.logits(hidden)[:, -1]
        return logits, mx.logsumexp(logits, axis=-1, keepdims=True)

    def embed(self, ids: mx.array) -> None:
        """Do nothing: rank 0 has the embedding."""

    @property
    def _dtype(self) -> mx.Dtype:
        return self.part.model.language_model.dtype

    def _finish(self, kind: Kind, start: Any) -> mx.array | None:
        if kind == STATES:
            return self.part.finish(self.part.run(start, mx.async_eval), mx.async_eval)
        filled = self.part.fill(start)
        return self.part.finish_last(start, filled) if kind == LAST else None


class TensorsWorker:
    """A share of every layer."""

    def __init__(self, part: Model, link: Link) -> None:
        self.part, self.link = part, link
        self.layers = Run(0, part.args.text_config.num_hidden_layers)

    def run(
        self, kind: Kind, ids: mx.array, cache: Sequence[Any], x: mx.array | None, has_x: bool
    ) -> mx.array | None:
        """As Worker's; the hidden state is on every machine."""
        if has_x:
            text = self.part.model.language_model
            shape = (*ids.shape, self.part.args.text_config.hidden_size)
            x = self.link.sum(mx.zeros(shape, text.dtype) if x is None else x.astype(text.dtype))
        if kind == STATES:
            return self.part.states(ids, cache, x, mx.async_eval)
        if kind == LAST:
            return self.part.last_state(ids, cache, x)
        self.part.fill_cache(ids, cache, x)
        return None

    def score(self, hidden: mx.array) -> None:
        """Score the tokens that are here."""
        mx.eval(self.part.logits(hidden))

    def likeliest(self, hidden: mx.array, most: int) -> tuple[mx.array, mx.array]:
        """Score the tokens that are here; put every machine's likeliest ones together."""
        text = self.part.model.language_model
        scores, ids, total = text.embed_tokens.likeliest(hidden[:, -1], most, text.capped)
        B, V = len(scores), self.part.args.text_config.vocab_size
        nothing = mx.full((B, V), -mx.inf, mx.float32)
        return mx.put_along_axis(nothing, ids, scores, axis=-1), total

    def embed(self, ids: mx.array) -> None:
        """Look up the tokens that are here."""
        mx.eval(self.part.embed(ids))
