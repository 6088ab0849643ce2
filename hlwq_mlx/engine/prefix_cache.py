"""The caches of the last prompt and its answer, for the next prompt if it begins with the same ids.

Each prompt of a conversation repeats what was said before. Sliding layers forget positions that
left their window, so caches cannot go back to an earlier position: a prompt that continues where
they end uses them, and any other is read from its beginning.
"""

from collections.abc import Sequence
from typing import Any

from .request import Prepared


class PrefixCache:
    """Keeps the caches of the last prompt between two; one conversation has one."""

    def __init__(self) -> None:
        self._caches: list[Any] | None = None
        self._keys: list[int] = []

    def take(self, prompt: Prepared) -> tuple[list[Any] | None, int]:
        """Return the caches and how many of the prompt's tokens they hold, or None and 0.

        They are no longer kept here, so that a prompt that fails leaves nothing behind.
        """
        caches, keys = self._caches, self._keys
        self.forget()
        asked = prompt.keys or prompt.ids
        is_longer = caches is not None and len(keys) < len(asked)
        if not is_longer or list(asked[: len(keys)]) != keys:
            return None, 0
        return caches, len(keys)

    def keep(self, caches: list[Any], keys: Sequence[int]) -> None:
        """Keep the caches. They cover the first `offset` keys; the last may not be cached yet."""
        self._caches, self._keys = caches, list(keys[: caches[0].offset])

    def forget(self) -> None:
        """Drop the caches: the next prompt is read from its beginning."""
        self._caches, self._keys = None, []
