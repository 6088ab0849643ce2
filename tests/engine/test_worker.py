"""Answers in company are those that each has alone, bit for bit: scheduler and worker on MLX."""

import random

import demo
import mlx.core as mx
import numpy as np
import pytest
from oracle import TOLERANCE, fresh_model
from oracle import model as oracle_model

from hlwq_mlx.engine import scheduler
from hlwq_mlx.engine.batch import answer_together
from hlwq_mlx.engine.decoding import Decoding
from hlwq_mlx.engine.prefix_cache import PrefixCache
from hlwq_mlx.engine.request import Prepared
from hlwq_mlx.engine.sampling import Sampling
from hlwq_mlx.engine.scheduler import Capacity, Scheduler
from hlwq_mlx.engine.task import Admitted, Failed, Finished, Task, Token
from hlwq_mlx.engine.worker import Worker, likeliest
from hlwq_mlx.errors import RequestError
from hlwq_mlx.gemma4.caches import WHOLE, Caching
from hlwq_mlx.gemma4.model import Resources

ROOM = Capacity(4096, 10**9, lambda tokens: tokens)
BAD = 13  # a token whose row cannot be read


class Bench:
    """A scheduler on a model, and what each task was told."""

    def __init__(self, model, nbytes=ROOM.nbytes, **options):
        self.scheduler, self.worker = Scheduler(nbytes), Worker(model, **options)
        self.told = []

    def ask(self, task):
        told = []
        self.told.append(told)
        ticket = ROOM.admit(task, told.append)
        self.scheduler.add(ticket)
        return ticket

    def run(self, steps=10_000):
        while steps and not self.scheduler.is_idle:
            self.scheduler.step(self.worker)
            steps -= 1


def alone(model, task, **options):
    bench = Bench(model, **options)
    bench.ask(task)
    bench.run()
    return bench.told[0]


class Even:
    """Allows even ids alone, and no id twice in a row."""

    def __init__(self):
        self.last = -1

    def mask(self, scores):
        ids = mx.arange(scores.shape[-1])
        return mx.where((ids % 2 == 0) & (ids != self.last), scores, -mx.inf)

    def accept(self, token):
        self.last = token


def make_tasks(model, rng, count, longest, most):
    """Return functions that make a task anew, since a constraint serves one answer."""
    vocab = model.args.text_config.vocab_size

    def make(keys, **options):
        constraint = Even() if options.pop("is_even") else None
        decoding = {name: options.pop(name) for name in ("repetition_penalty", "seed")}
        return Task(
            keys,
            decoding=Decoding(
                Sampling(temp=options.pop("temp"), top_p=0.95),
                frequency_penalty=options.pop("frequency"),
                logit_bias={5: 3.0, 6: -100},
                constraint=constraint,
                **decoding,
            ),
            top_logprobs=3,
            **options,
        )

    def draw():
        keys = [rng.randrange(7, vocab - 30) for _ in range(rng.randrange(1, longest))]
        options = {
            "temp": rng.choice([0.0, 0.8, 1.5]),
            "repetition_penalty": rng.choice([1.0, 1.2]),
            "frequency": rng.choice([0.0, 0.5]),
            "seed": rng.randrange(1 << 70),
            "is_even": rng.random() < 0.3,
            "max_tokens": rng.randrange(1, most),
            "stop_ids": rng.sample(range(vocab), 5),
        }
        return lambda: make(keys, **options)

    return [draw() for _ in range(count)]


def same_in_company(model, rng, makers, **options):
    """Run tasks that come and leave at random, and compare those that ended with lone runs."""
    bench = Bench(model, prefill_step=16, **options)
    tickets = []
    for make in makers:
        tickets.append(bench.ask(make()))
        bench.run(rng.randrange(4))
        if rng.random() < 0.1:
            rng.choice(tickets).cancel()
    bench.run()
    finished = [
        (make, told)
        for make, told in zip(makers, bench.told, strict=True)
        if told and isinstance(told[-1], Finished)
    ]
    for make, told in finished:
        assert told == alone(model, make(), prefill_step=16, **options)
    assert len(finished) > len(makers) // 2


@pytest.mark.parametrize("caching", [WHOLE, Caching(8, 32), Caching(max_kv_size=24)])
def test_a_random_model_answers_in_company_as_alone(caching):
    model, rng = oracle_model(), random.Random(caching.kv_bits or caching.max_kv_size or 0)
    same_in_company(model, rng, make_tasks(model, rng, 8, 40, 12), caching=caching)


def test_the_demo_answers_in_company_as_alone():
    model, rng = demo.load()[0], random.Random(3)
    same_in_company(model, rng, make_tasks(model, rng, 5, 150, 12))


def test_answers_that_waited_for_memory_are_those_that_each_has_alone(monkeypatch):
    model, rng = oracle_model(), random.Random(5)
    monkeypatch.setattr(scheduler, "AHEAD", 2)
    again, sent_back = Worker.again, []
    monkeypatch.setattr(Worker, "again", lambda *both: sent_back.append(both) or again(*both))
    same_in_company(model, rng, make_tasks(model, rng, 8, 30, 20), nbytes=60)
    assert len(sent_back) > 2


def test_together_without_a_server():
    model = oracle_model()
    tasks = [Task([2, 11, 45 + i], max_tokens=3 + i) for i in range(3)]
    found = answer_together(model, tasks)
    assert [len(ids) for ids in found] == [3, 4, 5]
    for task, ids in zip(tasks, found, strict=True):
        assert ids == [each.id for each in alone(model, task) if isinstance(each, Token)]
    with pytest.raises(RequestError, match="needed ids from 0"):
        answer_together(model, [tasks[0], Task([10**6], max_tokens=2)])


def test_log_probabilities_are_the_models_own():
    """Whatever penalties make of them."""
    model = oracle_model()
    plain, biased = (
        alone(model, Task([2, 11, 45], decoding=decoding, max_tokens=1, top_logprobs=4))[1]
        for decoding in (Decoding(), Decoding(logit_bias={7: 100}, repetition_penalty=2.0))
    )
    assert plain.id == plain.top[0][0] != 7
    assert biased.id == 7
    assert biased.top == plain.top
    logits = model(mx.array([[2, 11, 45]]))[0, -1]
    wanted = np.array(logits - mx.logsumexp(logits))
    assert abs(biased.logprob - wanted[7]) < TOLERANCE
    assert [id for id, _ in plain.top] == np.argsort(-wanted)[:4].tolist()


def test_more_of_the_likeliest_than_there_are():
    scores = np.array([-2.0, -0.5], np.float32)
    assert likeliest(scores, 20) == [(1, -0.5), (0, -2.0)]
    assert likeliest(scores, 0) == []


class Broken(Even):
    """Breaks at its third token, in one of its two methods."""

    def __init__(self, name):
        super().__init__()
        self.count, self.name = 0, name

    def mask(self, scores):
        assert self.count < 3 or self.name != "mask"
        return super().mask(scores)

    def accept(self, token):
        super().accept(token)
        self.count += 1
        assert self.count < 3 or self.name != "accept"


@pytest.mark.parametrize("name", ["mask", "accept"])
def test_a_constraint_that_breaks_ends_its_answer_alone(name):
    model = oracle_model()
    others = [Task([2, 11, 45 + i], max_tokens=12) for i in range(2)]
    bench = Bench(model)
    for task in [*others, Task([9], decoding=Decoding(constraint=Broken(name)), max_tokens=12)]:
        bench.ask(task)
    bench.run()
    assert isinstance(bench.told[2][-1], Failed)
    assert len(bench.told[2]) == (5 if name == "mask" else 4)  # Admitted, tokens, Failed
    assert [told == alone(model, task) for told, task in zip(bench.told, others, strict=False)] == [
        True,
        True,
    ]


def test_a_row_that_breaks_a_step_fails_alone():
    """The row store is read for all rows at once, so the exception does not say whose it is."""
    model = fresh_model()
    rows = model.resources.rows

    def read(ids):
        if BAD in ids:
            raise OSError("no such row")
        return rows(ids)

    model.resources = Resources(read)
    allowed = {"logit_bias": {BAD: -100}}
    others = [
        Task(
            list(range(20, 30 + i)),
            decoding=Decoding(Sampling(temp=1.0), seed=i, **allowed),
            max_tokens=14,
        )
        for i in range(3)
    ]
    bench = Bench(model, prefill_step=4)
    for task in others:
        bench.ask(task)
    bench.run(14)
    bench.ask(Task([9], decoding=Decoding(logit_bias={BAD: 100}), max_tokens=9))
    bench.run()
    assert "no such row" in str(bench.told[3][-1].problem)
    assert [type(update) for update in bench.told[3]] == [Admitted, Token, Failed]
    for task, told in zip(others, bench.told, strict=False):
        assert told == alone(model, task, prefill_step=4)


def prefixes_of(model):
    return PrefixCache(model.make_cache)


def test_a_next_turn_reads_only_what_is_new():
    model = oracle_model()
    bench = Bench(model, prefixes=prefixes_of(model))
    first = Task([2, *range(20, 60)], max_tokens=6, marks=(11,))
    bench.ask(first)
    bench.run()
    ids = [each.id for each in bench.told[0] if isinstance(each, Token)]
    for keys, cached in (
        ([*first.keys, *ids, 99], 46),  # the last token of the answer was never read
        (first.keys, 40),
        ([*first.keys[:15], 99, 98], 11),
        ([*first.keys[:15], 97, 96], 15),  # where prompts part is worth keeping
    ):
        task = Task(keys, max_tokens=4)
        bench.ask(task)
        bench.ask(Task(keys, max_tokens=4, salt="another key"))
        bench.run()
        told, foreign = bench.told[-2:]
        assert told[0] == Admitted(cached)
        assert [each.id for each in told[1:-1]] == [each.id for each in alone(model, task)[1:-1]]
        bench.worker.prefixes._roots.pop("another key")
        assert foreign[0] == Admitted(0)


IMAGE, BEGIN, END = 300, 303, 304
SHOWN = [2, 11, BEGIN, *[IMAGE] * 6, END, 45]
KEYS = [-7 if id == IMAGE else id for id in SHOWN]


def test_media_are_prepared_in_pieces_and_only_while_they_are_to_be_read():
    model = oracle_model()
    x = model.embed(mx.array([SHOWN]))
    x[:, 3:9] = mx.random.normal((6, x.shape[-1]), key=mx.random.key(1))
    calls = []

    def prepare(model):
        calls.append(len(calls))
        yield None
        yield None
        yield Prepared(SHOWN, x, KEYS)

    bench = Bench(model, prefixes=prefixes_of(model))
    bench.ask(Task([2, 30], max_tokens=9))
    bench.run(1)
    bench.ask(Task(KEYS, prepare, max_tokens=3))
    for pieces in range(3):
        assert len(bench.told[1]) == min(1, pieces)  # it is admitted by the first step
        bench.run(1)
    assert isinstance(bench.told[1][-1], Token)
    bench.run()
    ids = [each.id for each in bench.told[1] if isinstance(each, Token)]
    wanted = model(mx.array([SHOWN]), input_embeddings=x)[0, -1]
    assert ids[0] == int(mx.argmax(wanted).item())
    bench.ask(Task([*KEYS, *ids, 40], prepare, max_tokens=3))
    bench.run()
    assert bench.told[2][0] == Admitted(len(KEYS) + 2)
    assert isinstance(bench.told[2][-1], Finished)
    assert calls == [0]


def test_a_prompt_that_is_not_prepared_is_an_error():
    [told] = [alone(oracle_model(), Task(KEYS, lambda model: iter([None]), max_tokens=3))]
    assert "[prepare] needed a prepared prompt" in str(told[-1].problem)
