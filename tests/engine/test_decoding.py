"""Penalties, biases, seeds and constraints: each by hand on a few scores."""

import mlx.core as mx
import numpy as np
import pytest

from hlwq_mlx.engine.decoding import Decoding
from hlwq_mlx.engine.sampling import Sampling
from hlwq_mlx.errors import RequestError

LOGITS = [3.0, 2.5, -1.0, 0.5, -2.0]


def seen_by_sampling(decoding, prompt=(), answer=()):
    """The scores that sampling gets: found by a constraint, which is asked last."""
    spy = Spy()
    chooser = Decoding(
        decoding.sampling,
        decoding.repetition_penalty,
        decoding.presence_penalty,
        decoding.frequency_penalty,
        decoding.logit_bias,
        constraint=spy,
    ).chooser(len(LOGITS), prompt=prompt)
    for token in answer:
        chooser.accept(token)
    chooser(mx.array([LOGITS]))
    return spy.scores[0].tolist()


class Spy:
    def mask(self, scores):
        self.scores = scores
        return scores

    def accept(self, token):
        pass


def draws(decoding, count=40, vocab=50):
    chooser = decoding.chooser(vocab)
    found = []
    for _ in range(count):
        found.append(int(chooser(mx.zeros((1, vocab))).item()))
        chooser.accept(found[-1])
    return found


def test_nothing_changes_by_default():
    assert seen_by_sampling(Decoding(), prompt=[0, 1], answer=[2, 2]) == LOGITS


def test_repetition_divides_what_is_positive_and_multiplies_the_rest():
    found = seen_by_sampling(Decoding(repetition_penalty=2.0), prompt=[0, -7, 2], answer=[4])
    assert found == [1.5, 2.5, -2.0, 0.5, -4.0]


def test_repetition_forgets_what_is_far_back():
    prompt = [0] + [1] * 64
    assert seen_by_sampling(Decoding(repetition_penalty=2.0), prompt)[:2] == [3.0, 1.25]


def test_presence_and_frequency_count_the_answer_alone():
    penalized = Decoding(presence_penalty=0.5, frequency_penalty=0.25)
    found = seen_by_sampling(penalized, prompt=[0, 0], answer=[1, 1, 3])
    assert found == [3.0, 2.5 - 0.5 - 0.5, -1.0, 0.5 - 0.75, -2.0]


def test_a_bias_is_added_and_the_least_forbids():
    biased = Decoding(logit_bias={0: -100, 2: 4.5}, presence_penalty=1.0)
    assert seen_by_sampling(biased, answer=[2]) == [-np.inf, 2.5, 2.5, 0.5, -2.0]


def test_a_seed_repeats_its_draws_whatever_others_do():
    seeded = Decoding(Sampling(temp=1.0), seed=7)
    alone = draws(seeded)
    one, other = seeded.chooser(50), Decoding(Sampling(temp=1.0)).chooser(50)
    together = []
    for _ in alone:
        mx.random.uniform()
        together.append(int(one(mx.zeros((1, 50))).item()))
        one.accept(together[-1])
        other.accept(int(other(mx.zeros((1, 50))).item()))
    assert together == alone
    assert draws(Decoding(Sampling(temp=1.0), seed=8)) != alone


@pytest.mark.parametrize("seed", [0, -1, 1 << 64, -(1 << 200), 12345678901234567890])
def test_a_seed_may_be_of_any_size(seed):
    seeded = Decoding(Sampling(temp=1.0), seed=seed)
    assert draws(seeded) == draws(seeded)
    assert len(set(draws(seeded))) > 5


def test_without_a_seed_the_global_generator_decides():
    free = Decoding(Sampling(temp=1.0))
    assert draws(free) != draws(free)
    mx.random.seed(3)
    first = draws(free)
    mx.random.seed(3)
    assert draws(free) == first


def test_choosing_again_before_accepting_is_the_same_choice():
    chooser = Decoding(Sampling(temp=1.0), frequency_penalty=1.0, seed=1).chooser(50)
    for _ in range(20):
        first, again = (int(chooser(mx.zeros((1, 50))).item()) for _ in range(2))
        assert first == again
        chooser.accept(first)


def test_where_nothing_is_allowed_the_answer_ends():
    chooser = Decoding(logit_bias=dict.fromkeys(range(5), -100)).chooser(5)
    token = int(chooser(mx.array([LOGITS])).item())
    with pytest.raises(RequestError, match=r"^\[logit_bias\] needed to leave a token"):
        chooser.accept(token)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("logit_bias", {3: 101}),
        ("logit_bias", {3: "much"}),
        ("seed", 1.5),
        ("seed", True),
    ],
)
def test_options_outside_their_limits(option, value):
    with pytest.raises(RequestError, match=rf"^\[{option}\] needed "):
        Decoding(**{option: value})


@pytest.mark.parametrize("token", [-1, 5])
def test_a_bias_of_no_token(token):
    with pytest.raises(RequestError, match=rf"^\[logit_bias\] needed .* 0 to 4, got {token}\."):
        Decoding(logit_bias={token: 1.0}).chooser(5)


@pytest.mark.parametrize(
    ("decoding", "most"),
    [
        (Decoding(), 3),
        (Decoding(Sampling(temp=1.0, top_k=40)), 42),
        (Decoding(Sampling(temp=1.0, top_k=40, min_p=0.1)), 42),
        (Decoding(Sampling(temp=1.0, top_k=40, top_p=0.9)), None),
        (Decoding(Sampling(temp=1.0)), None),
        (Decoding(repetition_penalty=1.1), None),
        (Decoding(logit_bias={3: 1.0}), None),
    ],
)
def test_how_many_of_the_likeliest_tokens_decide(decoding, most):
    assert decoding.chooser(64, masked=[60, 61]).most == most
