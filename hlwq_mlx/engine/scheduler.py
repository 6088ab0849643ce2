"""Decide what the engine does next; bookkeeping alone, without a model or an array.

One step admits tasks that there is room for, reads a piece of one prompt, or several short prompts
that are no longer together, and decodes one token of every answer. So a short prompt waits for one
piece of a long one at most, whatever the length.
A task that fails ends alone: where a step of several rows raises, nothing says whose fault it was,
so each is read again and then decodes alone until it has passed. Room is reserved for the next
tokens of an answer, not for all it may have; where answers outgrow the memory, the youngest waits
and is read again.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

from ..errors import HLWQError, RequestError
from .request import room_for_answer
from .task import Admitted, Deliver, Failed, Finished, Task, Token, Update

AHEAD = 512  # tokens of an answer for which there is room before they come
PATIENCE = 16  # tasks that may overtake one that waits for room

log = logging.getLogger(__name__)


class Job(Protocol):
    """A task that a worker has begun."""

    @property
    def cached(self) -> int:
        """How many tokens of the prompt were known."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether the prompt is read and its first token chosen, so that it can decode."""
        ...

    @property
    def share(self) -> float:
        """How much of a whole piece the next one is: less than 1 for a short prompt."""
        ...


J = TypeVar("J", bound=Job)


class Worker(Protocol[J]):
    """Does what the scheduler decides."""

    @property
    def width(self) -> int:
        """How many jobs one step may decode."""
        ...

    def begin(self, task: Task) -> J:
        """Begin a task, without work that takes long."""
        ...

    def advance(self, job: J) -> list[Token]:
        """Do one piece of a job that is not ready; return the tokens that it brought."""
        ...

    def step(self, jobs: Sequence[J]) -> list[list[Token] | Exception]:
        """Decode ready jobs; an exception among the results is that job's own.

        Raises: what may be any job's fault; then all of them have to be read again.
        """
        ...

    def again(self, job: J) -> None:
        """Drop what was read, because a step raised or for want of memory, and read it again."""
        ...

    def end(self, job: J) -> None:
        """Take notice that a job is over, or cancelled."""
        ...


@dataclass(frozen=True)
class Capacity:
    """How much fits: `context` tokens of one prompt and its answer, `nbytes` of all together.

    `bytes_of` says how much memory so many tokens take.
    """

    context: int
    nbytes: int
    bytes_of: Callable[[int], int]

    def admit(self, task: Task, deliver: Deliver) -> "Ticket":
        """Return the ticket of a task that can fit.

        Raises: ContextError for a prompt that leaves no room in the context; RequestError for a
        task that no memory is enough for.
        """
        limit = room_for_answer(len(task.keys), task.max_tokens, self.context)
        nbytes = self.bytes_of(len(task.keys) + limit)
        if nbytes > self.nbytes:
            raise RequestError(
                f"[max_tokens] needed a prompt and an answer within {self.nbytes:,} bytes, got "
                f"{len(task.keys)} and {limit} tokens, which take {nbytes:,}. Ask for fewer."
            )
        # The limit is the task's own from here on: drafts stay within the context too.
        return Ticket(replace(task, max_tokens=limit), deliver, limit, self.bytes_of)


@dataclass(eq=False)
class Ticket:
    """A task's place in the scheduler; any thread may cancel it.

    After `cancel`, nothing is delivered but what is under way. `load_s` is how long the task
    waited for the model to be loaded.
    """

    task: Task
    deliver: Deliver
    limit: int
    bytes_of: Callable[[int], int]
    load_s: float = 0.0
    asked: float = field(default_factory=time.monotonic)
    is_cancelled: bool = False
    is_whole: bool = False
    job: Any = None
    count: int = 0
    overtaken: int = 0
    is_alone: bool = False
    reserved: int = field(init=False)
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.reserve()

    def reserve(self) -> None:
        """Ask for room for the next tokens; few answers become as long as they may."""
        self.reserved = min(self.limit, self.count + AHEAD)
        self.nbytes = self.bytes_of(len(self.task.keys) + self.reserved)

    def cancel(self) -> None:
        """End the task within one piece of a prompt or one token."""
        self.is_cancelled = True

    def finish(self) -> None:
        """End the task likewise, because its answer is whole, as one is at a stop string."""
        self.is_whole = True
        self.cancel()


def explain_briefly(problem: Exception) -> HLWQError:
    """Return an error of ours for any exception."""
    if isinstance(problem, HLWQError):
        return problem
    explained = HLWQError(
        f"[engine] needed no defect, got {type(problem).__name__}: {problem}. Report this line, "
        "please."
    )
    explained.__cause__ = problem
    return explained


@dataclass
class Tally:
    """Counts what a scheduler did; `first_token_s` is of the last answer that began.

    `passes` of the model brought the `tokens` of answers, each counted for every answer in it.
    """

    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_hits: int = 0
    tokens: int = 0
    passes: int = 0
    first_token_s: float | None = None


class Scheduler:
    """Shares a worker among tasks, `nbytes` of them at once; one thread uses it.

    `explain` makes an error of ours of any exception. A ticket is always in one of the three
    places, so that none is lost if an exception escapes.
    """

    def __init__(
        self,
        nbytes: int,
        explain: Callable[[Exception], HLWQError] = explain_briefly,
    ) -> None:
        self.tally = Tally()
        self.waiting: list[Ticket] = []
        self.reading: deque[Ticket] = deque()
        self.running: list[Ticket] = []
        self._nbytes = nbytes
        self._explain = explain

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.reading or self.running)

    def add(self, ticket: Ticket) -> None:
        """Let a ticket wait for its turn."""
        self.waiting.append(ticket)

    def step(self, worker: Worker[Any]) -> None:
        """Do the next piece of work for everyone."""
        for ticket in [*self.waiting, *self.reading, *self.running]:
            if ticket.is_cancelled:
                self.tally.finished += ticket.is_whole
                self.tally.cancelled += not ticket.is_whole
                self._end(worker, self._take_out(ticket))
        self._make_room(worker)
        self._admit(worker)
        self._read(worker)
        for group in list(self._groups(worker.width)):
            self._decode(worker, group)

    def fail_begun(self, problem: Exception) -> None:
        """End all tasks that were begun, because their worker is lost; others go on waiting."""
        for ticket in [*self.reading, *self.running]:
            self._fail(ticket, problem)

    def fail_all(self, problem: Exception) -> None:
        """End all tasks."""
        self.fail_begun(problem)
        for ticket in list(self.waiting):
            self._fail(ticket, problem)

    def _admit(self, worker: Worker[Any]) -> None:
        """Begin what there is room for: in order, but past what has to wait, so many times."""
        for ticket in list(self.waiting):
            taken = sum(each.nbytes for each in [*self.reading, *self.running])
            if taken + ticket.nbytes <= self._nbytes:
                at = self.waiting.index(ticket)
                for earlier in self.waiting[:at]:
                    earlier.overtaken += 1
                self.reading.append(self.waiting.pop(at))
                self._begin(worker, ticket)
            elif ticket.overtaken >= PATIENCE:
                return

    def _read(self, worker: Worker[Any]) -> None:
        """Read the next pieces of prompts, in turn, which together are one piece at most."""
        room = 1.0
        for _ in range(len(self.reading)):
            share = self.reading[0].job.share
            if share > room:
                return
            room -= share
            self.reading.rotate(-1)
            self._prepare(worker, self.reading[-1])

    def _make_room(self, worker: Worker[Any]) -> None:
        """Where answers outgrow the memory, let the youngest wait; it is read again later."""
        begun = sorted([*self.reading, *self.running], key=lambda ticket: ticket.asked)
        while len(begun) > 1 and sum(ticket.nbytes for ticket in begun) > self._nbytes:
            ticket = begun.pop()
            (self.running if ticket in self.running else self.reading).remove(ticket)
            self.waiting.insert(0, ticket)
            worker.again(ticket.job)

    def _begin(self, worker: Worker[Any], ticket: Ticket) -> None:
        if ticket.job is not None:  # it was begun before
            return
        try:
            ticket.job = worker.begin(ticket.task)
        except Exception as problem:  # noqa: BLE001 - it ends this task alone
            self._fail(ticket, problem)
            return
        cached = ticket.job.cached
        self.tally.prompt_tokens += len(ticket.task.keys)
        self.tally.cached_tokens += cached
        self.tally.cache_hits += cached > 0
        self._deliver(ticket, Admitted(cached))

    def _prepare(self, worker: Worker[Any], ticket: Ticket) -> None:
        try:
            tokens = worker.advance(ticket.job)
        except Exception as problem:  # noqa: BLE001 - it ends this task alone
            self._fail(ticket, problem)
            return
        if ticket.job.is_ready:
            self.reading.remove(ticket)
            self.running.append(ticket)
        self._tell(worker, ticket, tokens)

    def _groups(self, width: int) -> Iterator[list[Ticket]]:
        """Yield the running tasks that decode together."""
        yield from ([ticket] for ticket in self.running if ticket.is_alone)
        together = [ticket for ticket in self.running if not ticket.is_alone]
        for start in range(0, len(together), width):
            yield together[start : start + width]

    def _decode(self, worker: Worker[Any], group: Sequence[Ticket]) -> None:
        try:
            outcomes = worker.step([ticket.job for ticket in group])
        except Exception as problem:  # noqa: BLE001 - whose fault it was is found out
            self._part(worker, group, problem)
            return
        for ticket, outcome in zip(group, outcomes, strict=True):
            ticket.is_alone = False
            if isinstance(outcome, Exception):
                self._fail(ticket, outcome)
            else:
                self._tell(worker, ticket, outcome)

    def _part(self, worker: Worker[Any], group: Sequence[Ticket], problem: Exception) -> None:
        """Let each of a group whose step raised be read again and then decode alone."""
        if len(group) == 1:
            self._fail(group[0], problem)
            return
        log.warning("a step of %d answers failed, they are read again: %s", len(group), problem)
        for ticket in group:
            ticket.is_alone = True
            self.running.remove(ticket)
            self.reading.append(ticket)
            worker.again(ticket.job)

    def _tell(self, worker: Worker[Any], ticket: Ticket, tokens: Sequence[Token]) -> None:
        """Deliver tokens up to the end of the answer, which one pass brought."""
        self.tally.passes += bool(tokens)
        for token in tokens:
            ticket.count += 1
            if ticket.count == ticket.reserved:
                ticket.reserve()
            self.tally.tokens += 1
            if ticket.count == 1:
                self.tally.first_token_s = time.monotonic() - ticket.asked
            self._deliver(ticket, token)
            reason = _reason(ticket, token)
            if reason is not None:
                self.tally.finished += 1
                job = self._take_out(ticket)
                self._deliver(ticket, Finished(reason))
                self._end(worker, job)
                return

    def _end(self, worker: Worker[Any], job: Any) -> None:
        if job is None:
            return
        try:
            worker.end(job)
        except Exception:
            log.exception("what was read could not be kept")

    def _fail(self, ticket: Ticket, problem: Exception) -> None:
        if not isinstance(problem, HLWQError):
            log.error("an answer failed", exc_info=problem)
        self.tally.failed += 1
        self._take_out(ticket)
        self._deliver(ticket, Failed(self._explain(problem)))

    def _take_out(self, ticket: Ticket) -> Any:
        """Remove a ticket and return its job, which its holder shall not keep: caches are large."""
        for place in (self.waiting, self.reading, self.running):
            if ticket in place:
                place.remove(ticket)
        job, ticket.job = ticket.job, None
        return job

    def _deliver(self, ticket: Ticket, update: Update) -> None:
        if ticket.is_cancelled:
            return
        try:
            ticket.deliver(update)
        except Exception:
            log.exception("nobody takes an answer")
            ticket.cancel()


def _reason(ticket: Ticket, token: Token) -> Literal["stop", "length"] | None:
    """Return why an answer is over behind a token, None if it is not."""
    if token.id in ticket.task.stop_ids:
        return "stop"
    return "length" if ticket.count == ticket.limit else None
