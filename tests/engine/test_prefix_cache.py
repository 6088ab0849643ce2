"""Prompts that go on where the last answer ended: the same tokens, with less work."""

from functools import partial

import numpy as np
import pytest
from oracle import TOLERANCE
from oracle import model as oracle_model

from hlwq_mlx.engine.answer import generate_tokens
from hlwq_mlx.engine.prefix_cache import PrefixCache
from hlwq_mlx.engine.request import Prepared, Request
from hlwq_mlx.gemma4.caches import WHOLE, Caching

FIRST = [2, 11, 45, 7, 130, 201, 9, 88, 64, 17, 255, 31, 5]
MORE = [90, 14, 77, 3, 160, 21, 48]
STEPS = 12  # past the sliding window


@pytest.fixture(scope="module")
def model():
    return oracle_model()


def made(model, caching=WHOLE, **options):
    return PrefixCache(partial(model.make_cache, caching), **options)


def answer(model, prompt, *, steps=STEPS, prefix=None, **options):
    """The ids of an answer, the scores of its first token, and how much was read already."""
    begins = []
    request = Request(
        Prepared(prompt),
        max_tokens=steps,
        on_prefill=lambda done, total: begins.append(done),
        **options,
    )
    found = generate_tokens(model, request, prefix)
    ids, scores = zip(*found, strict=True)
    return list(ids), np.array(scores[0]), begins[0]


@pytest.mark.parametrize("caching", [WHOLE, Caching(8, 32), Caching(max_kv_size=64)])
@pytest.mark.parametrize("prefill_step", [3, 512])
def test_a_conversation_is_answered_as_if_read_anew(model, caching, prefill_step):
    options = {"caching": caching, "prefill_step": prefill_step}
    assert model.args.text_config.sliding_window < len(FIRST) + STEPS
    prefix, prompt = made(model, caching), FIRST
    for turn in range(3):
        found, scores, begin = answer(model, prompt, prefix=prefix, **options)
        wanted, wanted_scores, _ = answer(model, prompt, **options)
        assert found == wanted
        # Coded, what was read at once and what was read one by one differ by their roundings.
        assert np.abs(scores - wanted_scores).max() < (0.05 if caching.kv_bits else TOLERANCE)
        assert begin == (len(prompt) - len(MORE) - 1 if turn else 0)  # all but the last token
        prompt = [*prompt, *found, *MORE]


def test_an_answer_that_is_ended_early_is_gone_on_with(model):
    wanted, _, _ = answer(model, FIRST)
    prefix = made(model)
    stream = generate_tokens(model, Request(Prepared(FIRST), max_tokens=STEPS), prefix)
    taken = [next(stream)[0] for _ in range(4)]
    stream.close()
    assert taken == wanted[:4]
    prompt = [*FIRST, *taken, *MORE]
    found, _, begin = answer(model, prompt, prefix=prefix)
    assert begin == len(FIRST) + 3
    assert found == answer(model, prompt)[0]
