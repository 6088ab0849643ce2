"""The engine on a tiny random model: chunks, limits and the greedy path, token for token."""

import mlx.core as mx
import numpy as np
import pytest
from oracle import model as oracle_model

from hlwq_mlx.engine.decode import generate_tokens
from hlwq_mlx.engine.sampling import Sampling
from hlwq_mlx.errors import RequestError

PROMPT = [2, 11, 45, 7, 130, 201, 9, 88, 64, 17, 255, 31, 5]
STEPS = 9


@pytest.fixture(scope="module")
def model():
    return oracle_model()


def greedy_by_hand(model):
    """Take the likeliest token with a full pass for every step and no cache."""
    ids = list(PROMPT)
    for _ in range(STEPS):
        ids.append(int(mx.argmax(model(mx.array([ids]))[0, -1]).item()))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("prefill_step", [1, 4, 5, 12, 13, 512])
def test_every_chunking_takes_the_greedy_path(model, prefill_step):
    found = generate_tokens(model, PROMPT, Sampling(), max_tokens=STEPS, prefill_step=prefill_step)
    assert [token for token, _ in found] == greedy_by_hand(model)


def test_scores_are_log_probabilities(model):
    for token, scores in generate_tokens(model, PROMPT, Sampling(), max_tokens=3):
        values = np.array(scores)
        assert values.shape == (320,)
        assert abs(np.exp(values).sum() - 1) < 1e-5
        assert token == values.argmax()


def test_progress_counts_the_prompt(model):
    seen = []
    list(
        generate_tokens(
            model,
            PROMPT,
            Sampling(),
            max_tokens=1,
            prefill_step=5,
            on_prefill=lambda done, total: seen.append((done, total)),
        )
    )
    assert seen == [(0, 13), (5, 13), (10, 13), (13, 13)]


def test_without_limit_it_goes_on(model):
    stream = generate_tokens(model, PROMPT, Sampling(), max_tokens=-1)
    assert len([next(stream) for _ in range(30)]) == 30


@pytest.mark.parametrize("limit", [0, -2])
def test_limits_that_mean_nothing(model, limit):
    with pytest.raises(RequestError, match=rf"^\[max_tokens\] needed .* got {limit}\. "):
        next(generate_tokens(model, PROMPT, Sampling(), max_tokens=limit))


def test_empty_prompt(model):
    with pytest.raises(RequestError, match=r"^\[prompt\] needed at least one token, got none\."):
        next(generate_tokens(model, [], Sampling(), max_tokens=1))


def test_a_seed_repeats_a_draw(model):
    def draw():
        mx.random.seed(7)
        chosen = Sampling(temp=1.0, top_k=20)
        return [token for token, _ in generate_tokens(model, PROMPT, chosen, max_tokens=12)]

    assert draw() == draw()
    assert draw() != greedy_by_hand(model)
