"""Drafts change how many passes an answer takes and nothing else, bit for bit."""

import numpy as np
import pytest
import tiny
from test_worker import Even

from hlwq_mlx.engine.answer import make_chooser, prefill
from hlwq_mlx.engine.decoding import Decoding
from hlwq_mlx.engine.draft import Course
from hlwq_mlx.engine.request import Prepared, Request
from hlwq_mlx.engine.sampling import Sampling
from hlwq_mlx.engine.speculate import DraftingStep
from hlwq_mlx.engine.step import PlainStep, start_row
from hlwq_mlx.gemma4.caches import WHOLE, Caching

PROMPT = [2, *np.random.default_rng(3).integers(7, 320, 20).tolist()]
TOKENS = 60  # far past the window of 8, and past the bounds
KINDS = [WHOLE, Caching(8, 32), Caching(4, 64), Caching(max_kv_size=24), Caching(max_kv_size=6)]
MEDIA = 300


@pytest.fixture(scope="module")
def model():
    settings = tiny.config() | {"image_token_id": MEDIA}
    return tiny.dense_model(settings, tiny.make_weights(settings, has_towers=False))


class Prompter:
    """Drafts a known answer, with an error at a place drawn by chance; drafting costs nothing."""

    needs_hidden = False
    cost = -1.0

    def __init__(self, answer, wrong=(-1, 5, MEDIA, 320)):
        self.answer, self.wrong, self.draw = answer, wrong, np.random.default_rng(11)

    def draft(self, seen, count):
        done = len(seen.ids) - len(PROMPT)
        drafts = self.answer[done : done + self.draw.integers(1, count + 1)]
        at = self.draw.integers(0, 8)
        return [*drafts[:at], *[self.draw.choice(self.wrong)] * len(drafts[at:])]


def decode(model, step, decoding, caching=WHOLE, tokens=TOKENS, ends=()):
    """Tokens, scores and how many passes they took, and the caches at the end."""
    request = Request(Prepared(PROMPT), caching=caching, prefill_step=5)
    caches = model.make_cache(caching)
    chooser = make_chooser(model, decoding, PROMPT)
    course = Course(PROMPT, ends, tokens)
    row, first = start_row(caches, prefill(model, request, caches), chooser, course)
    found, passes = [first], 0
    while course.left:
        [outcome] = step([row])
        found += outcome
        passes += 1
    return found, passes, caches


def assert_same(found, wanted):
    assert [each.token for each in found] == [each.token for each in wanted]
    for each, other in zip(found, wanted, strict=True):
        assert np.array_equal(np.array(each.scores), np.array(other.scores))


def assert_same_caches(found, wanted):
    for each, other in zip(found, wanted, strict=True):
        assert each.offset == other.offset
        for array, same in zip(each.peek(), other.peek(), strict=True):
            array, same = (x if isinstance(x, tuple) else (x,) for x in (array, same))
            assert all(np.array_equal(*map(np.array, pair)) for pair in zip(array, same))


DECODINGS = {
    "greedy": Decoding,
    "sampled": lambda: Decoding(Sampling(temp=1.5, top_p=0.95, top_k=50), seed=7),
    "penalties": lambda: Decoding(
        repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2
    ),
    "sampled, with all": lambda: Decoding(
        Sampling(temp=1.0), 1.1, 0.4, 0.2, {5: 3.0, 6: -100}, 9, Even()
    ),
}


@pytest.mark.parametrize("caching", KINDS)
@pytest.mark.parametrize("how", DECODINGS)
def test_a_drafted_answer_is_the_plain_one(model, caching, how):
    """Past the window, with shared keys: tokens, scores and caches, bit for bit."""
    wanted, plain_passes, plain = decode(model, PlainStep(model), DECODINGS[how](), caching)
    drafter = Prompter([each.token for each in wanted])
    found, passes, caches = decode(model, DraftingStep(model, drafter), DECODINGS[how](), caching)
    assert_same(found, wanted)
    assert_same_caches(caches, plain)
    assert passes < plain_passes or caching.max_kv_size == 6
    assert sum(not each.is_drafted for each in found) == passes + 1
