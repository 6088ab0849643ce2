"""The engine's thread, with a worker that reads nothing: order, faults, idle times, the end."""

import threading
import time
from dataclasses import dataclass, field

import pytest

from hlwq_mlx.engine.scheduler import Capacity
from hlwq_mlx.engine.task import Admitted, Failed, Finished, Task, Token
from hlwq_mlx.errors import (
    BusyError,
    CheckpointError,
    ContextError,
    DeviceError,
    RequestError,
)
from hlwq_mlx.server.engine import Engine, State
from hlwq_mlx.server.errors import status_of

ROOM = Capacity(1000, 10**6, lambda tokens: tokens)
WAIT_S = 60  # for what takes milliseconds, on a machine that does other things too


@dataclass
class Job:
    task: Task
    cached: int = 0
    is_ready: bool = False
    share: float = 1.0


@dataclass
class Worker:
    """Answers with tokens 1, 2, 3 ...; a gate holds it up, and a fault escapes the scheduler."""

    gate: threading.Event = field(default_factory=threading.Event)
    faults: list = field(default_factory=list)
    width: int = 8
    steps: int = 0
    rests: int = 0
    kept_bytes: int = 5

    def begin(self, task):
        return Job(task)

    def advance(self, job):
        assert self.gate.wait(WAIT_S)
        job.is_ready = True
        return [Token(1, 0.0)]

    def step(self, jobs):
        self.steps += 1
        if self.faults:
            raise self.faults.pop()
        assert self.gate.wait(WAIT_S)
        return [[Token(2, 0.0)] for _ in jobs]

    def again(self, job):
        raise AssertionError("nothing is read again")

    def end(self, job):
        pass

    def rest(self):
        self.rests += 1

    def close(self):
        raise OSError(28, "No space left on device")


class Told(list):
    """What a task was told; others can wait for its end."""

    def __init__(self):
        super().__init__()
        self.over = threading.Event()

    def __call__(self, update):
        self.append(update)
        if isinstance(update, Finished | Failed):
            self.over.set()

    def wait(self):
        assert self.over.wait(WAIT_S)
        return self[-1]


class Bench:
    def __init__(self, loads=None, capacity=ROOM, **options):
        self.worker = Worker()
        self.worker.gate.set()
        self.loads = loads or (lambda: self.worker)
        self.threads = set()
        self.unloads = 0
        self.engine = Engine(self._load, capacity, on_unload=self._unload, **options)

    def _load(self):
        self.threads.add(threading.current_thread().name)
        return self.loads()

    def _unload(self):
        self.unloads += 1

    def ask(self, max_tokens=3, **options):
        told = Told()
        told.ticket = self.engine.submit(Task([1, 2], max_tokens=max_tokens), told, **options)
        return told

    def slow_down(self):
        """Let a step last, so that an answer is still under way when a test looks."""
        step = self.worker.step
        self.worker.step = lambda jobs: time.sleep(0.01) or step(jobs)

    def until(self, condition):
        """Wait for what no event tells."""
        end = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.002)


@pytest.fixture
def make():
    benches = []

    def make(*arguments, **options):
        benches.append(Bench(*arguments, **options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.worker.gate.set()
        bench.until(bench.engine.close)


def test_an_answer_from_another_thread(make):
    bench = make()
    told = bench.ask()
    assert told.wait() == Finished("length")
    assert [update.id for update in told[1:-1]] == [1, 2, 2]
    assert bench.threads == {"engine"}
    assert bench.engine.state is State.READY
    numbers = bench.engine.numbers()
    assert numbers["first_token_after_start_seconds"] > 0
    bench.until(lambda: bench.engine.numbers()["prefix_cache_bytes"] == 5)
    assert bench.worker.rests == 1


def test_a_task_that_cannot_fit_is_refused_at_once(make):
    with pytest.raises(ContextError):
        make().engine.submit(Task([1] * 1000), print)


def test_too_many_are_told_when_to_ask_again(make):
    bench = make(queue=2)
    bench.worker.gate.clear()
    first = bench.ask()
    bench.until(lambda: first)
    others = [bench.ask(), bench.ask()]
    with pytest.raises(BusyError, match=r"^\[server\] needed room .* got 2 that wait") as caught:
        bench.ask()
    assert 1 <= caught.value.retry_after_s <= 60
    bench.worker.gate.set()
    assert [told.wait() for told in [first, *others]] == [Finished("length")] * 3
    assert bench.ask().wait() == Finished("length")


def test_a_cancelled_task_is_told_no_more(make):
    bench = make()
    bench.slow_down()
    told = bench.ask(max_tokens=-1)
    bench.until(lambda: len(told) > 3)
    told.ticket.cancel()
    bench.until(lambda: bench.engine.numbers()["answers_cancelled"] == 1)
    count = len(told)
    bench.ask().wait()
    assert len(told) == count
    assert bench.engine.numbers()["rows"] == 0


def test_what_escapes_the_scheduler_ends_what_was_begun_and_the_engine_comes_back(make):
    """A defect of the scheduler itself is stood for by a token that is none."""
    workers, states = [], []

    def load():
        states.append(bench.engine.state if workers else State.LOADING)
        workers.append(Worker())
        workers[-1].gate.set()
        return workers[-1]

    bench = make(load, capacity=Capacity(1000, 5, lambda tokens: tokens))  # one after the other
    assert bench.ask().wait() == Finished("length")
    workers[0].gate.clear()
    workers[0].step = lambda jobs: [[None] for _ in jobs]
    first, second = bench.ask(), bench.ask()
    workers[0].gate.set()
    assert "needed no defect, got AttributeError" in str(first.wait().problem)
    assert second.wait() == Finished("length")
    assert [update.id for update in second[1:-1]] == [1, 2, 2]
    assert len(workers) == bench.engine.numbers()["loads"] == 2
    assert states == [State.LOADING] * 2
    assert bench.engine.state is State.READY
    assert bench.threads == {"engine"}
    assert bench.unloads == 1


def test_a_defect_that_meets_every_task_ends_them_all(make):
    """Where nothing was begun, whoever waits would meet it again and again."""
    bench = make()
    assert bench.ask().wait() == Finished("length")
    admit = bench.engine._scheduler._admit
    bench.engine._scheduler._admit = lambda worker: 1 / 0
    assert "needed no defect, got ZeroDivisionError" in str(bench.ask().wait().problem)
    bench.engine._scheduler._admit = admit
    assert bench.ask().wait() == Finished("length")


def test_a_fault_in_a_request_does_not_reload(make):
    bench = make()
    bench.worker.faults.append(RuntimeError("step"))
    assert "step" in str(bench.ask().wait().problem)
    assert bench.ask().wait() == Finished("length")
    assert bench.engine.numbers()["loads"] == 1


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (OSError(5, "Input/output error", "rows.bin"), 500),
        (RecursionError("too deep"), 500),
        (KeyError("x"), 500),
        (RuntimeError("[malloc] Unable to allocate 5 bytes."), 503),
        (RequestError("[logit_bias] needed less, got more. Ask again."), 400),
    ],
)
def test_only_a_fault_of_the_request_is_the_clients(make, fault, status):
    bench = make()
    bench.worker.faults.append(fault)
    assert status_of(bench.ask().wait().problem) == status


def test_a_disk_that_is_full_does_not_reload(make):
    bench = make()
    full = OSError(28, "No space left on device")
    bench.worker.rest = lambda: (_ for _ in ()).throw(full)
    assert [bench.ask().wait() for _ in range(3)] == [Finished("length")] * 3
    assert bench.engine.numbers()["loads"] == 1


def test_a_model_that_does_not_load_is_said_and_tried_again(make):
    broken = [CheckpointError("[a.weight] needed in the folder, got none. Convert again.")] * 2
    worker = Worker()
    worker.gate.set()

    def load():
        if broken:
            raise broken.pop()
        return worker

    bench = make(load, retry_s=WAIT_S)
    with pytest.raises(CheckpointError, match=r"^\[a\.weight\] needed"):
        bench.engine.wait_until_loaded(WAIT_S)
    assert bench.engine.state is State.DOWN
    with pytest.raises(DeviceError, match=r"^\[engine\] needed its model, .*\[a\.weight\] needed"):
        bench.ask()
    bench.engine._retry_s = 0.0
    with bench.engine._changed:
        bench.engine._changed.notify_all()
    bench.until(lambda: bench.engine.state is State.READY)
    assert bench.ask().wait() == Finished("length")


def test_who_waits_for_the_first_load_is_told_why_it_failed(make):
    may_load = threading.Event()

    def load():
        assert may_load.wait(WAIT_S)
        raise OSError("the disk is gone")

    bench = make(load)
    told = bench.ask()
    assert bench.engine.state is State.LOADING
    may_load.set()
    assert "the disk is gone" in str(told.wait().problem)
    assert isinstance(told[-1].problem, DeviceError)


def test_an_idle_engine_drops_its_model_and_loads_it_for_the_next_task(make):
    bench = make(idle_s=0.05)
    assert bench.ask().wait() == Finished("length")
    bench.until(lambda: bench.engine.state is State.UNLOADED)
    assert bench.unloads == 1
    told = bench.ask()
    assert told.wait() == Finished("length")
    assert told.ticket.load_s >= 0
    assert bench.engine.numbers()["first_token_after_idle_seconds"] > 0
    bench.until(lambda: bench.unloads == 2)


def test_each_task_may_say_how_long_the_model_stays(make):
    bench = make(idle_s=None)
    assert bench.ask().wait() == Finished("length")
    assert bench.engine.expires == float("inf")
    assert bench.ask(keep_alive_s=1000).wait() == Finished("length")
    assert 900 < bench.engine.expires - time.time() <= 1000
    assert bench.ask(keep_alive_s=0).wait() == Finished("length")
    bench.until(lambda: bench.engine.state is State.UNLOADED)
    bench.engine.keep_alive(-1)
    bench.engine.wait_until_loaded(WAIT_S)
    assert bench.engine.expires == float("inf")
    bench.engine.keep_alive(0)
    bench.until(lambda: bench.engine.state is State.UNLOADED)
    assert bench.engine.numbers()["loads"] == 2


@pytest.mark.parametrize("keep_alive_s", [-1, float("inf"), 1e300, 10**400])
def test_a_model_that_stays_for_ever_is_loaded_once(make, keep_alive_s):
    bench = make(idle_s=keep_alive_s)
    assert bench.ask(keep_alive_s=keep_alive_s).wait() == Finished("length")
    bench.until(lambda: bench.worker.rests)
    assert bench.ask(keep_alive_s=keep_alive_s).wait() == Finished("length")
    assert bench.engine.expires == float("inf")
    assert (bench.engine.loads, bench.unloads) == (1, 0)


def test_who_waits_for_a_model_is_not_forgotten_when_another_drops_it(make):
    bench = make(idle_s=None)
    engine = bench.engine
    engine.wait_until_loaded(WAIT_S)
    engine.keep_alive(0)
    bench.until(lambda: engine.state is State.UNLOADED)
    loads = engine.loads
    with engine._changed:  # so that the engine sees both at once
        engine.keep_alive(-1)
        engine.keep_alive(0)
    engine.wait_until_loaded(1, loads)
    bench.until(lambda: engine.state is State.UNLOADED)
    assert engine.loads == loads + 1


def test_who_waits_for_a_model_is_told_when_the_engine_ends(make):
    may_load = threading.Event()
    bench = make(lambda: may_load.wait(WAIT_S) and bench.worker)
    threading.Timer(0.05, lambda: bench.engine.close()).start()
    with pytest.raises(DeviceError, match="the order to end"):
        bench.engine.wait_until_loaded(WAIT_S)
    may_load.set()


def test_an_idle_engine_sleeps(make, monkeypatch):
    turns = []
    turn = Engine._turn
    monkeypatch.setattr(Engine, "_turn", lambda engine: turns.append(1) or turn(engine))
    bench = make(idle_s=1000)
    assert bench.ask().wait() == Finished("length")
    bench.until(lambda: bench.worker.rests)
    before = len(turns)
    time.sleep(0.3)
    assert len(turns) - before <= 1  # the one that sleeps may have begun meanwhile


def test_the_end_waits_for_what_is_under_way_and_refuses_the_rest(make):
    bench = make()
    bench.worker.gate.clear()
    running, waiting = bench.ask(), bench.ask()
    bench.until(lambda: running)
    closing = threading.Thread(target=bench.engine.close, args=(WAIT_S,))
    closing.start()
    bench.until(lambda: bench.engine._deadline is not None)
    with pytest.raises(DeviceError, match=r"^\[server\] needed to go on"):
        bench.ask()
    bench.worker.gate.set()
    closing.join(WAIT_S)
    assert [told[-1] for told in (running, waiting)] == [Finished("length")] * 2
    assert bench.engine.state is State.DOWN
    assert not bench.engine._thread.is_alive()


def test_the_end_does_not_wait_for_ever(make):
    bench = make()
    bench.slow_down()
    told = bench.ask(max_tokens=-1)
    bench.until(lambda: len(told) > 2)
    assert bench.engine.close(0.0)
    assert "[server] needed time to answer" in str(told[-1].problem)


def test_a_thread_that_has_not_begun_can_be_ended(make):
    bench = make()
    assert bench.engine.close()
    with pytest.raises(DeviceError):
        bench.engine.keep_alive()


def test_admitted_comes_first(make):
    told = make().ask()
    told.wait()
    assert told[0] == Admitted(0)
