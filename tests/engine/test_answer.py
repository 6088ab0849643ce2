"""The engine on a tiny random model: chunks, limits and the greedy path, token for token."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from oracle import TOLERANCE, fresh_model
from oracle import model as oracle_model

from hlwq_mlx.engine.answer import chunks, generate_tokens
from hlwq_mlx.engine.request import Prepared, Request
from hlwq_mlx.engine.sampling import Sampling
from hlwq_mlx.errors import RequestError

PROMPT = [2, 11, 45, 7, 130, 201, 9, 88, 64, 17, 255, 31, 5]
STEPS = 9


@pytest.fixture(scope="module")
def model():
    return oracle_model()


def answer(model, prompt=PROMPT, embeddings=None, **options):
    """The tokens and scores of an answer to a prompt of ids."""
    return generate_tokens(model, Request(Prepared(prompt, embeddings), **options))


def greedy_by_hand(model, prompt=PROMPT, embeddings=None):
    """Take the likeliest token with a full pass for every step and no cache."""
    ids = list(prompt)
    for _ in range(STEPS):
        inputs = mx.array([ids])
        x = model.embed(inputs)
        if embeddings is not None:
            x[:, : len(prompt)] = embeddings
        ids.append(int(mx.argmax(model(inputs, input_embeddings=x)[0, -1]).item()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("prefill_step", [1, 4, 5, 12, 13, 512])
def test_every_chunking_takes_the_greedy_path(model, prefill_step):
    found = answer(model, max_tokens=STEPS, prefill_step=prefill_step)
    assert [chosen.token for chosen in found] == greedy_by_hand(model)


def test_scores_are_log_probabilities(model):
    for chosen in answer(model, max_tokens=3):
        values = np.array(chosen.scores)
        assert values.shape == (320,)
        assert abs(np.exp(values).sum() - 1) < 1e-5
        assert chosen.token == values.argmax()


def test_progress_counts_the_prompt(model):
    seen = []
    list(
        answer(
            model,
            max_tokens=1,
            prefill_step=5,
            on_prefill=lambda done, total: seen.append((done, total)),
        )
    )
    assert seen == [(0, 13), (5, 13), (10, 13), (13, 13)]


def test_without_limit_it_goes_on(model):
    stream = answer(model)
    assert len([next(stream) for _ in range(30)]) == 30


@pytest.mark.parametrize("limit", [0, -2])
def test_limits_that_mean_nothing(model, limit):
    with pytest.raises(RequestError, match=rf"^\[max_tokens\] needed .* got {limit}\. "):
        answer(model, max_tokens=limit)


def test_a_prefill_step_of_0_is_refused(model):
    with pytest.raises(
        RequestError, match=r"^\[prefill_step\] needed at least 1, got 0\. It counts"
    ):
        answer(model, max_tokens=1, prefill_step=0)


def test_empty_prompt(model):
    with pytest.raises(RequestError, match=r"^\[prompt\] needed at least one token, got none\."):
        answer(model, [])


def test_a_seed_repeats_a_draw(model):
    def draw():
        mx.random.seed(7)
        chosen = Sampling(temp=1.0, top_k=20)
        return [chosen.token for chosen in answer(model, sampling=chosen, max_tokens=12)]

    assert draw() == draw()
    assert draw() != greedy_by_hand(model)


IMAGE, BEGIN, END = 300, 303, 304
SHOWN = [2, 11, BEGIN, *[IMAGE] * 6, END, 45, BEGIN, *[IMAGE] * 3, END, 7, 130]


def features_for(model, prompt):
    """Embeddings of a prompt whose soft tokens are some features: all different, of usual size."""
    rng = np.random.default_rng(1)
    x = model.embed(mx.array([prompt]))
    soft = np.flatnonzero(np.isin(prompt, model.args.soft_token_ids))
    drawn = rng.standard_normal((len(soft), x.shape[-1])).astype(np.float32)
    x[:, mx.array(soft)] = mx.array(drawn)
    return x


@pytest.mark.parametrize("variant", ["plain", "bidirectional"])
@pytest.mark.parametrize("prefill_step", [1, 4, 7, 512])
def test_every_chunking_reads_the_same_embeddings(variant, prefill_step):
    model = oracle_model(variant)
    embeddings = features_for(model, SHOWN)
    found = answer(model, SHOWN, embeddings, max_tokens=STEPS, prefill_step=prefill_step)
    tokens, scores, _ = zip(*found, strict=True)
    assert list(tokens) == greedy_by_hand(model, SHOWN, embeddings)
    wanted = log_probabilities(model, SHOWN, embeddings)
    assert np.abs(np.array(scores[0]) - wanted).max() < TOLERANCE
    blind = log_probabilities(model, SHOWN, model.embed(mx.array([SHOWN])))
    assert np.abs(wanted - blind).max() > 100 * TOLERANCE


def log_probabilities(model, prompt, embeddings):
    logits = model(mx.array([prompt]), input_embeddings=embeddings)[0, -1]
    return np.array(logits - mx.logsumexp(logits))


def test_chunks_hold_runs_whole():
    ends = [step.stop for step in chunks(SHOWN, 4, inseparable=(IMAGE,))]
    assert ends == [10, 16, 18]
    assert [step.stop for step in chunks(SHOWN, 4, inseparable=())] == [4, 8, 12, 16, 18]


def test_media_tokens_are_never_chosen():
    model = fresh_model()
    favourites = tuple(greedy_by_hand(model))
    model.args = dataclasses.replace(model.args, media_token_ids=favourites)
    mx.random.seed(3)
    for sampling in (Sampling(), Sampling(temp=1.0, top_k=3), Sampling(temp=1.0, top_p=0.5)):
        found = [chosen.token for chosen in answer(model, sampling=sampling, max_tokens=STEPS)]
        assert set(favourites).isdisjoint(found)
