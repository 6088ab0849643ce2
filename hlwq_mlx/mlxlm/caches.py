"""mlx-lm's own caches for our model, which stock mlx-lm trims, merges and saves.

Our own engine uses `gemma4.caches`; both offer what the model asks of a cache.
"""

from typing import Any

from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

from ..gemma4.caches import Caching
from ..gemma4.config import FULL, TextConfig


def make_caches(config: TextConfig, caching: Caching) -> list[Any]:
    """Make an empty cache for each layer that makes keys and values; full layers may code them."""
    return [
        _full(caching) if layer_type == FULL else RotatingKVCache(config.sliding_window, keep=0)
        for layer_type in config.layer_types[: config.first_shared]
    ]


def _full(caching: Caching) -> Any:
    if caching.kv_bits is not None:
        return QuantizedKVCache(caching.kv_group_size, caching.kv_bits)
    return KVCache()
