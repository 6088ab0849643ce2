"""Where machines hold whole experts, each adds its own, and together they are one machine's."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from hlwq_mlx.gemma4.config import Gemma4Config
from hlwq_mlx.gemma4.experts import Chosen, Experts
from hlwq_mlx.sharding.shares import Split
from hlwq_mlx.sharding.split import OwnExperts
from scripts.sharding import parity, speed_table

CLOSE = 1e-5
SIZE, TOKENS = 4, 9


@pytest.fixture(scope="module")
def config():
    return Gemma4Config.from_dict(parity.experts()).text_config


@pytest.fixture(scope="module")
def whole(config):
    made = Experts(config)
    for at, layer in enumerate((made.gate_up_proj, made.down_proj)):
        layer.weight = mx.random.normal(layer.weight.shape, key=mx.random.key(at)) * 0.05
    return made


def part_of(whole, config, rank):
    """Return the experts of one machine."""
    own = Split(config, SIZE, rank).experts
    part = Experts(replace(config, num_experts=len(own)))
    for name in ("gate_up_proj", "down_proj"):
        part[name].weight = whole[name].weight[own.start : own.stop]
    return OwnExperts(part, own)


def chosen_of(experts):
    shares = mx.random.uniform(shape=experts.shape, key=mx.random.key(3))
    return Chosen(mx.array(experts.astype(np.uint32)), shares)


def test_all_machines_together_make_what_one_makes(config, whole):
    rng = np.random.default_rng(0)
    count, k = config.num_experts, config.top_k_experts
    experts = np.sort([rng.choice(count, k, replace=False) for _ in range(TOKENS)])[None]
    x = mx.random.normal((1, TOKENS, config.hidden_size), key=mx.random.key(2))
    chosen = chosen_of(experts)
    parts = [part_of(whole, config, rank)(x, chosen) for rank in range(SIZE)]
    np.testing.assert_allclose(np.array(sum(parts)), np.array(whole(x, chosen)), atol=CLOSE)


def test_a_machine_adds_nothing_for_tokens_that_chose_others_experts(config, whole):
    x = mx.random.normal((1, 2, config.hidden_size), key=mx.random.key(2))
    chosen = chosen_of(
        np.array([[[0, 1], [4, 7]]])
    )  # the first and the last two machines have them
    parts = [np.array(part_of(whole, config, rank)(x, chosen)) for rank in range(SIZE)]
    has_added = [[bool(part[0, token].any()) for part in parts] for token in range(2)]
    assert has_added == [[True, False, False, False], [False, False, True, True]]


def test_of_26b_two_machines_share_each_expert_and_four_have_whole_ones():
    found = speed_table.inventory(*speed_table.MODELS["26B-A4B, experts 3, others 5, head 6"])
    text = found.args.text_config
    assert Split(text, 2, 0).experts is None
    assert [Split(text, 4, rank).experts for rank in (0, 3)] == [(0, 32), (96, 128)]
