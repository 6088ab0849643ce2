"""Modules of a machine that holds a share of every layer: what goes in and out is whole.

They wrap the modules of a loaded part. Every machine calls them in the same order, because each
call is a collective.
"""

from collections.abc import Callable

import mlx.core as mx
from mlx import nn

from ..gemma4.config import Gemma4Config
from ..gemma4.experts import Chosen
from ..gemma4.model import Model
from ..quant.activation import Activation, Input
from .link import Link
from .shares import Run, Split


class Summed(nn.Module):
    """A product whose columns are shared out: each machine multiplies its own, and all add up."""

    def __init__(self, inner: nn.Module, link: Link) -> None:
        super().__init__()
        self.inner = inner
        self._link = link

    def __call__(self, x: Input) -> mx.array:
        """Multiply: x [..., own columns] -> [..., rows]."""
        return self._link.sum(self.inner(x))


class OwnExperts(nn.Module):
    """Experts of which this machine has some: what it makes of a token is its part of the sum."""

    def __init__(self, inner: nn.Module, own: Run) -> None:
        super().__init__()
        self.inner = inner
        self._own = own

    def __call__(self, x: mx.array, chosen: Chosen) -> mx.array:
        """Let the experts of other machines count nothing; the order stays ascending.

        Shapes: as Experts'.
        """
        local = chosen.experts.astype(mx.int32) - self._own.start
        is_here = (local >= 0) & (local < len(self._own))
        experts = mx.clip(local, 0, len(self._own) - 1).astype(chosen.experts.dtype)
        return self.inner(x, Chosen(experts, mx.where(is_here, chosen.shares, 0)))


class SplitEmbedding(nn.Module):
    """An embedding of which each machine has the rows of some tokens; the tied head too."""

    def __init__(self, inner: nn.Module, tokens: Run, vocab_size: int, link: Link) -> None:
        super().__init__()
        self.inner = inner
        self._tokens, self._vocab_size, self._link = tokens, vocab_size, link

    def __call__(self, ids: mx.array) -> mx.array:
        """Look up rows: ids [...] -> [..., H]."""
        local = ids.astype(mx.int32) - self._tokens.start
        is_here = (local >= 0) & (local < len(self._tokens))
        rows = self.inner(mx.where(is_here, local, 0))
        return self._link.sum(mx.where(is_here[..., None], rows, 0).astype(rows.dtype))

    def as_linear(self, x: Input) -> mx.array:
        """Score every token: x [..., H] -> [..., V]."""
        scores = self.inner.as_linear(x)
        shape, size = Activation.of(x).plain.shape[:-1], self._link.size
        own = scores.reshape(-1, len(self._tokens))
        most = -(-self._vocab_size // size)
        every = self._link.gather(mx.pad(own, [(0, 0), (0, most - len(self._tokens))]))
        whole = every.transpose(1, 0, 2).reshape(*shape, size * most)
        return whole[..., : self._vocab_size]

    def likeliest(
        self, x: mx.array, most: int, capped: Callable[[mx.array], mx.array]
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Score the `most` likeliest tokens of each machine, and the logarithm of all their sum.

        A number of float32 holds every id.
        Shapes: x [B, H] -> float32 [B, size * k], int [B, size * k], float32 [B, 1].
        """
        scores = capped(self.inner.as_linear(x))
        k = min(most, self._fewest)
        best = mx.argpartition(-scores, k - 1, axis=-1)[:, :k]
        own = [
            mx.take_along_axis(scores, best, axis=-1),
            (best + self._tokens.start).astype(mx.float32),
            mx.logsumexp(scores, axis=-1, keepdims=True),
        ]
        every = self._link.gather(mx.concatenate(own, axis=-1)).transpose(1, 0, 2)
        values, ids, totals = mx.split(every, [k, 2 * k], axis=-1)
        ids = ids.astype(mx.int32).flatten(1)
        return values.flatten(1), ids, mx.logsumexp(totals, axis=1)

    @property
    def _fewest(self) -> int:
        """The tokens of the machine that has fewest, the last."""
        size = self._link.size
        return self._vocab_size - (size - 1) * -(-self._vocab_size // size)


def split_modules(model: Model, args: Gemma4Config, split: Split, link: Link) -> None:
    """Let a part that is loaded and prepared work as its share of the whole model."""
    text = model.model.language_model

    def both(dense: mx.array, sparse: mx.array) -> tuple[mx.array, mx.array]:
        dense, sparse = link.sum(mx.stack([dense, sparse]))
        return dense, sparse

    for layer in text.layers:
        layer.self_attn.o_proj = Summed(layer.self_attn.o_proj, link)
        if "experts" not in layer:
            layer.mlp.down_proj = Summed(layer.mlp.down_proj, link)
            continue
        layer.summed = both  # one collective for the dense MLP and the experts
        if split.experts is not None:
            layer.experts = OwnExperts(layer.experts, split.experts)
    vocab_size = args.text_config.vocab_size
    text.embed_tokens = SplitEmbedding(text.embed_tokens, split.vocabulary, vocab_size, link)
    # It was built with as many tokens as it holds, and is asked about all.
    model.args = args
