"""That few cases hold every pair of values, which the tests of kernels rely on."""

from itertools import combinations, product

import pytest
from pairwise import in_turn, pairwise


@pytest.mark.parametrize("sizes", [(2, 3), (2, 2, 2), (8, 6, 7, 5, 4, 2), (1, 4, 1)])
def test_every_pair_meets_in_fewer_cases_than_the_product(sizes):
    factors = {f"f{i}": [f"{i}.{value}" for value in range(n)] for i, n in enumerate(sizes)}
    cases = pairwise(**factors)
    for one, other in combinations(factors, 2):
        assert {(case[one], case[other]) for case in cases} == {
            *product(factors[one], factors[other])
        }
    everything = list(product(*factors.values()))
    assert len(cases) == len({tuple(case.values()) for case in cases}) <= len(everything)
    if len(sizes) > 3:
        assert len(cases) < len(everything) / 100


def test_the_same_factors_give_the_same_cases_named_in_order():
    factors = {"bits": [1, 2, 3], "M": [1, 8], "K": [128, 256, 384]}
    assert pairwise(**factors) == pairwise(**factors)
    assert all(list(case) == list(factors) for case in pairwise(**factors))


def test_each_value_of_the_first_factor_once_with_the_others_in_turn():
    assert in_turn([1, 2, 3], "ab", [0]) == [(1, "a", 0), (2, "b", 0), (3, "a", 0)]
