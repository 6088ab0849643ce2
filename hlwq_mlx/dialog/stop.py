"""Convert token ids to the text of an answer, up to the first stop string.

The text comes in pieces. Their sum does not depend on how characters and stop strings are split
into tokens.
"""

from collections.abc import Sequence
from functools import lru_cache

from .interface import DetokenizerLike


def overlap(text: str, stops: Sequence[str]) -> int:
    """Return the length of the longest suffix of the text that a stop string begins with."""
    longest, firsts = _outline(tuple(stops))
    for at in range(max(0, len(text) - longest), len(text)):
        if text[at] in firsts and any(stop.startswith(text[at:]) for stop in stops):
            return len(text) - at
    return 0


@lru_cache
def _outline(stops: tuple[str, ...]) -> tuple[int, frozenset[str]]:
    """Return how much of a stop string a suffix can be, and the letters that they begin with."""
    return max(map(len, stops), default=1) - 1, frozenset(stop[:1] for stop in stops)


class StopStrings:
    """Passes text through and withholds what could be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.is_stopped = False

    def feed(self, text: str) -> str:
        """Take the next piece and return what is certain to belong to the answer."""
        if not self._stops:
            return text
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        self.is_stopped = bool(found)
        if found:
            return self._release(min(found))
        return self._release(len(self._held) - overlap(self._held, self._stops))

    def flush(self) -> str:
        """Return what was withheld, at the end of the stream."""
        return self._release(len(self._held))

    def _release(self, size: int) -> str:
        released, self._held = self._held[:size], self._held[size:]
        return released


class AnswerText:
    """Turns the ids of an answer into text with mlx-lm's streaming detokenizer."""

    def __init__(self, detokenizer: DetokenizerLike, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found; nothing after it belongs to the answer."""
        return self._stops.is_stopped

    def add(self, token: int) -> str:
        """Take a token and return the text that is certain now."""
        self._detokenizer.add_token(token)
        return self._stops.feed(self._detokenizer.last_segment)

    def finish(self) -> str:
        """Return the rest of the text."""
        self._detokenizer.finalize()
        rest = self._stops.feed(self._detokenizer.last_segment)
        return rest if self.is_stopped else rest + self._stops.flush()
