"""mlx-lm's own caches for our model, which stock mlx-lm trims, merges and saves.

Our own engine uses `gemma4.caches`; both offer what the model asks of a cache.
"""

from typing import Any

from mlx_lm.models.cache import KVCache, RotatingKVCache

from ..gemma4.config import FULL, TextConfig


def make_caches(config: TextConfig) -> list[Any]:
    """Make an empty cache for each layer that makes keys and values."""
    return [
        KVCache() if layer_type == FULL else RotatingKVCache(config.sliding_window, keep=0)
        for layer_type in config.layer_types[: config.first_shared]
    ]
