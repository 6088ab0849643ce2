"""How one answer is decoded: what changes its scores, and the generator it is drawn with.

Scores change in this order: the repetition penalty; what is added, that is logit bias, presence and
frequency penalties; the constraint; then sampling options. This module never sees text.
V vocabulary.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral

import mlx.core as mx
import numpy as np

from ..errors import RequestError
from .constraint import Constraint
from .sampling import Sampling, require_within

REPETITION_CONTEXT = 64  # tokens, as in llama.cpp; mlx-lm's 20 forget a list item while it is told
BAN = -100.0  # a logit bias that forbids a token


@dataclass(frozen=True)
class Decoding:
    """Options of one answer; the defaults are greedy and change nothing.

    `repetition_penalty` divides positive logits of the last tokens of prompt and answer, and
    multiplies negative ones; the presence penalty is subtracted once, the frequency penalty each
    time that a token is in the answer. The same `seed`, an int of any size, repeats an answer, in
    company too; without one, MLX's global generator gives it. A constraint serves one answer.
    Raises: RequestError naming the option, its limits and the value.
    """

    sampling: Sampling = field(default_factory=Sampling)
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        require_within("repetition_penalty", self.repetition_penalty, 0.1, 10.0)
        require_within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        require_within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        for bias in self.logit_bias.values():
            require_within("logit_bias", bias, BAN, -BAN)
        is_seed = isinstance(self.seed, Integral) and not isinstance(self.seed, bool)
        if self.seed is not None and not is_seed:
            raise RequestError(
                f"[seed] needed a whole number, got {str(self.seed)[:80]}. Leave it out for "
                "another answer each time."
            )

    def chooser(
        self, vocab_size: int, masked: Iterable[int] = (), prompt: Sequence[int] = ()
    ) -> "Chooser":
        """Return what chooses the tokens of an answer to a prompt, and never a masked one.

        `prompt` may be its keys. Raises: RequestError for a bias of an id outside the vocabulary.
        """
        self.require_known(vocab_size)
        return Chooser(self, vocab_size, masked, prompt)

    def require_known(self, vocab_size: int) -> None:
        """Check that every biased id is a token.

        Raises: RequestError.
        """
        outside = [token for token in self.logit_bias if not 0 <= token < vocab_size]
        if outside:
            raise RequestError(
                f"[logit_bias] needed token ids from 0 to {vocab_size - 1}, got {outside[0]}. "
                "Use this model's tokenizer."
            )


class Chooser:
    """Chooses the tokens of one answer; only `accept` changes it, so that a step can be repeated.

    Each token has a key of its own, so that rows that step together do not share a generator.
    """

    def __init__(
        self, decoding: Decoding, vocab_size: int, masked: Iterable[int], prompt: Sequence[int]
    ) -> None:
        self._decoding = decoding
        never = frozenset(masked)
        self._choose, self._never = decoding.sampling.choose(vocab_size, never), len(never)
        last = prompt[-REPETITION_CONTEXT:]
        self._recent = deque((key for key in last if key >= 0), REPETITION_CONTEXT)
        self._counts: Counter[int] = Counter()
        self._bias = {
            token: bias if bias > BAN else -float("inf")
            for token, bias in decoding.logit_bias.items()
        }
        self._key = None if decoding.sampling.temp == 0 else _key(decoding.seed)
        self._scores: mx.array | None = None

    @property
    def most(self) -> int | None:
        """How many of the likeliest tokens decide a choice, or None where all do."""
        most = self._decoding.sampling.most
        return None if self._depends or most is None else most + self._never

    def __call__(self, logits: mx.array) -> mx.array:
        """Choose the next token, without evaluating anything.

        Shapes: logits float32 [1, V] -> id [1].
        """
        scores = self._add(self._repel(logits))
        if self._decoding.constraint is not None:
            scores = self._decoding.constraint.mask(scores)
        self._scores = None if scores is logits else scores
        key = None if self._key is None else mx.random.split(self._key)[0]
        return self._choose(scores, key)

    def ahead(self, logits: Sequence[mx.array]) -> list[mx.array]:
        """Choose at consecutive positions, as if each choice had been accepted before the next.

        Where a choice depends on the tokens before, there is none. Nothing is evaluated.
        Shapes: logits float32 [1, V] each -> ids [1].
        """
        if self._depends:
            return []
        ids, rest = [], self._key
        for each in logits:
            key, rest = (None, None) if rest is None else mx.random.split(rest)
            ids.append(self._choose(each, key))
        return ids

    @property
    def _depends(self) -> bool:
        """Whether more than the scores decide: tokens before, a bias or a constraint."""
        decoding = self._decoding
        return bool(
            decoding.repetition_penalty != 1
            or decoding.presence_penalty
            or decoding.frequency_penalty
            or self._bias
            or decoding.constraint is not None
        )

    def accept(self, token: int) -> None:
        """Take the token that was chosen.

        Raises: RequestError when no token was allowed.
        """
        if self._scores is not None and np.asarray(self._scores)[0, token] == -np.inf:
            raise RequestError(
                "[logit_bias] needed to leave a token that may follow, got none. Forbid fewer, or "
                "loosen the schema."
            )
        self._scores = None
        self._recent.append(token)
        self._counts[token] += 1
        if self._key is not None:
            self._key = mx.random.split(self._key)[1]
        if self._decoding.constraint is not None:
            self._decoding.constraint.accept(token)

    def _repel(self, logits: mx.array) -> mx.array:
        penalty = self._decoding.repetition_penalty
        if penalty == 1 or not self._recent:
            return logits
        ids = mx.array([sorted(set(self._recent))])
        seen = mx.take_along_axis(logits, ids, axis=-1)
        repelled = mx.where(seen < 0, seen * penalty, seen / penalty)
        return mx.put_along_axis(logits, ids, repelled, axis=-1)

    def _add(self, logits: mx.array) -> mx.array:
        presence, frequency = self._decoding.presence_penalty, self._decoding.frequency_penalty
        added = dict(self._bias)
        if presence or frequency:
            for token, count in self._counts.items():
                added[token] = added.get(token, 0.0) - presence - frequency * count
        if not added:
            return logits
        return logits.at[:, mx.array([*added])].add(mx.array([*added.values()], logits.dtype))


def _key(seed: int | None) -> mx.array:
    """Return a key for MLX's generator; without a seed, one that its global generator draws."""
    if seed is None:
        key: mx.array = mx.random.randint(0, (1 << 31) - 1, (2,), mx.uint32)
    else:
        key = mx.random.key(int(seed) % (1 << 64))
    return key
