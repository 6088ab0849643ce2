"""How many tokens are drafted: counted in passes, for drafts that are never right, and ever."""

import numpy as np
import pytest

from hlwq_mlx.engine.pace import Credit, Pace
from hlwq_mlx.engine.speculate import CHECK_COST

MOST = 4


def run(chance, cost, tokens, seed=0, credit=None, once=0.0):
    """Return what an answer costs, in passes of one token, if drafts are accepted so often."""
    pace, draw = Pace(credit or Credit()), np.random.default_rng(seed)
    made, passes, drafted, checks = 1, 0, 0, 0
    while made < tokens:
        count = pace.count(min(MOST, tokens - made - 1), cost, once)
        accepted = int(np.cumprod(draw.random(count) < chance).sum())
        if count:
            pace.learn(count, accepted, cost, once)
            checks += 1
        for _ in range(accepted + 1):
            pace.take()
        made, passes, drafted = made + accepted + 1, passes + 1, drafted + count
    return passes + cost * drafted + once * checks


@pytest.mark.parametrize("cost", [0.01, 0.05, 0.1, 0.3, 1.0, 1.5])
@pytest.mark.parametrize("tokens", [20, 100, 1000])
def test_drafts_that_are_never_right_cost_at_most_3_percent(cost, tokens):
    assert tokens - 1 <= run(0.0, cost, tokens) <= 1.03 * tokens


@pytest.mark.parametrize("once", [CHECK_COST, 2 * CHECK_COST])
@pytest.mark.parametrize("cost", [0.01, 0.05, 0.1, 0.3, 1.0, 1.5])
@pytest.mark.parametrize("tokens", [50, 100, 1000])
def test_checks_that_cost_something_themselves_cost_no_more(cost, tokens, once):
    assert run(0.0, cost, tokens, once=once) - (tokens - 1) <= 0.03 * tokens


@pytest.mark.parametrize("cost", [0.01, 0.05, 0.1, 0.3, 1.0, 1.5])
@pytest.mark.parametrize("tokens", [2, 3, 5])
def test_short_answers_together_lose_no_more_than_a_long_one(cost, tokens):
    credit, passes = Credit(), 0.0
    for _ in range(60 // tokens):
        passes += run(0.0, cost, tokens, credit=credit)
    assert passes - 60 // tokens * (tokens - 1) <= 0.03 * 60


def test_an_answer_goes_on_with_what_the_one_before_it_saved():
    lucky, unlucky = Credit(), Credit()
    Pace(lucky).learn(MOST, MOST, 0.1)
    for credit in (lucky, unlucky):
        Pace(credit).learn(MOST, 0, 0.2, once=0.15)
    assert Pace(unlucky).count(MOST, 0.1) == 0
    assert Pace(lucky).count(MOST, 0.1) == Pace(Credit()).count(MOST, 0.1) > 0


def test_answers_at_once_lose_no_more_than_one_after_the_other():
    """As those of a server whose others come and go."""
    both = [Pace(credit := Credit()), Pace(credit)]
    while any(pace.count(MOST, 0.1) for pace in both):
        for pace in both:
            pace.learn(pace.count(MOST, 0.1), 0, 0.1)
    assert credit.passes >= 0


@pytest.mark.parametrize("chance", [0.1, 0.3, 0.5])
def test_drafts_that_are_seldom_right_cost_no_more(chance):
    for cost in (0.05, 0.3, 1.0):
        assert max(run(chance, cost, 300, seed) for seed in range(5)) <= 1.03 * 300


def test_drafts_that_are_right_are_as_many_as_may_be():
    assert run(1.0, 0.05, 500) < 500 / (MOST + 1) * (1 + 0.05 * MOST) * 1.05


def test_it_recovers_from_bad_luck_and_gives_up_soon():
    pace = Pace(Credit())
    tried = []
    for _ in range(200):
        tried.append(pace.count(MOST, 0.05))
        pace.learn(tried[-1], 0, 0.05)
        pace.take()
    assert set(tried[20:]) == {0, 1}
    assert sum(tried[20:]) <= 0.2 * 180
    while not pace.count(MOST, 0.05):
        pace.take()
    for _ in range(8):  # now all that is drafted is right
        count = pace.count(MOST, 0.05)
        pace.learn(count, count, 0.05)
        for _ in range(count + 1):
            pace.take()
    assert pace.count(MOST, 0.05) == MOST


def test_what_checking_costs_by_itself_is_lost_once_a_pass():
    pace = Pace(Credit(0.5))
    assert [pace.count(MOST, 0.1, once) for once in (0.0, 0.2, 0.41)] == [3, 3, 0]
    pace.learn(3, 0, 0.1, once=0.2)
    assert pace.count(MOST, 0.001, once=0.01) == 0
    pace.take()
    assert pace.count(MOST, 0.001) > 0


def test_tokens_that_cost_a_pass_are_not_drafted():
    pace = Pace(Credit())
    assert [pace.count(MOST, cost) for cost in (0.02, 1.0)] == [MOST, 0]
