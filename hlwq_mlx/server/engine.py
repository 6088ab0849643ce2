"""The engine's thread: it alone owns MLX, and loads, reads, decodes, keeps prefixes and unloads.

Other threads submit tasks and get plain values back. What escapes the scheduler ends the tasks that
were begun; then the model is loaded again, and what waited goes on. The thread sleeps while there
is nothing to do.
"""

import gc
import logging
import math
import threading
import time
import traceback
from collections.abc import Callable
from enum import Enum
from functools import partial

import mlx.core as mx

from ..cli.boundary import as_error
from ..engine.answer import wired
from ..engine.scheduler import Capacity, Scheduler
from ..engine.scheduler import Ticket as Ticket
from ..engine.task import Deliver, Task
from ..engine.worker import Worker
from ..errors import BusyError, DeviceError, HLWQError

QUEUE = 256  # tasks that may wait
RETRY_S = 10.0  # after a model could not be loaded
GRACE_S = 5.0  # for a piece of work to end
MOST_PATIENCE_S = 60
FOR_EVER_S = 365 * 24 * 60 * 60.0  # no clock waits for all numbers of seconds

log = logging.getLogger(__name__)


class State(Enum):
    """What an engine does; UNLOADED, it loads its model for the next task."""

    LOADING = "loading"
    READY = "ready"
    UNLOADED = "unloaded"
    DOWN = "down"


class Engine:
    """Answers tasks in a thread of its own; every method may be called from any thread.

    `load` makes the worker, in that thread. At most `queue` tasks wait. After `idle_s` without one
    the model is dropped and `on_unload` called, and the next task loads it again; None keeps it.
    """

    def __init__(
        self,
        load: Callable[[], Worker],
        capacity: Capacity,
        *,
        queue: int = QUEUE,
        idle_s: float | None = None,
        on_unload: Callable[[], None] = lambda: None,
        retry_s: float = RETRY_S,
    ) -> None:
        self.state = State.LOADING
        self.loads = 0
        self.load_s = self.busy_s = 0.0
        # Of the first task after the start and after an idle time; it waits for the model, too.
        self.first_token_s = {"start": 0.0, "idle": 0.0}
        self._make_worker = load
        self._capacity = capacity
        self._queue = queue
        self._idle_s = self._keep_s = _bounded(idle_s)
        self._on_unload = on_unload
        self._retry_s = retry_s
        self._changed = threading.Condition()  # guards what follows
        self._inbox: list[Ticket] = []
        self._is_wanted = True  # the model, even without a task
        self._deadline: float | None = None  # of what is under way when the engine closes
        self._problem: HLWQError | None = None  # why the model could not be loaded
        # The engine's thread alone uses what follows.
        self._scheduler = Scheduler(capacity.nbytes, explain)
        self._worker: Worker | None = None
        self._since = time.monotonic()  # when it became idle, or could not load
        self._kept_bytes = 0
        self._first_after: str | None = "start"
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def wait_until_loaded(self, timeout_s: float | None = None, loads: int | None = None) -> None:
        """Wait until the model is loaded, as it is at the start, by a task and by `keep_alive`.

        With `loads`, how often it was before, a model that was loaded and dropped since counts.
        Raises: the error that prevents it; DeviceError when it takes longer or the engine closes.
        """
        before = self.loads if loads is None else loads
        with self._changed:
            is_there = self._changed.wait_for(
                lambda: (
                    self.state is State.READY
                    or self.loads > before
                    or self._problem
                    or self._deadline
                ),
                timeout_s,
            )
            if self._problem is not None:
                raise self._problem
            if not is_there:
                raise DeviceError(
                    f"[engine] needed the model within {timeout_s} s, got none yet. Wait longer."
                )
            self._require_open()

    def submit(self, task: Task, deliver: Deliver, keep_alive_s: float | None = None) -> Ticket:
        """Let a task wait for its turn; `deliver` gets its updates, in the engine's thread.

        `keep_alive_s` is how long the model stays after it, negative for ever; by default, as long
        as the engine was told.
        Raises: ContextError, RequestError for a task that cannot fit; BusyError when too many wait;
        DeviceError when the engine is down or closing.
        """
        ticket = self._capacity.admit(task, deliver)
        with self._changed:
            self._require_open()
            waiting = len(self._inbox) + len(self._scheduler.waiting)
            if waiting >= self._queue:
                raise BusyError(
                    f"[server] needed room for a request, got {waiting} that wait already. Ask "
                    "again in a moment.",
                    self._patience_s(),
                )
            self._keep(keep_alive_s)
            self._inbox.append(ticket)
            self._changed.notify_all()
        return ticket

    def keep_alive(self, keep_alive_s: float | None = None) -> None:
        """Load the model if need be and keep it so long, as `submit` does; 0 drops it when idle.

        Raises: DeviceError when the engine is down or closing.
        """
        with self._changed:
            self._require_open()
            self._keep(keep_alive_s)
            self._is_wanted |= keep_alive_s != 0  # who asked for it before is waiting
            self._since = time.monotonic()
            self._changed.notify_all()

    def close(self, drain_s: float = 0.0) -> bool:
        """Refuse new tasks, finish what is under way within `drain_s`, end the rest and the thread.

        Returns whether the thread has ended; loading cannot be interrupted.
        """
        with self._changed:
            self._deadline = time.monotonic() + drain_s
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(drain_s + GRACE_S)
        return not self._thread.is_alive()

    @property
    def expires(self) -> float:
        """When an engine that stays idle drops its model, in Unix seconds; infinite is never."""
        due_s = None if self.state is not State.READY else self._due_s()
        return math.inf if due_s is None else time.time() + due_s

    def numbers(self) -> dict[str, float]:
        """Return what was counted, by name."""
        scheduler, tally = self._scheduler, self._scheduler.tally
        return {
            "up": float(self.state is State.READY),
            "loads": self.loads,
            "load_seconds": self.load_s,
            "first_token_after_start_seconds": self.first_token_s["start"],
            "first_token_after_idle_seconds": self.first_token_s["idle"],
            "queue": len(self._inbox) + len(scheduler.waiting),
            "reading": len(scheduler.reading),
            "rows": len(scheduler.running),
            "answers_finished": tally.finished,
            "answers_failed": tally.failed,
            "answers_cancelled": tally.cancelled,
            "engine_prompt_tokens": tally.prompt_tokens,
            "engine_cached_tokens": tally.cached_tokens,
            "engine_tokens": tally.tokens,
            "engine_passes": tally.passes,
            "prefix_cache_hits": tally.cache_hits,
            "prefix_cache_bytes": self._kept_bytes,
            "active_memory_bytes": mx.get_active_memory(),
            "cache_memory_bytes": mx.get_cache_memory(),
        }

    def _require_open(self) -> None:
        if self._deadline is not None:
            raise DeviceError(
                "[server] needed to go on, got the order to end. Ask again when it is back."
            )
        if self._problem is not None:
            raise _without_model(self._problem)

    def _keep(self, keep_alive_s: float | None) -> None:
        self._keep_s = self._idle_s if keep_alive_s is None else _bounded(keep_alive_s)

    def _patience_s(self) -> int:
        """Return when an answer will have ended, by how often one did so far."""
        mean_s = self.busy_s / max(1, self._scheduler.tally.finished)
        return min(MOST_PATIENCE_S, max(1, math.ceil(mean_s)))

    def _become(self, state: State, problem: HLWQError | None = None) -> None:
        with self._changed:
            self.state, self._problem = state, problem
            self._changed.notify_all()

    def _run(self) -> None:
        with wired():
            while not self._is_over():
                problem = _escaping(self._turn)
                if problem is not None:
                    _escaping(partial(self._recover, problem))
            self._scheduler.fail_all(
                DeviceError("[server] needed time to answer, got the order to end. Ask again.")
            )
            _escaping(self._drop)
            self._become(State.DOWN)
        mx.clear_streams()  # or MLX would abort when the process ends

    def _is_over(self) -> bool:
        if self._deadline is None:
            return False
        self._take_inbox()
        return self._scheduler.is_idle or time.monotonic() > self._deadline

    def _recover(self, problem: Exception) -> None:
        """End what was begun, and all that waits if nothing was; then load the model again."""
        self._become(State.DOWN)
        has_begun = self._scheduler.reading or self._scheduler.running
        fail = self._scheduler.fail_begun if has_begun else self._scheduler.fail_all
        fail(problem)
        self._is_wanted = True
        self._drop()

    def _sleep(self) -> None:
        """Wait until there is something to do."""
        with self._changed:
            while not self._is_called() and (due_s := self._due_s()) != 0:
                self._changed.wait(due_s)  # how long the model stays may change meanwhile

    def _is_called(self) -> bool:
        is_asked = bool(self._inbox) or self._is_wanted or not self._scheduler.is_idle
        return is_asked or self._deadline is not None

    def _due_s(self) -> float | None:
        """Return when an engine that nobody calls has something to do: never, if None."""
        if self._problem is not None:
            patience_s = self._retry_s
        elif self._worker is None or self._keep_s is None:
            return None
        else:
            patience_s = self._keep_s
        return max(0.0, self._since + patience_s - time.monotonic())

    def _turn(self) -> None:
        """Wait for work, and do a piece of it."""
        self._sleep()
        is_wanted = self._take_inbox()
        if self._worker is None:
            if is_wanted or self._problem is not None:
                self._load()
        elif not self._scheduler.is_idle:
            self._step(self._worker)
        elif self._due_s() == 0:
            self._first_after = "idle"
            self._drop()
            self._become(State.UNLOADED)

    def _take_inbox(self) -> bool:
        """Hand new tasks over to the scheduler; return whether the model is needed."""
        with self._changed:
            for ticket in self._inbox:
                self._scheduler.add(ticket)
            self._inbox.clear()
            is_wanted, self._is_wanted = self._is_wanted, False
        return is_wanted or not self._scheduler.is_idle

    def _load(self) -> None:
        self._become(State.LOADING)
        begun = time.monotonic()
        try:
            self._worker = self._make_worker()
        except Exception as problem:  # noqa: BLE001 - whoever waits is told, and it is tried again
            if self.loads:
                log.warning("the model could not be loaded again: %s", problem)
            traceback.clear_frames(problem.__traceback__)  # they hold what was loaded
            self._since = time.monotonic()
            self._become(State.DOWN, as_error(problem))
            self._scheduler.fail_all(_without_model(problem))
            return
        self._since = time.monotonic()
        self.load_s = self._since - begun
        self.loads += 1
        self._scheduler.tally.first_token_s = None
        for ticket in self._scheduler.waiting:
            ticket.load_s = self._since - max(begun, ticket.asked)
        self._become(State.READY)

    def _step(self, worker: Worker) -> None:
        begun = time.monotonic()
        self._scheduler.step(worker)
        if self._scheduler.is_idle:
            _escaping(worker.rest)  # a full disk is no reason to begin anew
            self._kept_bytes = worker.kept_bytes
        self._since = time.monotonic()
        self.busy_s += self._since - begun
        first_s = self._scheduler.tally.first_token_s
        if first_s is not None and self._first_after is not None:
            self.first_token_s[self._first_after] = first_s
            self._first_after = None

    def _drop(self) -> None:
        """Drop the model and all that was made with it, and give the memory back."""
        worker, self._worker = self._worker, None
        if worker is not None:
            _escaping(worker.close)
        del worker
        self._kept_bytes = 0
        gc.collect()
        mx.clear_cache()
        self._on_unload()


def _bounded(keep_s: float | None) -> float | None:
    """Return how long an idle model stays; None is for ever, as negative and endless times are."""
    return keep_s if keep_s is not None and 0 <= keep_s < FOR_EVER_S else None


def explain(problem: Exception) -> HLWQError:
    """Return an error of ours for what ended a task; a fault of this machine is no client's."""
    explained = as_error(problem)
    if isinstance(problem, HLWQError) or isinstance(explained, DeviceError):
        return explained
    return HLWQError(str(explained))


def _escaping(work: Callable[[], None]) -> Exception | None:
    """Do a piece of work and return the exception that escapes it."""
    try:
        work()
    except Exception as problem:
        log.exception("a defect in the engine")
        traceback.clear_frames(problem.__traceback__)  # they hold the model
        return problem
    return None


def _without_model(problem: Exception) -> DeviceError:
    return DeviceError(
        f"[engine] needed its model, which could not be loaded: {problem} It is tried again soon."
    )
