"""Prompt lookup against its definition."""

import numpy as np

from hlwq_mlx.engine.draft import Seen
from hlwq_mlx.engine.lookup import LONGEST, SHORTEST, Lookup, find


def slowly(ids):
    """The latest of the places that share the longest end with the text."""
    best, found = 0, None
    for place in range(1, len(ids)):
        shared = 0
        while shared < min(LONGEST, place) and ids[place - 1 - shared] == ids[-1 - shared]:
            shared += 1
        if shared >= max(best, SHORTEST):
            best, found = shared, place
    return found


def test_the_longest_end_that_came_before_at_its_latest_place():
    draw = np.random.default_rng(6)
    found = 0
    for length in range(1, 400):
        ids = draw.integers(-2, 5, length % 60 + 1).repeat(length % 3 + 1)
        assert find(ids) == slowly(ids.tolist())
        found += find(ids) is not None
    assert 200 < found < 400


def test_what_followed_is_drafted_up_to_the_end_of_the_text():
    ids = np.array([5, 6, 7, 8, 9, 1, 5, 6])
    draft = Lookup().draft
    assert draft(Seen(ids, [], None), 2) == [7, 8]
    assert draft(Seen(ids, [], None), 99) == [7, 8, 9, 1, 5, 6]
    assert draft(Seen(ids[:5], [], None), 4) == []
