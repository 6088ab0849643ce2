"""What a prompt and its answer left in the caches, for the next prompt that begins with them.

A conversation's prompt repeats all that was said. Sliding layers forget what left their window, so
caches cannot be taken back to an earlier place: they serve a prompt that goes on where they end,
and any other begins anew.
"""

from collections.abc import Hashable, Sequence
from typing import Any

from .request import Prepared


class PrefixCache:
    """Keeps the caches of the last prompt between two; one conversation has one."""

    def __init__(self) -> None:
        self._caches: list[Any] | None = None
        self._ids: list[int] = []
        self._media: tuple[Hashable, ...] = ()

    def take(self, prompt: Prepared) -> tuple[list[Any] | None, int]:
        """Hand over the caches and how many of the prompt's tokens they hold; if unfit, None and 0.

        They are held no longer: a prompt that fails leaves nothing behind.
        """
        caches, ids = self._caches, self._ids
        self._caches, self._ids = None, []
        is_longer = caches is not None and len(ids) < len(prompt.ids)
        same_media = prompt.media[: len(self._media)] == self._media
        self._media = prompt.media
        if not is_longer or not same_media or list(prompt.ids[: len(ids)]) != ids:
            return None, 0
        return caches, len(ids)

    def keep(self, caches: list[Any], ids: Sequence[int]) -> None:
        """Keep the caches. They cover the first `offset` ids; the last one may not be cached."""
        self._caches, self._ids = caches, list(ids[: caches[0].offset])

    def forget(self) -> None:
        """Keep nothing: the next prompt begins anew."""
        self._caches, self._ids, self._media = None, [], ()
