"""Working ahead changes no token, score or cache, and never reads a row of the table too early."""

import mlx.core as mx
import numpy as np
import pytest
from demo import load as load_demo
from oracle import model as oracle_model

from hlwq_mlx.engine import overlap
from hlwq_mlx.engine.answer import generate_tokens, make_chooser
from hlwq_mlx.engine.batch import answer_together
from hlwq_mlx.engine.decoding import Decoding
from hlwq_mlx.engine.overlap import OverlappedStep, make_step
from hlwq_mlx.engine.request import Prepared, Request
from hlwq_mlx.engine.sampling import Sampling
from hlwq_mlx.engine.step import PlainStep, Row, start_row
from hlwq_mlx.engine.task import Task
from hlwq_mlx.errors import CheckpointError
from hlwq_mlx.gemma4.caches import WHOLE, Caching
from hlwq_mlx.gemma4.late_rows import LateRows
from hlwq_mlx.quant.backends.affine import Affine
from hlwq_mlx.quant.backends.dense import Dense

# With the library a step is not lazy.
pytestmark = pytest.mark.usefixtures("by_stock")

KINDS = [WHOLE, Caching(8, 32), Caching(max_kv_size=24)]
PROMPT = [2, *range(20, 37)]


def started(model, caching, prompt=PROMPT, stop_ids=(), **decoding):
    caches = model.make_cache(caching)
    logits = model.prefill(mx.array([prompt]), caches)[:, -1]
    row = Row(caches, -1, make_chooser(model, Decoding(**decoding), prompt), stop_ids)
    start_row(row, logits)
    return row


def same(chosen, other):
    return chosen.token == other.token and np.array_equal(chosen.scores, other.scores)


def same_state(row, other):
    """Whether the caches hold the same bits, and of as many positions."""
    return all(
        mine.offset == their.offset
        and all(map(np.array_equal, mine._buffer.held(), their._buffer.held()))
        for mine, their in zip(row.caches, other.caches, strict=True)
    )


def is_finite(row):
    """Whether no floating number that the caches have room for is NaN."""
    arrays = [array for cache in row.caches for array in cache.state]
    return all(mx.isfinite(each).all() for each in arrays if each.dtype == mx.float32)


def run(step, rows, times):
    """What each call gave; a row is there from call to call as its number says."""
    given = []
    for at in range(times):
        present = [row for begin, end, row in rows if begin <= at < end]
        outcomes = step(present)
        given += [chosen for outcome in outcomes for chosen in outcome]
    return given


@pytest.mark.parametrize("caching", KINDS)
def test_rows_that_come_and_go_get_what_the_plain_step_gives(caching):
    """Past the window, over dropped positions, with seeds and penalties, whatever the company."""
    model = oracle_model()
    given = []
    for step in (PlainStep(model), OverlappedStep(model)):
        rows = [
            (0, 24, started(model, caching)),
            (3, 9, started(model, caching, PROMPT[:5], sampling=Sampling(1.2), seed=7)),
            (8, 24, started(model, caching, PROMPT[:9], repetition_penalty=1.3)),
        ]
        given.append(run(step, rows, 24))
    assert all(map(same, *given))
    assert len(given[0]) == 24 + 6 + 16


@pytest.mark.parametrize("caching", KINDS)
def test_where_an_answer_ends_the_caches_are_those_of_the_plain_step(caching):
    """The graph behind a stop token was built, and is undone, wherever positions are dropped."""
    model = oracle_model()
    plain, ahead = (started(model, caching, sampling=Sampling(2.0), seed=1) for _ in range(2))
    step, other = PlainStep(model), OverlappedStep(model)
    for at in range(14):
        ahead.stop_ids = range(320) if at % 3 else ()  # at some tokens, it does go on
        [[chosen]], [[wanted]] = other([ahead]), step([plain])
        assert same(chosen, wanted)
        assert ahead.is_over == (ahead.under_way is None)
        assert same_state(ahead, plain) == ahead.is_over
        assert is_finite(ahead)  # nothing is left of a graph whose rows were never filled in


@pytest.mark.parametrize("caching", KINDS[:2])
def test_a_cache_is_appended_to_in_place(caching):
    """A mark that outlives its use has MLX copy the whole cache for each token."""
    model = oracle_model()
    row, step = started(model, caching), OverlappedStep(model)

    def places():
        arrays = [array for cache in row.caches for array in cache.state]
        mx.eval(arrays)
        return [np.asarray(array.view(mx.uint8)).ctypes.data for array in arrays]

    step([row])
    before = places()
    for _ in range(4):
        step([row])
    assert places() == before


def test_the_last_token_is_not_read():
    model = oracle_model()
    row = started(model, WHOLE)
    row.left = 2
    step = OverlappedStep(model)
    step([row])
    assert row.under_way is not None
    step([row])
    assert row.under_way is None


def test_both_ways_to_answer_work_ahead(monkeypatch):
    made = []
    monkeypatch.setattr(
        overlap, "make_step", lambda model: made.append(make_step(model)) or made[-1]
    )
    model = oracle_model()
    alone = [each.token for each in generate_tokens(model, Request(Prepared(PROMPT), max_tokens=4))]
    assert answer_together(model, [Task(PROMPT, max_tokens=4)]) == [alone]
    assert [type(step) for step in made] == [OverlappedStep] * 2


@pytest.fixture
def eager(monkeypatch):
    """The demo, by a backend that evaluates each product within the call."""
    for backend in (Dense, Affine):
        multiply = backend.__call__

        def evaluated(self, x, multiply=multiply):
            y = multiply(self, x)
            mx.eval(y)
            return y

        monkeypatch.setattr(backend, "__call__", evaluated)
        monkeypatch.setattr(backend, "is_lazy", False)
    return load_demo.__wrapped__()[0]  # one that no other test has prepared


def greedy(model):
    return [each.token for each in generate_tokens(model, Request(Prepared(PROMPT), max_tokens=5))]


def test_a_backend_that_evaluates_at_once_gets_its_rows_first(eager, monkeypatch):
    wanted = greedy(eager)
    assert isinstance(make_step(eager), PlainStep)
    monkeypatch.undo()
    assert isinstance(make_step(eager), OverlappedStep)
    assert greedy(eager) == wanted


def test_a_row_that_is_read_too_early_is_loud(eager, monkeypatch):
    monkeypatch.setattr(overlap, "is_lazy", lambda model: True)
    with pytest.raises(CheckpointError, match=r"^\[scores\] needed finite numbers"):
        greedy(eager)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_late_rows_are_the_rows(dtype):
    rows = mx.random.normal((2, 1, 96), key=mx.random.key(3)).astype(dtype)
    late = LateRows(2, 96)
    read = late.array.astype(dtype)
    late.fill(rows)
    assert mx.array_equal(read, rows)
    assert np.isnan(np.array(LateRows(2, 96).array)).all()
