"""How the next token is chosen: the limits of every sampling option, in one place.

mlx-lm's samplers do the choosing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Self

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import make_sampler

from ..errors import ConfigError, RequestError


def bounded_top_k(top_k: int, vocab_size: int) -> int:
    """Say "keep all" as mlx-lm 0.32.2 does, which raises for more than there are."""
    return top_k if top_k < vocab_size else 0


def forbidder(ids: Iterable[int], vocab_size: int) -> Callable[[mx.array], mx.array]:
    """Make what leaves some ids no chance, as media tokens must have none in an answer.

    A model reads a soft token that it wrote as padding, and then the next.
    Shapes: logits [..., V] -> [..., V].
    """
    inside = [token for token in ids if token < vocab_size]
    if not inside:
        return lambda logits: logits
    is_forbidden = mx.array(np.isin(np.arange(vocab_size), inside))
    return lambda logits: mx.where(is_forbidden, -mx.inf, logits)


def _unusable(got: str) -> ConfigError:
    return ConfigError(
        "[generation_config.json] needed sampling options that can be followed, got "
        f"{got.rstrip('.')}. Fetch the file again."
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
        for name, low, high in (
            ("temp", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("top_k", 0, 1 << 20),
            ("min_p", 0.0, 1.0),
        ):
            value = getattr(self, name)
            kind = Integral if type(low) is int else Real
            is_number = isinstance(value, kind) and not isinstance(value, bool)
            if not is_number or not low <= value <= high:
                raise RequestError(
                    f"[{name}] needed {low} to {high}, got {str(value)[:80]}. "
                    "Choose a value between them."
                )

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> Self:
        """Take the defaults a checkpoint recommends; without do_sample it means greedy.

        Raises: ConfigError for values that are none.
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

    def sampler(
        self, vocab_size: int, forbidden: Iterable[int] = ()
    ) -> Callable[[mx.array], mx.array]:
        """Build mlx-lm's sampler for these options; it never chooses a forbidden id.

        Shapes: log probabilities [B, V] -> ids [B].
        """
        chosen: Callable[[mx.array], mx.array] = make_sampler(
            temp=self.temp,
            top_p=self.top_p,
            top_k=bounded_top_k(self.top_k, vocab_size),
            min_p=self.min_p,
        )
        allow = forbidder(forbidden, vocab_size)

        def sample(scores: mx.array) -> mx.array:
            allowed = allow(scores)
            return chosen(allowed - mx.logsumexp(allowed, axis=-1, keepdims=True))

        return sample
