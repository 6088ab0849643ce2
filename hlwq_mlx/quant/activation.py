"""The input of a layer as products take it: x and its rotation, made once for all that share it.

Which function rotates is the backend's choice, not made here. M rows of x, K columns padded to a
multiple of 128.
"""

from collections.abc import Callable
from typing import Union

import mlx.core as mx

from . import codec
from .packing import BLOCK

Rotate = Callable[[mx.array], mx.array]
Input = Union[mx.array, "Activation"]
_FLOATING = (mx.float32, mx.float16, mx.bfloat16)


class Activation:
    """One x and what has been made of it."""

    def __init__(self, plain: mx.array, rotated: mx.array | None = None) -> None:
        """Keep x [..., columns], and its rotation float32 [M, K] if a kernel has made it."""
        self.plain = plain
        self.dtype = plain.dtype  # which products keep
        self.columns: int = plain.shape[-1] if plain.ndim else 0
        self._rotated = rotated

    @classmethod
    def of(cls, x: Input) -> "Activation":
        """Return x as an activation, itself if it is one."""
        return x if isinstance(x, Activation) else cls(x)

    @property
    def rows(self) -> int:
        """M: how many rows there are, over all leading axes."""
        return self.plain.size // max(1, self.columns)

    def rotated(self, rotate: Rotate) -> mx.array:
        """Return x [..., K], padded with zeros and rotated by `rotate`, unless it is already."""
        if self._rotated is None:
            self._rotated = rotate(self._padded())
        if self._rotated.ndim != self.plain.ndim:
            self._rotated = self._rotated.reshape(*self.plain.shape[:-1], -1)
        return self._rotated

    def rotated_rows(self, rotate: Rotate) -> mx.array:
        """Return what `rotated` does as a matrix [M, K]."""
        if self._rotated is None:
            self._rotated = rotate(_rows(self._padded()))
        return self._rotated if self._rotated.ndim == 2 else _rows(self._rotated)

    def _padded(self) -> mx.array:
        padding = -self.columns % BLOCK
        if not padding:
            return self.plain
        return mx.pad(self.plain, [(0, 0)] * (self.plain.ndim - 1) + [(0, padding)])

    def check(self, where: str, K: int) -> None:
        """Raise ShapeError, whose text begins with `where`, when x does not fit K columns."""
        padded = self.columns + -self.columns % BLOCK
        if padded == K and self.dtype in _FLOATING:
            return
        codec.check_product(where, self.plain, self.columns if padded == K else K)


def _rows(x: mx.array) -> mx.array:
    """Return x as a matrix."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
