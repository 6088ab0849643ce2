"""What a prompt and its answer left in the caches, for the next prompt that begins with them.

A conversation's prompt repeats all that was said. Sliding layers forget what left their window, so
caches cannot be taken back to an earlier place: they serve a prompt that goes on where they end,
and any other begins anew.
"""

from collections.abc import Hashable, Sequence
from typing import Any


class Prefix:
    """Holds the caches of the last prompt between two; one conversation has one.

    `seen` is what was made of that prompt's media, in their order.
    """

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self._caches: list[Any] | None = None
        self._ids: list[int] = []
        self._media: tuple[Hashable, ...] = ()

    def take(self, prompt: Sequence[int]) -> tuple[list[Any] | None, int]:
        """Hand over the caches and how many of a prompt's tokens are in them; none fit: None, 0.

        They are held no longer: a prompt that fails leaves nothing behind.
        """
        caches, ids = self._caches, self._ids
        self._caches, self._ids = None, []
        if caches is None or len(ids) >= len(prompt) or list(prompt[: len(ids)]) != ids:
            return None, 0
        return caches, len(ids)

    def keep(self, caches: list[Any], ids: Sequence[int]) -> None:
        """Hold caches; of the ids, the prompt's and the answer's, as many are in them as they say.

        The last of an answer may not be.
        """
        self._caches, self._ids = caches, list(ids[: caches[0].offset])

    def forget(self) -> None:
        """Hold nothing: the next prompt begins anew."""
        self.seen.clear()
        self._caches, self._ids, self._media = None, [], ()

    def show(self, media: Sequence[Hashable]) -> None:
        """Say what the soft tokens of the next prompt stand for, in order: their ids do not.

        Caches that hold something else are dropped.
        """
        if tuple(media[: len(self._media)]) != self._media:
            self._caches = None
        self._media = tuple(media)
