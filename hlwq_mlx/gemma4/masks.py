"""Which positions a query may see: one mask per layer type, over cached and new keys together.

The causal and windowed parts come from the caches, which know their own order and padding; this
file adds the blocks of image and video tokens that see each other whole. It knows no weights.
B batch, L new positions, K keys (cached ones first, the L new ones last).
Source: transformers 5.23.0, modeling_gemma4.py, create_masks_for_vision_model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .config import FULL, SLIDING, TextConfig


@dataclass(frozen=True)
class Causal:
    """Every query sees the keys up to its own, or the last `window` of them.

    Keys lie in the order of their positions, and the last key belongs to the last query. One object
    serves all layers of a pass, so that an array is made once.
    """

    window: int | None
    _arrays: dict[tuple[int, int], mx.array] = field(default_factory=dict, repr=False)

    def span(self, start: int, stop: int, cached: int) -> slice:
        """Return the keys that queries `start` to `stop` see, behind `cached` keys."""
        first = 0 if self.window is None else max(0, cached + start + 1 - self.window)
        return slice(first, cached + stop)

    def part(self, start: int, stop: int, cached: int) -> tuple[slice, "Causal"]:
        """Return the keys that queries `start` to `stop` see, and their mask over these keys.

        It keeps its form, since the last key is still the last query's own.
        """
        return self.span(start, stop, cached), self

    def array(self, L: int, K: int) -> mx.array:
        """Return it as booleans [L, K]."""
        if (L, K) not in self._arrays:
            seen = mx.tri(L, K, K - L, mx.bool_)
            if self.window is not None:
                seen = seen & ~mx.tri(L, K, K - L - self.window, mx.bool_)
            self._arrays[L, K] = seen
        return self._arrays[L, K]

    def within(self, L: int, K: int) -> "mx.array | str | None":
        """Return what scaled_dot_product_attention takes for L queries over the K keys they see."""
        if L == 1:
            return None
        return self.array(L, K) if self.window is not None and self.window < K else "causal"


@dataclass(frozen=True)
class Seen:
    """Which query sees which key, on the host: booleans [L, K] or [B, 1, L, K].

    One object serves all layers of a pass, as Causal does.
    """

    pairs: NDArray[np.bool_]
    _parts: dict[tuple[int, int], tuple[slice, mx.array]] = field(default_factory=dict, repr=False)

    def part(self, start: int, stop: int, cached: int) -> tuple[slice, mx.array]:
        """Return the keys that queries `start` to `stop` see, and their mask over these keys."""
        if (start, stop) not in self._parts:
            rows = self.pairs[..., start:stop, :]
            seen = np.flatnonzero(rows.any(axis=tuple(range(rows.ndim - 1))))
            # Padding sees nothing.
            span = slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, rows.shape[-1])
            self._parts[start, stop] = span, mx.array(rows[..., span])
        return self._parts[start, stop]


# Booleans [L, K] or [B, 1, L, K], what tells a part's keys, or None where each query sees each key.
Mask = mx.array | Causal | Seen | None


def attention_masks(
    config: TextConfig, cache: Sequence[Any], length: int, is_vision: np.ndarray | None
) -> Mapping[str, Mask]:
    """Make the mask of each layer type for `length` new positions, before the caches take them.

    `is_vision` (bool [B, L]) marks the tokens that form bidirectional blocks, None if there are
    none. Blocks act in sliding layers alone: full layers stay causal.
    """
    entries = dict(zip(config.layer_types, cache, strict=False))
    has_blocks = is_vision is not None
    masks: dict[str, Mask] = {}
    if FULL in entries:
        masks[FULL] = _known(entries[FULL].make_mask(length, return_array=False, window_size=None))
    if SLIDING in entries:
        window = config.sliding_window
        entry = entries[SLIDING]
        mask = _known(entry.make_mask(length, return_array=has_blocks, window_size=window))
        if isinstance(mask, Causal) and has_blocks:
            # The cache returns at most window - 1 earlier positions, and the new ones.
            mask = mask.array(length, min(int(entry.offset), window - 1) + length)
        masks[SLIDING] = mask if is_vision is None else join_blocks(mask, is_vision)
    return masks


def _known(mask: Any) -> Mask:
    """Convert a mask from mlx-lm's caches, where a string means causal, into ours."""
    return Causal(None) if isinstance(mask, str) else mask


def join_blocks(mask: Any, is_vision: np.ndarray) -> Seen:
    """Add to a mask that each contiguous run of vision tokens sees its own later positions.

    Earlier positions stay as the mask has them, because the window cuts those alone.
    Shapes: mask bool [L, K] or [B, 1, L, K], is_vision bool [B, L] -> bool [B, 1, L, K].
    """
    length = is_vision.shape[1]
    before = np.pad(is_vision[:, :-1], ((0, 0), (1, 0)))
    runs = np.where(is_vision, np.cumsum(is_vision & ~before, axis=1), 0)
    same = (runs[:, :, None] == runs[:, None, :]) & is_vision[:, :, None]
    later = np.triu(same, k=1)
    cached = mask.shape[-1] - length
    return Seen(np.array(mask) | np.pad(later, ((0, 0), (0, 0), (cached, 0)))[:, None])
