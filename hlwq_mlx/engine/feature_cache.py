"""Features of media that were encoded before, for prompts that show the same media again.

Each prompt of a conversation repeats its pictures. Features are found by the mark of what a tower
saw, and the least recently used ones go when there are too many bytes.
"""

from collections import OrderedDict

import mlx.core as mx

MAX_BYTES = 64 << 20  # a picture's 280 soft tokens take 2.8 MB in float32

Features = tuple[mx.array, ...]


class FeatureCache:
    """Keeps the features of media, at most `max_bytes` of them; one thread uses it."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, Features] = OrderedDict()
        self.nbytes = 0

    def get(self, mark: int) -> Features | None:
        """Return the features of a medium, or None."""
        found = self._kept.get(mark)
        if found is not None:
            self._kept.move_to_end(mark)
        return found

    def put(self, mark: int, features: Features) -> None:
        """Keep the features of a medium."""
        self._kept[mark] = features
        self.nbytes += _size(features)
        while self.nbytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.nbytes -= _size(oldest)

    def clear(self) -> None:
        """Forget all features."""
        self._kept.clear()
        self.nbytes = 0


def _size(features: Features) -> int:
    return sum(array.nbytes for array in features)
