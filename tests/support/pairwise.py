"""Few cases that still hold every pair of values: most defects need two factors to show."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(**factors: list[Any]) -> list[dict[str, Any]]:
    """Choose combinations greedily until each two values of two factors meet in one of them."""
    names = list(factors)
    missing = {
        ((one, a), (other, b))
        for one, other in combinations(range(len(names)), 2)
        for a, b in product(range(len(factors[names[one]])), range(len(factors[names[other]])))
    }
    cases = []
    while missing:
        chosen = dict(min(missing))
        for factor, name in enumerate(names):
            if factor not in chosen:
                gains = [
                    len(_pairs({**chosen, factor: value}) & missing)
                    for value in range(len(factors[name]))
                ]
                chosen[factor] = gains.index(max(gains))
        missing -= _pairs(chosen)
        cases.append({name: factors[name][chosen[i]] for i, name in enumerate(names)})
    return cases


def in_turn(first: Sequence[Any], *others: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Choose each value of the first factor once, with the values of the others in turn."""
    return [(value, *(other[i % len(other)] for other in others)) for i, value in enumerate(first)]


def _pairs(chosen: dict[int, int]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    return set(combinations(sorted(chosen.items()), 2))
