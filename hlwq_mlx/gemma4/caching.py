"""How keys and values are kept: a cache for each layer that makes some, of mlx-lm's kinds.

A sliding layer keeps its window, which is small, as it is. A full-attention layer keeps every
position, and may keep them coded or keep the last ones only. Layers that share another's keys
attend to what its cache returns, in whatever form.
"""

from dataclasses import dataclass
from typing import Any

from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

from ..errors import RequestError
from .config import FULL, TextConfig

KV_BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
SINKS = 4  # first positions that a bounded cache never drops, as mlx-lm's


@dataclass(frozen=True)
class Caching:
    """How full-attention layers keep keys and values.

    `kv_bits` codes them by MLX's affine quantization; `max_kv_size` keeps the first positions and
    the last ones, so many in all, and forgets what lies between.
    Raises: RequestError naming the option, its limits and the value.
    """

    kv_bits: int | None = None
    kv_group_size: int = 64
    max_kv_size: int | None = None

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("kv_bits", self.kv_bits, KV_BITS),
            ("kv_group_size", self.kv_group_size, GROUP_SIZES),
        ):
            if value is not None and value not in accepted:
                raise RequestError(
                    f"[{name}] needed one of {', '.join(map(str, accepted))}, got {value}. "
                    "Choose one of these."
                )
        if self.max_kv_size is None:
            return
        if self.max_kv_size <= SINKS:
            raise RequestError(
                f"[max_kv_size] needed more than {SINKS}, got {self.max_kv_size}. "
                "It counts the positions that full attention remembers."
            )
        if self.kv_bits is not None:
            raise RequestError(
                "[max_kv_size] needed to be alone, got kv_bits too. A cache that forgets cannot "
                "be coded; leave one of them out."
            )


WHOLE = Caching()


def make_caches(config: TextConfig, caching: Caching) -> list[Any]:
    """Make an empty cache for each layer that makes keys and values.

    Raises: RequestError when a group does not divide a head.
    """
    if caching.kv_bits is not None and config.global_head_dim % caching.kv_group_size:
        raise RequestError(
            f"[kv_group_size] needed a divisor of {config.global_head_dim}, the size of a head, "
            f"got {caching.kv_group_size}. Choose a smaller group."
        )
    return [
        _full(caching) if layer_type == FULL else RotatingKVCache(config.sliding_window, keep=0)
        for layer_type in config.layer_types[: config.first_shared]
    ]


def _full(caching: Caching) -> Any:
    if caching.kv_bits is not None:
        return QuantizedKVCache(caching.kv_group_size, caching.kv_bits)
    if caching.max_kv_size is not None:
        return RotatingKVCache(caching.max_kv_size, keep=SINKS)
    return KVCache()
