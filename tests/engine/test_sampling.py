import mlx.core as mx
import pytest

from hlwq_mlx.engine.sampling import Sampling, mask_tokens
from hlwq_mlx.errors import RequestError


def test_defaults_take_the_likeliest():
    scores = mx.array([[-3.0, -0.1, -2.0]])
    assert Sampling().choose(3)(scores).item() == 1


def test_generation_config_without_do_sample_is_greedy():
    assert Sampling.from_generation_config({"temperature": 0.7, "top_k": 5}) == Sampling()


def test_generation_config_of_gemma():
    told = {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95}
    assert Sampling.from_generation_config(told) == Sampling(temp=1.0, top_p=0.95, top_k=64)


def test_generation_config_that_leaves_options_open():
    told = {"do_sample": True, "temperature": None, "top_k": None}
    for config in (told, {"do_sample": True}):
        assert Sampling.from_generation_config(config) == Sampling(temp=1.0)


def test_override_replaces_what_is_given_alone():
    base = Sampling(temp=1.0, top_p=0.95, top_k=64)
    assert base.override(temp=0.0, top_p=None) == Sampling(temp=0.0, top_p=0.95, top_k=64)


def test_override_refuses_an_unknown_option():
    with pytest.raises(
        RequestError, match=r"^\[sampling\] needed temp, top_p, top_k, min_p, got t"
    ):
        Sampling().override(temprature=1.0)


@pytest.mark.parametrize(
    ("option", "value"), [("temp", -0.1), ("top_p", 1.5), ("top_k", -1), ("min_p", 2.0)]
)
def test_options_outside_their_limits(option, value):
    with pytest.raises(RequestError, match=rf"^\[{option}\] needed .* got {value}\. "):
        Sampling(**{option: value})


def test_top_k_limits_what_is_drawn():
    scores = mx.log(mx.array([[0.4, 0.3, 0.2, 0.1]]))
    sampler = Sampling(temp=1.0, top_k=2).choose(4)
    assert {sampler(scores).item() for _ in range(50)} == {0, 1}


@pytest.mark.parametrize("top_k", [4, 5, 100_000])
def test_more_than_there_are_keeps_all(top_k):
    scores = mx.log(mx.array([[0.4, 0.3, 0.2, 0.1]]))
    sampler = Sampling(temp=1.0, top_k=top_k).choose(4)
    assert {sampler(scores).item() for _ in range(100)} == {0, 1, 2, 3}


def test_forbidden_ids_are_not_drawn_and_the_rest_keeps_its_chances():
    scores = mx.log(mx.array([[0.4, 0.3, 0.2, 0.1]]))
    assert Sampling().choose(4, masked=[0])(scores).item() == 1
    assert Sampling(temp=1.0, top_k=1).choose(4, masked=[0, 1])(scores).item() == 2
    # Of what is left, 1 has half: the least that top_p=0.5 keeps; of all, it would be 0 and 1.
    nucleus = Sampling(temp=1.0, top_p=0.5).choose(4, masked=[0, 900])
    assert {nucleus(scores).item() for _ in range(50)} <= {1, 2}
    wide = Sampling(temp=1.0).choose(4, masked=[0])
    assert {wide(scores).item() for _ in range(100)} == {1, 2, 3}


def test_mask_tokens_passes_logits_where_nothing_is_forbidden():
    logits = mx.array([[1.0, 2.0]])
    assert mask_tokens([], 2)(logits) is logits
    assert mask_tokens([5], 2)(logits) is logits
    assert mask_tokens([0], 2)(logits).tolist() == [[-float("inf"), 2.0]]
