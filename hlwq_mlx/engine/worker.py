"""Do on MLX what the scheduler decides: prepare prompts piece by piece, and decode rows together.

Caches of one kind step together without padding, coded and bounded ones too (see gemma4.caches), so
every row's answer is the one that it would have alone. All calls come from one thread, which owns
MLX.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, RequestError
from ..gemma4.caches import WHOLE, Caching
from ..gemma4.model import Model
from .answer import chunks, inseparable, make_chooser, read_chunk
from .decoding import Chooser
from .draft import Course, Drafter
from .finite import require_finite
from .prefix_cache import Match, PrefixCache
from .request import PREFILL_STEP, Prepared
from .speculate import make_step
from .step import Chosen, Row, start_row
from .task import Task, Token

# Yields None after each piece of reading; returns the caches, and the logits behind the prompt.
Reading = Generator[None, None, tuple[list[Any], mx.array]]


@dataclass(eq=False)
class Job:
    """A task that was begun, the tokens of its answer so far, and its row once it can decode.

    `cached` tokens of the prompt were known; `share` is how much of a chunk is left to read.
    """

    task: Task
    chooser: Chooser
    course: Course
    cached: int
    reading: Reading
    share: float = 1.0
    answer: list[int] = field(default_factory=list)
    row: Row | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the prompt is read, so that it can decode."""
        return self.row is not None


class Worker:
    """Reads prompts and decodes answers by a model.

    Caches are kept as `caching` says, `prefixes` being of that kind.
    """

    def __init__(
        self,
        model: Model,
        prefixes: PrefixCache | None = None,
        caching: Caching = WHOLE,
        prefill_step: int = PREFILL_STEP,
        drafter: Drafter | None = None,
    ) -> None:
        self.model = model
        self.prefixes = prefixes or PrefixCache(partial(model.make_cache, caching), 0)
        self._prefill_step = prefill_step
        self._step = make_step(model, drafter)

    def begin(self, task: Task) -> Job:
        """Find what is known of the prompt."""
        chooser = make_chooser(self.model, task.decoding, task.keys)
        match = self.prefixes.find(task.keys, task.salt)
        unread = len(task.keys) - match.length
        share = 1.0 if _has_media(task, match.length) else min(1.0, unread / self._prefill_step)
        # At once, because other jobs may drive out what was found.
        reading = self._read(task, match, match.restore())
        return Job(task, chooser, Course(task.keys), match.length, reading, share)

    def advance(self, job: Job) -> list[Token]:
        """Do one piece of reading; behind the last one, choose the first token."""
        try:
            next(job.reading)
            return []
        except StopIteration as end:
            caches, logits = end.value
        left = math.inf if job.task.max_tokens == -1 else job.task.max_tokens - len(job.answer)
        last = job.answer[-1] if job.answer else -1
        job.row = Row(caches, last, job.chooser, job.task.stop_ids, left, course=job.course)
        if job.answer:  # it was read again
            return []
        return [self._token(job, start_row(job.row, logits))]

    def step(self, jobs: Sequence[Job]) -> list[list[Token] | Exception]:
        """Decode ready jobs, as many tokens each as a step brings."""
        outcomes = self._step([job.row for job in jobs if job.row is not None])
        return [
            outcome if isinstance(outcome, Exception) else self._try_tokens(job, outcome)
            for job, outcome in zip(jobs, outcomes, strict=True)
        ]

    def again(self, job: Job) -> None:
        """Drop the caches, which may be half updated, and go back to reading."""
        job.row = None
        job.share = 1.0
        job.reading = self._read_again(job)

    def end(self, job: Job) -> None:
        """Keep a prompt with its answer, which the next prompt may begin with."""
        if job.row is not None and not job.row.is_broken:
            keys = [*job.task.keys, *job.answer]
            caches = job.row.caches
            self.prefixes.keep(keys, caches, caches[0].offset, job.task.salt)

    def rest(self) -> None:
        """Do what can wait until nobody does: write prefixes to disk."""
        self.prefixes.save()

    def close(self) -> None:
        """Write what waits to be written, and keep nothing more."""
        self.prefixes.close()

    @property
    def width(self) -> int:
        """How many jobs one step may decode."""
        return self._step.width

    @property
    def kept_bytes(self) -> int:
        """Bytes of the prefixes that are kept."""
        return self.prefixes.nbytes

    def _read(self, task: Task, match: Match, caches: list[Any]) -> Reading:
        """Read what is not known of a prompt, and keep what other prompts may begin with."""
        prepared = yield from self._prepare(task, match.length)
        keys = np.array(task.keys, dtype=np.int64)  # once: a long list takes a while
        positions = match.positions(len(task.keys), [task.instructions, *task.marks])
        logits = None
        for chunk in chunks(
            prepared.ids, self._prefill_step, inseparable(self.model), match.length
        ):
            logits = read_chunk(self.model, prepared, caches, chunk)
            for position in positions:
                if chunk.start < position <= chunk.stop:
                    is_system = position == task.instructions
                    self.prefixes.keep(keys, caches, position, task.salt, is_system)
            if logits is None:
                yield
        assert logits is not None  # the last chunk is the prompt's end
        return caches, logits

    def _prepare(self, task: Task, begin: int) -> Generator[None, None, Prepared]:
        """Prepare a prompt; where no medium is left to be read, its keys are its ids."""
        if task.prepare is None or not _has_media(task, begin):
            return Prepared(task.keys)
        for prepared in task.prepare(self.model):
            if prepared is not None:
                return prepared
            yield
        raise RequestError(
            "[prepare] needed a prepared prompt as its last item, got none. Yield one."
        )

    def _read_again(self, job: Job) -> Reading:
        """Read a prompt and the answer behind it, token by token as it was made."""
        match = self.prefixes.find(job.task.keys, job.task.salt)
        caches, logits = yield from self._read(job.task, match, match.restore())
        for token in job.answer[:-1]:
            yield
            logits = self.model(mx.array([[token]]), caches)[:, -1]
            mx.eval(logits)
        return caches, logits

    def _try_tokens(self, job: Job, found: Sequence[Chosen]) -> list[Token] | Exception:
        try:
            return [self._token(job, chosen) for chosen in found]
        except CheckpointError as problem:
            return problem

    def _token(self, job: Job, chosen: Chosen) -> Token:
        """Take a token of an answer and return it as plain values."""
        require_finite(self.model, chosen.token, chosen.scores)
        job.answer.append(chosen.token)
        scores = np.array(chosen.scores, copy=False)
        top = likeliest(scores, job.task.top_logprobs or 0)
        return Token(chosen.token, float(scores[chosen.token]), top)


def _has_media(task: Task, begin: int) -> bool:
    """Return whether a medium is left to be read from a position of a prompt on."""
    return min(task.keys[begin:]) < 0


def likeliest(scores: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
    """Return the likeliest tokens with their log probabilities, the likeliest first.

    Shapes: log probabilities [V].
    """
    if not count:
        return []
    count = min(count, len(scores))
    best = np.argpartition(scores, -count)[-count:]
    return [(int(token), float(scores[token])) for token in best[np.argsort(-scores[best])]]
