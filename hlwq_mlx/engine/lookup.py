"""Prompt lookup: the answer goes on as it, or its prompt, did behind the same tokens before.

It needs no weights, and pays where an answer repeats: quoting, editing, code.
L tokens of prompt and answer.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .draft import Seen

LONGEST = 8  # tokens that are compared: more seldom tell two places apart
SHORTEST = 2


class Lookup:
    """Drafts what followed the longest repeated end of the text, at its latest place."""

    needs_hidden = False
    cost = 0.0

    def draft(self, seen: Seen, count: int) -> Sequence[int]:
        """Return up to `count` tokens."""
        place = find(seen.ids)
        return [] if place is None else seen.ids[place : place + count].tolist()


def find(ids: NDArray[np.int64]) -> int | None:
    """Return where an earlier place like the end of `ids` goes on, or None if there is none.

    Of all places that are equal in SHORTEST tokens or more, it is the latest of those that are
    equal in the most, up to LONGEST.
    """
    found = None
    # Positions behind an earlier token that equals the last one, the latest first.
    places = np.flatnonzero(ids[:-1] == ids[-1])[::-1] + 1
    for length in range(2, LONGEST + 1):
        places = places[places >= length]
        places = places[ids[places - length] == ids[len(ids) - length]]
        if not len(places):
            break
        if length >= SHORTEST:
            found = int(places[0])
    return found
