"""Choose the next token. One frozen record holds the options; every limit of one is checked here.

This module never sees text. Defaults come from the checkpoint's generation_config.json.
V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Protocol, Self

import mlx.core as mx
import numpy as np

from ..errors import ConfigError, RequestError

Filter = Callable[[mx.array], mx.array]


class Choose(Protocol):
    """Chooses an id for each row of scores."""

    def __call__(self, scores: mx.array, key: mx.array | None = None) -> mx.array:
        """Return ids; Sampling.choose says of what."""
        ...


def mask_tokens(ids: Iterable[int], vocab_size: int) -> Callable[[mx.array], mx.array]:
    """Return a function that sets the logits of `ids` to -inf.

    Media tokens are masked this way: if the model emitted one, the next step would read it as
    padding.
    Shapes: logits [..., V] -> [..., V].
    """
    inside = [token for token in ids if token < vocab_size]
    if not inside:
        return lambda logits: logits
    is_masked = mx.array(np.isin(np.arange(vocab_size), inside))
    return lambda logits: mx.where(is_masked, -mx.inf, logits)


def keep_top_p(scores: mx.array, top_p: float) -> mx.array:
    """Keep the likeliest tokens that reach `top_p` of the probability together.

    Shapes: log probabilities [..., V] -> [..., V], -inf for the others.
    """
    descending = -mx.sort(-scores, axis=-1)
    powers = mx.exp(descending)
    mass_before = mx.cumsum(powers, axis=-1) - powers
    count = mx.maximum((mass_before < top_p).sum(axis=-1, keepdims=True), 1)
    least = mx.take_along_axis(descending, count - 1, axis=-1)
    return mx.where(scores < least, -mx.inf, scores)


def keep_min_p(scores: mx.array, min_p: float) -> mx.array:
    """Keep tokens that have at least `min_p` of the likeliest one's probability.

    Shapes: log probabilities [..., V] -> [..., V], -inf for the others.
    """
    least = scores.max(axis=-1, keepdims=True) + math.log(min_p)
    return mx.where(scores < least, -mx.inf, scores)


def keep_top_k(scores: mx.array, top_k: int) -> mx.array:
    """Keep the `top_k` likeliest tokens of more than `top_k`; which of equal ones is not specified.

    Shapes: log probabilities [..., V] -> [..., V], -inf for the others.
    """
    others = mx.argpartition(-scores, kth=top_k - 1, axis=-1)[..., top_k:]
    return mx.put_along_axis(scores, others, mx.array(-mx.inf, scores.dtype), axis=-1)


def _unusable(got: str) -> ConfigError:
    return ConfigError(
        "[generation_config.json] needed sampling options that can be followed, got "
        f"{got.rstrip('.')}. Fetch the file again."
    )


def require_within(name: str, value: Any, low: float, high: float) -> None:
    """Check an option; one whose lowest value is an int has to be an int.

    Raises: RequestError naming the option, its limits and the value.
    """
    kind = Integral if type(low) is int else Real
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise RequestError(
            f"[{name}] needed {low} to {high}, got {str(value)[:80]}. Choose a value between them."
        )


@dataclass(frozen=True)
class Sampling:
    """Sampling options; a temperature of 0 takes the likeliest token.

    Raises: RequestError naming the option, its limits and the value.
    """

    temp: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        require_within("temp", self.temp, 0.0, 100.0)
        require_within("top_p", self.top_p, 0.0, 1.0)
        require_within("top_k", self.top_k, 0, 1 << 20)
        require_within("min_p", self.min_p, 0.0, 1.0)

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the options that a checkpoint recommends; without do_sample, greedy ones.

        Raises: ConfigError for a value that no option may have.
        """
        do_sample = config.get("do_sample")
        if do_sample not in (None, False, True):
            raise _unusable(f"{str(do_sample)[:80]!r} as do_sample")
        named = {name: config.get(name) for name in ("top_p", "top_k", "min_p")}
        try:
            chosen = cls(temp=1.0).override(temp=config.get("temperature"), **named)
        except RequestError as problem:
            raise _unusable(f"others: {problem}") from problem
        return chosen if do_sample else cls()

    def override(self, **given: Any) -> Self:
        """Replace the options that are given, that is, not None.

        Raises: RequestError for an option that does not exist.
        """
        known = [field.name for field in fields(self)]
        unknown = sorted(given.keys() - set(known))
        if unknown:
            raise RequestError(
                f"[sampling] needed {', '.join(known)}, got {', '.join(unknown)}. "
                "Check the spelling."
            )
        return replace(self, **{key: value for key, value in given.items() if value is not None})

    @property
    def most(self) -> int | None:
        """How many of the likeliest tokens decide a choice, or None where all do.

        Shares of a top_p are of all tokens.
        """
        if self.temp == 0:
            return 1
        is_open = 0 < self.top_p < 1 or not self.top_k
        return None if is_open else self.top_k

    def choose(self, vocab_size: int, masked: Iterable[int] = ()) -> Choose:
        """Return a function that chooses an id for each row, and never a masked one.

        It is given a key for MLX's generator, or None for the global one. Filters see the
        distribution at temperature 1, in the order top_p, min_p, top_k, as mlx-lm's do; a top_p of
        0 filters nothing.
        Shapes: logits or log probabilities [B, V] -> ids [B].
        """
        mask = mask_tokens(masked, vocab_size)
        if self.temp == 0:
            return lambda scores, key=None: mx.argmax(mask(scores), axis=-1)
        filters: list[Filter] = []
        if 0 < self.top_p < 1:
            filters.append(lambda scores: keep_top_p(scores, self.top_p))
        if self.min_p > 0:
            filters.append(lambda scores: keep_min_p(scores, self.min_p))
        if 0 < self.top_k < vocab_size:
            filters.append(lambda scores: keep_top_k(scores, self.top_k))

        def draw(scores: mx.array, key: mx.array | None = None) -> mx.array:
            scores = mask(scores)
            # Normalized again, because top_p counts shares of what the mask left.
            scores = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
            for keep in filters:
                scores = keep(scores)
            return mx.random.categorical(scores / self.temp, key=key)

        return draw
