"""Token ids to the text of an answer, which ends before the first stop string in it.

The text comes in pieces that join to the whole, however its bytes and its stop strings are split
into tokens.
"""

from collections.abc import Sequence
from typing import Any


class StopStrings:
    """Passes text through and withholds what could be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.is_stopped = False

    def feed(self, text: str) -> str:
        """Take the next piece and return what is certain to belong to the answer."""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        self.is_stopped = bool(found)
        if found:
            return self._release(min(found))
        return self._release(len(self._held) - max(map(self._overlap, self._stops), default=0))

    def flush(self) -> str:
        """Return what was withheld, at the end of the stream."""
        return self._release(len(self._held))

    def _release(self, size: int) -> str:
        released, self._held = self._held[:size], self._held[size:]
        return released

    def _overlap(self, stop: str) -> int:
        """Return how long a tail of the held text begins this stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)


class AnswerText:
    """Turns the ids of an answer into text with mlx-lm's streaming detokenizer."""

    def __init__(self, detokenizer: Any, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has come; nothing after it belongs to the answer."""
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
