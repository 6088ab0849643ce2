"""Drafts by a drafter of the model's own kind, which reads the model's keys, values and states."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..gemma4.attention import SharedKV
from ..gemma4.drafter import Drafter
from ..gemma4.drafter_config import require_fit
from ..gemma4.model import Model
from .draft import Seen

# What a drafter's layer costs, in layers of the model: it makes no keys and has no per-layer input,
# so it launches about half as much, and it is narrower.
LAYER_COST = 0.5


class ModelDrafter:
    """Drafts for a model; the graph of all drafts is built at once and nothing waits for it.

    `cost` is what one draft costs, in passes of the model.
    Raises: CheckpointError for a drafter that does not fit the model.
    """

    needs_hidden = True

    def __init__(self, model: Model, drafter: Drafter) -> None:
        require_fit(drafter.args, model.args.text_config)
        self._text = model.model.language_model
        self._drafter = drafter
        self.cost = LAYER_COST * len(drafter.model.layers) / len(model.layers)

    def draft(self, seen: Seen, count: int) -> Sequence[int] | mx.array:
        """Return the likeliest tokens, none where the model's last state is not known.

        Shapes: -> int [k], k <= count.
        """
        if seen.hidden is None or count < 1:
            return ()
        token = mx.array([[int(seen.ids[-1])]])
        shared = self._shared(seen.caches)
        return self._drafter.draft(self._text.embed, token, seen.hidden, shared, count)

    def _shared(self, caches: Sequence[Any]) -> dict[str, SharedKV]:
        """Return what the next query sees, of the last layer of each type that makes some."""
        types = self._text.config.layer_types
        shared = {}
        for layer_type, cache in dict(zip(types, caches, strict=False)).items():
            keys, values = cache.peek()
            shared[layer_type] = SharedKV(keys, values, None, mx.array(cache.offset), cache)
        return shared
