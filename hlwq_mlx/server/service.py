"""Answer requests: a prompt becomes tasks for the engine, and their tokens become events.

The engine's thread delivers updates; the event loop reads them here, whatever the dialect.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from operator import itemgetter

from starlette.concurrency import run_in_threadpool

from ..dialog.tokenizer import Tokenizer, token_bytes
from ..engine.constraint import Constraint
from ..engine.decoding import Decoding
from ..engine.feature_cache import FeatureCache
from ..engine.sampling import Sampling
from ..engine.task import Admitted, Finished, Task, Token, Update
from ..prompt import embedding_steps
from . import errors
from .answers import ChatReader, RawReader, Reader
from .engine import Engine, Ticket, explain
from .events import (
    Alternative,
    Begun,
    Content,
    Done,
    Event,
    Failed,
    Thought,
    TokenScore,
    Usage,
    Waiting,
    Whole,
    join,
)
from .mailbox import Bell, Mailbox
from .metrics import Metrics
from .prompts import Ready
from .request import ChatRequest

FIRST_WAIT_S, WAIT_S = 1.0, 10.0  # Claude Code warns after 20 seconds of silence

log = logging.getLogger(__name__)

Numbered = tuple[int, Event]


class Service:
    """Answers prepared prompts by the engine; `sampling` is what a request does not choose."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        sampling: Sampling,
        metrics: Metrics,
        features: FeatureCache,
        vocab_size: int,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.metrics = metrics
        self.features = features
        self.vocab_size = vocab_size
        self._bell: Bell | None = None

    def bell(self) -> Bell:
        """Return what wakes the running loop for all answers."""
        loop = asyncio.get_running_loop()
        if self._bell is None or self._bell.loop is not loop:
            self._bell = Bell(loop)
        return self._bell

    def submit(
        self,
        request: ChatRequest,
        ready: Ready,
        constraints: Sequence[Constraint | None] = (None,),
        salt: str = "",
    ) -> "Answers":
        """Give the engine a request, once for each answer that it asks for.

        Raises: BusyError when it takes no more; RequestError for options that cannot be followed.
        """
        answers = Answers(self, request, ready)
        for choice in range(request.count):
            task = Task(
                keys=ready.read.keys,
                prepare=partial(embedding_steps, read=ready.read, features=self.features),
                decoding=self._decoding(request, choice, constraints[choice % len(constraints)]),
                max_tokens=ready.max_tokens,
                stop_ids=self.tokenizer.eos_token_ids,
                top_logprobs=request.logprobs,
                salt=salt,
                instructions=ready.instructions,
                marks=ready.marks,
            )
            answers.ask(choice, task)
        return answers

    async def load(self, keep_alive_s: float | None) -> None:
        """Load the model if need be and keep it for so long; 0 drops it, negative is for ever.

        Raises: DeviceError when it cannot be loaded.
        """
        loads = self.engine.loads
        self.engine.keep_alive(keep_alive_s)
        if keep_alive_s != 0:
            await run_in_threadpool(self.engine.wait_until_loaded, None, loads)

    def _decoding(
        self, request: ChatRequest, choice: int, constraint: Constraint | None
    ) -> Decoding:
        decoding = Decoding(
            self.sampling.override(**request.sampling),
            repetition_penalty=request.penalties.repetition,
            presence_penalty=request.penalties.presence,
            frequency_penalty=request.penalties.frequency,
            logit_bias=request.logit_bias,
            seed=None if request.seed is None else request.seed + choice,
            constraint=constraint,
        )
        decoding.require_known(self.vocab_size)  # before the answer's head is sent
        return decoding

    def reader(self, request: ChatRequest, ready: Ready) -> Reader:
        """Return what reads an answer's tokens."""
        detokenizer = self.tokenizer.detokenizer
        if ready.is_raw:
            return RawReader(detokenizer, request.stop)
        return ChatReader(
            detokenizer,
            request.stop,
            in_thought=ready.in_thought,
            single_call=not request.parallel_calls,
        )

    def score(self, token: Token) -> TokenScore:
        """Return a token's score as a client reads it."""
        top = [Alternative(self._bytes(id), logprob) for id, logprob in token.top]
        return TokenScore(self._bytes(token.id), token.logprob, top)

    def _bytes(self, id: int) -> bytes:
        return token_bytes(self.tokenizer, id)


class Answers:
    """The answers to one request, while they come."""

    def __init__(self, service: Service, request: ChatRequest, ready: Ready) -> None:
        self._service = service
        self._request = request
        self._ready = ready
        bell = service.bell()
        self._loop = bell.loop
        self._updates: Mailbox[tuple[int, Update]] = Mailbox(bell)
        self._asked = time.monotonic()
        self._open: dict[int, _Answer] = {}
        self._begun: set[int] = set()  # whose first token was handed over
        # Where the text may end an answer, the engine must hear of it at once.
        self._is_patient = not request.stop and request.parallel_calls

    def ask(self, choice: int, task: Task) -> None:
        """Submit one task; if the engine refuses it, those before it are cancelled.

        Raises: as Engine.submit.
        """
        try:
            ticket = self._service.engine.submit(
                task, partial(self._deliver, choice), self._request.keep_alive_s
            )
        except BaseException:
            self.cancel()
            raise
        self._open[choice] = _Answer(self._service, self._request, self._ready, ticket, self._asked)

    def cancel(self) -> None:
        """End what is still open: nobody waits for it."""
        for answer in self._open.values():
            answer.ticket.cancel()
        self._open.clear()

    async def events(self) -> AsyncGenerator[Numbered]:
        """Yield the events of all answers, each with the number of its answer, as they come."""
        due = self._loop.time() + FIRST_WAIT_S
        try:
            while self._open:
                for choice, event in await self._next(due):
                    if not isinstance(event, Begun):  # some dialects say nothing of it
                        due = self._loop.time() + WAIT_S
                    yield choice, event
        finally:
            self.cancel()

    async def _next(self, due: float) -> list[Numbered]:
        """Return what the next updates tell, or a sign of life if none did until `due`.

        Many tokens of a long call tell nothing one by one.
        """
        found: list[Numbered] = []
        for choice, update in sorted(await self._updates.get(due), key=itemgetter(0)):
            for event in self._take(choice, update):
                _append(found, choice, event)
        return found if found or self._loop.time() < due else [(0, Waiting())]

    async def wholes(self) -> list[Whole]:
        """Return the answers when all are over.

        Raises: the error of the first that failed.
        """
        count = self._request.count
        found: list[list[Event]] = [[] for _ in range(count)]
        async for choice, event in self.events():
            if isinstance(event, Failed):
                raise event.problem
            found[choice].append(event)
        return [join(events) for events in found]

    def _deliver(self, choice: int, update: Update) -> None:
        """Hand an update over to the event loop, from the engine's thread."""
        can_wait = self._is_patient and isinstance(update, Token) and choice in self._begun
        if isinstance(update, Token):
            self._begun.add(choice)
        self._updates.put((choice, update), at_once=not can_wait)

    def _take(self, choice: int, update: Update) -> list[Event]:
        answer = self._open.get(choice)
        if answer is None:  # it is over; what the engine had under way does not count
            return []
        try:
            events = answer.take(update)
        except Exception as problem:
            log.exception("an answer could not be read")
            answer.ticket.cancel()
            explained = explain(problem)
            events = [Failed(explained, errors.status_of(explained))]
        if events and isinstance(events[-1], Done | Failed):
            del self._open[choice]
        return events


def _append(events: list[Numbered], choice: int, event: Event) -> None:
    """Add an event; text behind text of the same kind and answer is joined to it."""
    before, last = events[-1] if events else (None, None)
    if before != choice:
        last = None
    if isinstance(event, Content) and isinstance(last, Content):
        events[-1] = choice, Content(last.text + event.text, [*last.scores, *event.scores])
    elif isinstance(event, Thought) and isinstance(last, Thought):
        events[-1] = choice, Thought(last.text + event.text)
    else:
        events.append((choice, event))


class _Answer:
    """One answer: its reader, its ticket and what it took so far."""

    def __init__(
        self,
        service: Service,
        request: ChatRequest,
        ready: Ready,
        ticket: Ticket,
        asked: float,
    ) -> None:
        self.ticket = ticket
        self._service = service
        self._wants_scores = request.logprobs is not None
        self._reader = service.reader(request, ready)
        self._prompt = len(ready.read.ids)
        self._stop_ids = service.tokenizer.eos_token_ids
        self._cached = self._tokens = 0
        self._asked = asked
        self._first: float | None = None

    def take(self, update: Update) -> list[Event]:
        """Return the events of an update; the last one ends the answer or does not."""
        if isinstance(update, Admitted):
            self._cached = update.cached
            return [Begun(self._prompt, update.cached)]
        if isinstance(update, Token):
            return self._add(update)
        if isinstance(update, Finished):
            return [*self._reader.finish(), self._done(update.reason)]
        problem = update.problem
        return [Failed(problem, errors.status_of(problem))]

    def _add(self, token: Token) -> list[Event]:
        if self._first is None:
            self._first = time.monotonic()
            self._service.metrics.first_token(self._first - self._asked)
        self._tokens += 1
        if token.id in self._stop_ids:
            return []
        events = self._reader.add(
            token.id, self._service.score(token) if self._wants_scores else None
        )
        if self._reader.is_over:
            self.ticket.finish()
            events.append(self._done("stop"))
        return events

    def _done(self, ended: str) -> Done:
        now = time.monotonic()
        first = self._first or now
        usage = Usage(
            prompt=self._prompt,
            cached=self._cached,
            completion=self._tokens,
            reasoning=self._reader.reasoning_tokens,
            load_s=self.ticket.load_s,
            prompt_s=first - self._asked,
            answer_s=now - first,
        )
        self._service.metrics.ended(usage)
        reason = self._reader.reason("length" if ended == "length" else "stop")
        return Done(reason, usage, self._reader.stop)
