"""A drafter: a small Gemma 4 that drafts tokens from what its target has just computed.

It has no cache. Its layers attend to the keys and values of the target's last layers of each type,
its input is the target's embedding of a token beside the state behind the final norm from which
that token was chosen, and its output takes that state's place for the next draft. Positions stand
still: every draft is made from that of the first. Attribute names are the checkpoint's.
B batch, H the target's hidden size, h the drafter's, V vocabulary, C centroids.
Source: transformers 5.23.0, modeling_gemma4_assistant.py.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import mlx.core as mx
from mlx import nn

from ..quant.layers import Linear, code_modules
from .config import manifest_part
from .drafter_config import DrafterConfig
from .text import Shared, TextModel

TOKEN_ORDERING = "masked_embedding.token_ordering"


class Scores(NamedTuple):
    """Scores of some tokens, those of others being lower; `ids` None where all are scored.

    Shapes: ids int [B, 1, n], values [B, 1, n].
    """

    ids: mx.array | None
    values: mx.array

    def likeliest(self) -> mx.array:
        """Return the token with the highest score: int [B, 1]."""
        best = mx.argmax(self.values, axis=-1)
        if self.ids is None:
            return best
        return mx.take_along_axis(self.ids, best[..., None], axis=-1)[..., 0]


class OrderedTokens(nn.Module):
    """Tokens in C groups of equal size, each with a centroid that says whether to score them."""

    def __init__(self, width: int, count: int, most: int, vocab_size: int) -> None:
        super().__init__()
        self.centroids = nn.Linear(width, count, bias=False)
        self.token_ordering = mx.zeros((vocab_size,), dtype=mx.int64)
        self._most = most
        self._group = vocab_size // count

    def __call__(self, state: mx.array) -> mx.array:
        """Return the tokens of the likeliest groups: state [B, 1, h] -> int [B, 1, n]."""
        scores = self.centroids(state)
        chosen = mx.argpartition(-scores, kth=self._most - 1, axis=-1)[..., : self._most]
        groups = self.token_ordering.reshape(-1, self._group)
        return groups[chosen].reshape(*chosen.shape[:2], -1)


class Drafter(nn.Module):
    """The drafter's layers; its modules are coded where the config's HLWQ manifest says so."""

    def __init__(self, args: DrafterConfig) -> None:
        super().__init__()
        self.args = args
        text, H = args.text_config, args.backbone_hidden_size
        h = text.hidden_size
        self.model = TextModel(text)
        self.pre_projection = Linear(2 * H, h, bias=False)
        self.post_projection = Linear(h, H, bias=False)
        if args.use_ordered_embeddings:
            count, most = args.num_centroids, args.centroid_intermediate_top_k
            self.masked_embedding = OrderedTokens(h, count, most, text.vocab_size)
        code_modules(self, manifest_part(args.quantization_config, lambda name: True))

    def __call__(
        self, embedding: mx.array, state: mx.array, shared: Mapping[str, Shared]
    ) -> tuple[Scores, mx.array]:
        """Score the token behind another, and return the state for the one behind it.

        `shared` holds, for each layer type, the target's keys and values that the next query of it
        would see, without its own.
        Shapes: embedding and state [B, 1, H] -> Scores and [B, 1, H].
        """
        x = self.pre_projection(mx.concatenate([embedding, state], axis=-1))
        count = self.args.text_config.num_hidden_layers
        x = self.model.run_shared_layers(x, [None] * count, shared)
        return self._scores(x), self.post_projection(x)

    def draft(
        self,
        embed: Callable[[mx.array], mx.array],
        token: mx.array,
        state: mx.array,
        shared: Mapping[str, Shared],
        count: int,
    ) -> mx.array:
        """Return the likeliest tokens behind a token, one behind the other, without evaluating any.

        `embed` is the target's.
        Shapes: token int [1, 1], state [1, 1, H] -> int [count].
        """
        drafts = []
        for _ in range(count):
            scores, state = self(embed(token), state, shared)
            token = scores.likeliest()
            drafts.append(token)
        return mx.concatenate(drafts, axis=1)[0]

    def _scores(self, x: mx.array) -> Scores:
        table = self.model.embed_tokens
        if not self.args.use_ordered_embeddings:
            return Scores(None, table.as_linear(x))
        ids = self.masked_embedding(x)
        return Scores(ids, (table(ids).astype(x.dtype) @ x[..., None])[..., 0])
