"""A rendered prompt as text that remembers where a person spelled a control token."""

import itertools
from typing import Self


class Spelled(str):
    """Text that no token may span at its `breaks`, so that it is encoded piece by piece.

    It is a str to everyone else: what is made of it by joining or cutting has no breaks.
    """

    breaks: tuple[int, ...]

    def __new__(cls, text: str, breaks: tuple[int, ...] = ()) -> Self:
        made = super().__new__(cls, text)
        made.breaks = breaks
        return made

    def pieces(self) -> list[str]:
        """Return the text, cut at its breaks."""
        edges = [0, *self.breaks, len(self)]
        return [self[begin:end] for begin, end in itertools.pairwise(edges)]
