"""Which positions a query may see: one mask per layer type, over cached and new keys together.

The causal and windowed parts come from the caches, which know their own order and padding; this
file adds the blocks of image and video tokens that see each other whole. It knows no weights.
B batch, L new positions, K keys (cached ones first, the L new ones last).
Source: transformers 5.23.0, modeling_gemma4.py, create_masks_for_vision_model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import RotatingKVCache

from .config import FULL, SLIDING, TextConfig

# What scaled_dot_product_attention takes: booleans, "causal", or None where every key is seen.
Mask = mx.array | str | None


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
        entry = entries[FULL]
        # A bounded cache returns only what may be seen: its own window would hide the sinks.
        window = entry.max_size + length if isinstance(entry, RotatingKVCache) else None
        masks[FULL] = entry.make_mask(length, return_array=False, window_size=window)
    if SLIDING in entries:
        window = config.sliding_window
        mask = entries[SLIDING].make_mask(length, return_array=has_blocks, window_size=window)
        masks[SLIDING] = mask if is_vision is None else join_blocks(mask, is_vision)
    return masks


def join_blocks(mask: mx.array, is_vision: np.ndarray) -> mx.array:
    """Let each contiguous run of vision tokens see its own later positions.

    Shapes: mask bool [L, K] or [B, 1, L, K], is_vision bool [B, L] -> bool [B, 1, L, K].
    Earlier positions are left as they are: the window cuts them, and never cuts later ones.
    """
    length = is_vision.shape[1]
    before = np.pad(is_vision[:, :-1], ((0, 0), (1, 0)))
    runs = np.where(is_vision, np.cumsum(is_vision & ~before, axis=1), 0)
    same = (runs[:, :, None] == runs[:, None, :]) & is_vision[:, :, None]
    later = np.triu(same, k=1)
    cached = mask.shape[-1] - length
    return mask | mx.array(np.pad(later, ((0, 0), (0, 0), (cached, 0)))[:, None])


def last_row(mask: Mask) -> Mask:
    """Keep the last position's row; a causal mask hides nothing from it."""
    return mask[..., -1:, :] if isinstance(mask, mx.array) else None
