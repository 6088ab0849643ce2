"""The scheduler's order, without a model: a worker that counts pieces instead of reading them."""

import random
from dataclasses import dataclass, field

import pytest

from hlwq_mlx.engine.scheduler import PATIENCE, Capacity, Scheduler
from hlwq_mlx.engine.task import Admitted, Failed, Finished, Task, Token
from hlwq_mlx.errors import ContextError, RequestError

CHUNK = 10
CONTEXT = 1000
STOP = 7


@dataclass
class Job:
    task: Task
    pieces: int
    cached: int = 0
    tokens: int = 0
    is_ready: bool = False
    share: float = 1.0


@dataclass
class Worker:
    """Reads prompts in chunks; token 5 in a prompt breaks every step that its row is part of."""

    width: int = 8
    short: float = 1.0  # the share of prompts shorter than a chunk
    log: list = field(default_factory=list)
    widths: list = field(default_factory=list)
    ended: list = field(default_factory=list)

    def begin(self, task):
        if 4 in task.keys:
            raise ZeroDivisionError("begin")
        share = self.short if len(task.keys) < CHUNK else 1.0
        return Job(task, -(-len(task.keys) // CHUNK), cached=task.keys.count(9), share=share)

    def advance(self, job):
        self.log.append(job.task.salt)
        if 3 in job.task.keys:
            raise ZeroDivisionError("advance")
        job.pieces -= 1
        if job.pieces > 0:
            return []
        job.is_ready = True
        return [] if job.tokens else [self.token(job)]

    def step(self, jobs):
        self.widths.append(len(jobs))
        if any(5 in job.task.keys for job in jobs):
            raise ZeroDivisionError("step")
        return [
            ValueError("row") if 6 in job.task.keys and job.tokens > 2 else [self.token(job)]
            for job in jobs
        ]

    def again(self, job):
        job.is_ready, job.pieces = False, 2

    def end(self, job):
        self.ended.append(job.task.salt)
        if 2 in job.task.keys:
            raise ZeroDivisionError("end")

    def token(self, job):
        job.tokens += 1
        return Token(100 * job.task.keys[0] + job.tokens, 0.0)


class Bench:
    """A scheduler with its worker, and what each task was told."""

    def __init__(self, nbytes=10**9, width=8):
        self.capacity = Capacity(CONTEXT, nbytes, lambda tokens: tokens)
        self.scheduler, self.worker = Scheduler(nbytes), Worker(width)
        self.told = {}

    def ask(self, name, length=1, first=1, max_tokens=3, **options):
        task = Task([first] * length, salt=name, max_tokens=max_tokens, **options)
        self.told[name] = []
        ticket = self.capacity.admit(task, self.told[name].append)
        self.scheduler.add(ticket)
        return ticket

    def run(self, steps=10_000):
        while steps and not self.scheduler.is_idle:
            self.scheduler.step(self.worker)
            steps -= 1
        return steps

    def ids(self, name):
        return [update.id for update in self.told[name] if isinstance(update, Token)]

    def problem(self, name):
        return self.told[name][-1].problem


def test_an_answer_is_told_in_order():
    bench = Bench()
    bench.ask("a", length=25, max_tokens=2)
    bench.run()
    assert bench.told["a"] == [
        Admitted(0),
        Token(101, 0.0),
        Token(102, 0.0),
        Finished("length"),
    ]
    assert bench.worker.log == ["a"] * 3
    assert bench.worker.ended == ["a"]


def test_a_stop_id_ends_an_answer():
    bench = Bench()
    bench.ask("a", max_tokens=-1, stop_ids=(104,))
    bench.run()
    assert bench.ids("a") == [101, 102, 103, 104]
    assert bench.told["a"][-1] == Finished("stop")


def test_prompt_and_answer_share_the_context():
    bench = Bench()
    with pytest.raises(ContextError, match=rf"fewer than {CONTEXT} tokens.* got {CONTEXT}\."):
        bench.ask("full", length=CONTEXT)
    bench.ask("cut", length=CONTEXT - 2, max_tokens=50)
    bench.run()
    assert len(bench.ids("cut")) == 2
    assert bench.told["cut"][-1] == Finished("length")


def test_what_can_never_fit_is_refused_at_once():
    with pytest.raises(RequestError, match=r"^\[max_tokens\] .* within 50 bytes, got 1 and 60 "):
        Bench(nbytes=50).ask("a", max_tokens=60)


@pytest.mark.parametrize("waiting", range(3))
def test_a_short_prompt_behind_long_ones_waits_for_a_piece_of_each(waiting):
    bench = Bench()
    for i in range(waiting + 1):
        bench.ask(f"long{i}", length=900)
    bench.run(5)
    bench.ask("short")
    before = len(bench.worker.log)
    while not bench.ids("short"):
        bench.run(1)
    assert len(bench.worker.log) - before <= waiting + 2


def test_answers_go_on_while_a_prompt_is_read():
    bench = Bench()
    bench.ask("a", max_tokens=20)
    bench.run(1)
    bench.ask("long", length=100)
    bench.run(8)
    assert len(bench.ids("a")) == 10  # its first token and one more came with the first step
    assert bench.ids("long") == []


def test_rows_decode_in_groups():
    bench = Bench()
    for i in range(11):
        bench.ask(str(i), max_tokens=100)
    bench.run(12)
    assert bench.worker.widths[-2:] == [8, 3]


def test_memory_is_shared_by_bytes():
    bench = Bench(nbytes=100)
    for name in "abc":
        bench.ask(name, length=30, max_tokens=10)
    bench.run(1)
    assert [told[:1] for told in bench.told.values()] == [[Admitted(0)], [Admitted(0)], []]
    bench.run()
    assert all(told[-1] == Finished("length") for told in bench.told.values())


def test_answers_that_may_become_long_run_together_until_they_do():
    bench = Bench(nbytes=1500)
    for name in "ab":
        bench.ask(name, length=10, max_tokens=900)
    bench.ask("c", length=10, max_tokens=900, stop_ids=(120,))
    bench.run(400)
    assert [ticket.task.salt for ticket in bench.scheduler.running] == ["a", "b"]
    bench.run(150)
    assert [ticket.task.salt for ticket in bench.scheduler.running] == ["a"]
    assert [ticket.task.salt for ticket in bench.scheduler.waiting] == ["b"]
    assert bench.told["c"][-1] == Finished("stop")  # there was room for it meanwhile
    bench.run()
    for name in "ab":
        assert bench.ids(name) == [100 + i for i in range(1, 901)]
        assert bench.told[name].count(Admitted(0)) == 1


def test_what_waits_for_room_is_overtaken_so_often_and_no_more():
    bench = Bench(nbytes=100)
    bench.ask("running", length=10, max_tokens=80)
    bench.run(1)
    bench.ask("large", length=10, max_tokens=80)
    for i in range(3 * PATIENCE):
        bench.ask(f"small{i}", length=1, max_tokens=2)
        bench.run(1)
    begun = [name for name, told in bench.told.items() if told and name.startswith("small")]
    assert len(begun) == PATIENCE
    bench.run()
    assert bench.told["large"][-1] == Finished("length")
    assert all(told[-1] == Finished("length") for told in bench.told.values())


@pytest.mark.parametrize(("key", "error"), [(4, "begin"), (3, "advance"), (6, "row")])
def test_what_fails_ends_alone(key, error):
    bench = Bench()
    for name in "ab":
        bench.ask(name, max_tokens=9)
    bench.ask("bad", first=key, max_tokens=9)
    bench.run()
    assert error in str(bench.problem("bad"))
    assert [len(bench.ids(name)) for name in "ab"] == [9, 9]
    assert sorted(bench.worker.ended) == ["a", "b"]
    assert bench.worker.log.count("a") == 1  # nobody else was read again


def test_the_row_that_breaks_a_shared_step_is_found():
    bench = Bench()
    for name in "abc":
        bench.ask(name, length=20, max_tokens=40)
    bench.run(8)
    bench.ask("bad", first=5, max_tokens=9)
    bench.run()
    assert "step" in str(bench.problem("bad"))
    for name in "abc":
        assert bench.ids(name) == [100 + i for i in range(1, 41)]
        assert bench.told[name][-1] == Finished("length")
    widths = bench.worker.widths
    assert max(widths[widths.index(4) + 1 :]) == 3  # the others are together again
    assert bench.scheduler.tally.failed == 1


@pytest.mark.parametrize("steps", [0, 2, 6, 9])
def test_a_cancelled_task_ends_within_a_step(steps):
    bench = Bench()
    bench.ask("a", max_tokens=30)
    ticket = bench.ask("b", length=50, max_tokens=30)
    bench.run(steps)
    ticket.cancel()
    before = list(bench.told["b"])
    bench.run(1)
    assert bench.told["b"] == before
    assert ticket.job is None
    assert "b" not in [each.task.salt for each in bench.scheduler.running]
    bench.run()
    assert len(bench.ids("a")) == 30
    assert bench.scheduler.tally.cancelled == 1


@pytest.mark.parametrize("max_tokens", [-1, CONTEXT, CONTEXT + 1])
def test_a_worker_knows_how_far_the_context_goes(max_tokens):
    assert Bench().ask("a", length=5, max_tokens=max_tokens).task.max_tokens == CONTEXT - 5


def test_an_answer_whose_reader_has_enough_is_finished():
    bench = Bench()
    ticket = bench.ask("a", max_tokens=30)
    bench.run(6)
    ticket.finish()
    bench.run()
    assert len(bench.ids("a")) < 30
    assert (bench.scheduler.tally.finished, bench.scheduler.tally.cancelled) == (1, 0)


def test_who_takes_nothing_is_cancelled():
    bench = Bench()
    bench.ask("a")
    task = Task([1], salt="gone", max_tokens=50)
    bench.scheduler.add(bench.capacity.admit(task, lambda update: 1 / 0))
    bench.run()
    assert len(bench.ids("a")) == 3
    assert bench.scheduler.tally.cancelled == 1
    assert len(bench.worker.widths) < 10


def test_what_cannot_be_kept_was_answered_all_the_same():
    bench = Bench()
    bench.ask("a", first=2)
    bench.run()
    assert bench.told["a"][-1] == Finished("length")
    assert bench.scheduler.is_idle


def test_a_lost_worker_ends_what_was_begun_alone():
    bench = Bench(nbytes=60)
    for name in "abc":
        bench.ask(name, length=20, max_tokens=9)
    bench.run(2)
    bench.scheduler.fail_begun(RuntimeError("lost"))
    assert [bool(told) and isinstance(told[-1], Failed) for told in bench.told.values()] == [
        True,
        True,
        False,
    ]
    bench.worker = Worker()
    bench.run()
    assert bench.told["c"][-1] == Finished("length")


def test_nothing_is_lost_among_many():
    """Lengths, limits, faults and departures at random: each task ends in exactly one way."""
    rng = random.Random(4)
    bench = Bench(nbytes=300, width=3)
    tickets = {}
    for i in range(120):
        first = rng.choice([1, 1, 1, 1, 2, 3, 4, 5, 6, 9])
        name = str(i)
        limit = rng.randrange(1, 40)
        tickets[name] = bench.ask(name, rng.randrange(1, 60), first, limit)
        bench.run(rng.randrange(4))
        if rng.random() < 0.2:
            tickets[rng.choice([*tickets])].cancel()
    assert bench.run(5000) > 0
    tally = bench.scheduler.tally
    ends = [told[-1] if told else None for told in bench.told.values()]
    assert tally.finished + tally.failed + tally.cancelled == 120
    assert sum(isinstance(end, Finished) for end in ends) == tally.finished
    assert sum(isinstance(end, Failed) for end in ends) == tally.failed
    for name, ticket in tickets.items():
        ids = [id % 100 for id in bench.ids(name)]
        assert ids == list(range(1, len(ids) + 1))
        if bench.told[name][-1:] == [Finished("length")]:
            assert len(ids) == ticket.limit
        assert ticket.job is None


def test_short_prompts_are_read_together_up_to_one_piece():
    bench = Bench()
    bench.worker.short = 0.4
    bench.ask("long", length=3 * CHUNK)
    for name in "abc":
        bench.ask(name)
    read = []
    for _ in range(6):
        before = len(bench.worker.log)
        bench.scheduler.step(bench.worker)
        read.append("".join(bench.worker.log[before:]))
    assert read[:4] == ["long", "ab", "c", "long"]
    bench.run()
    assert all(len(bench.ids(name)) == 3 for name in ("long", "a", "b", "c"))
