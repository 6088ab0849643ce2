"""A drafter changes how many passes an answer takes and nothing else, bit for bit."""

import demo
import drafters
import mlx.core as mx
import numpy as np
import pytest
from oracle import model as oracle_model

from hlwq_mlx import library
from hlwq_mlx.engine.answer import generate_tokens
from hlwq_mlx.engine.mtp import ModelDrafter
from hlwq_mlx.engine.request import Prepared, Request
from hlwq_mlx.engine.sampling import Sampling
from hlwq_mlx.engine.speculate import row_cost
from hlwq_mlx.engine.task import Decoding, Task
from hlwq_mlx.engine.worker import Worker
from hlwq_mlx.gemma4.caches import WHOLE, Caching

PROMPT = np.random.default_rng(3).integers(3, 290, 12).tolist()  # past the window of 6
BEGINNING = "Continue the story: One day Sue woke up early. Sue had a pink kite."
KINDS = [WHOLE, Caching(8, 32), Caching(4, 32), Caching(max_kv_size=24)]


class Counting:
    """A drafter that counts what it drafts."""

    needs_hidden = True

    def __init__(self, drafter):
        self.cost, self.drafted, self._draft = drafter.cost, 0, drafter.draft

    def draft(self, seen, count):
        found = self._draft(seen, count)
        self.drafted += len(found)
        return found


def answer(model, prompt, caching, drafter=None, tokens=30, **sampling):
    request = Request(Prepared(prompt), Sampling(**sampling), tokens, (), caching)
    return list(generate_tokens(model, request, None, drafter))


def assert_same(found, wanted):
    assert [each.token for each in found] == [each.token for each in wanted]
    for each, other in zip(found, wanted, strict=True):
        assert np.array_equal(np.array(each.scores), np.array(other.scores))


@pytest.mark.parametrize("caching", KINDS, ids=str)
def test_drafts_of_random_weights_change_nothing(caching):
    drafter = Counting(ModelDrafter(oracle_model(), drafters.drafter()))
    wanted = answer(oracle_model(), PROMPT, caching)
    assert_same(answer(oracle_model(), PROMPT, caching, drafter), wanted)
    assert drafter.drafted


@pytest.mark.slow
def test_drafts_of_random_weights_cost_little():
    """In passes: 3 % of those that there are without."""
    drafter = Counting(ModelDrafter(oracle_model(), drafters.drafter()))
    found = answer(oracle_model(), PROMPT, WHOLE, drafter, tokens=160)
    passes = sum(not each.is_drafted for each in found)
    spent = passes + drafter.drafted * (row_cost(oracle_model()) + drafter.cost)
    assert drafter.drafted > 0 and spent <= 1.03 * len(found)


@pytest.fixture(scope="module")
def trained():
    model, tokenizer = demo.load()
    prompt = library.prompt_ids(tokenizer, [{"role": "user", "content": BEGINNING}])
    return model, prompt, library.load_drafter(model)


@pytest.mark.parametrize(
    ("caching", "sampling"),
    [*((each, {}) for each in KINDS[:3]), (Caching(max_kv_size=40), {}), (WHOLE, {"temp": 0.8})],
    ids=str,
)
def test_the_demos_drafter_is_right_and_changes_nothing(trained, caching, sampling):
    """Past the window of 64: half the passes and less, where the demo is sure of its story."""
    model, prompt, drafter = trained
    answers = []
    for drafts in (None, drafter):
        mx.random.seed(5)
        answers.append(answer(model, prompt, caching, drafts, tokens=48, **sampling))
    wanted, found = answers
    assert_same(found, wanted)
    passes = sum(not each.is_drafted for each in found)
    assert passes <= len(found) * (0.5 if not sampling else 0.8)


def test_the_first_pass_behind_a_prompt_is_drafted(trained):
    """From the state that the prompt ended with; else a short answer is over before any draft."""
    model, prompt, drafter = trained
    found = answer(model, prompt, WHOLE, drafter, tokens=4)
    assert [each.is_drafted for each in found[:3]] == [False, False, True]


def test_a_lone_answer_of_a_server_is_drafted(trained):
    model, prompt, drafter = trained
    taken = []
    for each in (None, Counting(drafter)):
        worker = Worker(model, drafter=each)
        job = worker.begin(Task(prompt, None, Decoding(), 40, ()))
        found, steps = [], 0
        while not job.is_ready:
            found += worker.advance(job)
        while len(found) < 40:
            [tokens] = worker.step([job])
            found += tokens
            steps += 1
        taken.append(([token.id for token in found], steps))
    (wanted, plain), (drafted, few) = taken
    assert drafted == wanted and few < plain / 2
