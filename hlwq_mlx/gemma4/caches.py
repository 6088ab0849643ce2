"""The caches: keys and values of past positions, for each layer that makes some.

A cache holds one sequence, in the order of its positions; `Rows` lets several step together. A
sliding layer keeps its window. A full-attention layer keeps every position, and may code them or
keep only the first and the last ones. Layers that share another's keys attend to what its cache
returns. mlx-lm's caches have the same interface (`offset`, `make_mask`, `update_and_fetch`), so
that stock mlx-lm can bring its own.
B batch, L new positions, D head dimensions.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import mlx.core as mx

from ..errors import RequestError
from .config import FULL, TextConfig
from .masks import Causal, Mask

KV_BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
SINKS = 4  # first positions that a bounded cache never drops
STEP = 256  # positions by which a buffer grows
DROPPED_SHARE = 8  # a full bounded cache drops an eighth at once: a drop copies all that is left
ANY = 1 << 30  # positions

Arrays = tuple[mx.array, ...]


@dataclass(frozen=True)
class Caching:
    """Options of the caches of full-attention layers.

    `kv_bits` codes them by MLX's affine quantization; `max_kv_size` keeps the first positions and
    the last ones, at most so many in all, and forgets what lies between.
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


class Cache(Protocol):
    """Keys and values of one layer; mlx-lm's caches are of this form too."""

    offset: Any  # positions seen so far: a number, or one for each sequence

    @property
    def state(self) -> Any:
        """The arrays, to be evaluated."""
        ...

    def make_mask(self, length: int, /, *, return_array: bool, window_size: int | None) -> Any:
        """Return the mask of the next `length` positions; call it before the cache takes them."""
        ...

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Take new positions and return all that their queries may see."""
        ...


class Mark(NamedTuple):
    """What a cache held at a moment.

    It keeps the arrays as they were: drop it before later ones are evaluated, or MLX, which appends
    in place where nobody holds the earlier array, copies them.
    """

    offset: int
    arrays: Arrays
    start: int
    stop: int


class _Buffer:
    """Arrays that grow at their end and lose positions at their front.

    Every array is [1, heads, positions, width]. It grows by `STEP` positions at once, so that most
    appends write in place; `spare` more than needed, so that a window of whole steps does too.
    """

    def __init__(self, spare: int = 0) -> None:
        self.arrays: Arrays = ()
        self._spare = spare
        self._start = self._stop = 0

    def __len__(self) -> int:
        return self._stop - self._start

    def append(self, new: Arrays) -> None:
        """Take more positions."""
        length = new[0].shape[2]
        if not self.arrays or self._stop + length > self.arrays[0].shape[2]:
            self._make_room(new, length)
        stop = self._stop + length
        # Of a copy of the handle, so that a mark keeps what was: the memory is the same.
        grown = tuple(copy.copy(array) for array in self.arrays)
        for array, more in zip(grown, new, strict=True):
            array[:, :, self._stop : stop] = more
        self.arrays, self._stop = grown, stop

    def held(self, most: int | None = None) -> Arrays:
        """Return what is held, oldest first, or the last `most` positions of it."""
        start = self._start if most is None else max(self._start, self._stop - most)
        return tuple(array[:, :, start : self._stop] for array in self.arrays)

    def keep_last(self, count: int) -> None:
        """Drop all but the last positions."""
        self._start = max(self._start, self._stop - count)

    def copy(self, start: int, stop: int) -> Arrays:
        """Copy a part of what is held; a view would keep the whole buffer in memory."""
        places = mx.arange(self._start + start, self._start + stop)
        return tuple(mx.take(array, places, axis=2) for array in self.arrays)

    def fill(self, parts: Sequence[Arrays]) -> None:
        """Replace what is held by the parts, one behind the other, with room for more."""
        count = sum(part[0].shape[2] for part in parts)
        self.arrays = tuple(
            mx.concatenate([*arrays, _zeros(arrays[0], _capacity(count) - count)], axis=2)
            for arrays in zip(*parts, strict=True)
        )
        self._start, self._stop = 0, count

    def drop_last(self, count: int) -> None:
        """Drop the last `count` positions; the next ones are written over them."""
        self._stop -= count

    def mark(self, offset: int) -> Mark:
        """Return what is held, beside the offset that belongs to it."""
        return Mark(offset, self.arrays, self._start, self._stop)

    def undo(self, mark: Mark) -> None:
        """Return to what was held at a mark."""
        _, self.arrays, self._start, self._stop = mark

    def drop(self, first: int, count: int) -> None:
        """Drop `count` positions behind the `first` ones."""
        kept = tuple(
            mx.concatenate([array[:, :, :first], array[:, :, first + count :]], axis=2)
            for array in self.held()
        )
        self.arrays, self._start, self._stop = kept, 0, len(self) - count

    def _make_room(self, new: Arrays, length: int) -> None:
        held, count = self.held() or new, len(self)
        capacity = _capacity(count + length + self._spare)
        self.arrays = tuple(_zeros(array, capacity) for array in new)
        for array, old in zip(self.arrays, held, strict=True):
            array[:, :, :count] = old[:, :, :count]
        self._start, self._stop = 0, count


def _capacity(count: int) -> int:
    """Return how many positions a buffer has for so many that are held."""
    return -(-count // STEP) * STEP


def _zeros(like: mx.array, count: int) -> mx.array:
    return mx.zeros((*like.shape[:2], count, like.shape[3]), like.dtype)


class FullCache:
    """Every position."""

    # Whether a snapshot goes on from an earlier one, or holds all by itself.
    snapshots_join: ClassVar[bool] = True

    def __init__(self) -> None:
        self.offset = 0
        self._buffer = _Buffer()

    def __len__(self) -> int:
        """Count the positions that are held."""
        return len(self._buffer)

    @property
    def state(self) -> Arrays:
        """The arrays, to be evaluated."""
        return self._buffer.arrays

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self._buffer.arrays)

    def make_mask(self, length: int, /, *, return_array: bool, window_size: int | None) -> Mask:
        """Return a causal mask."""
        return Causal(None)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Take new positions and return all.

        Shapes: [1, heads, L, D] -> [1, heads, held, D].
        """
        self._take((keys, values))
        return self.peek()

    def peek(self) -> tuple[Any, Any]:
        """Return all that the next query sees but its own, as `update_and_fetch` does."""
        held = self._buffer.held()
        return held[0], held[1]

    @property
    def room(self) -> int:
        """How many positions one update takes just as so many updates of one would."""
        return ANY

    def rewind(self, count: int) -> None:
        """Drop the last `count` positions, as if they had never been taken.

        `room` bounds them, and at least one position of the last update stays.
        """
        self._buffer.drop_last(count)
        self.offset -= count

    def mark(self) -> Mark:
        """Return what `undo` needs to take back updates that were not evaluated."""
        return self._buffer.mark(self.offset)

    def undo(self, mark: Mark) -> None:
        """Become what the cache was at a mark."""
        self._buffer.undo(mark)
        self.offset = mark.offset

    def snapshot(self, start: int, end: int) -> Arrays | None:
        """Copy what a cache of the first `end` positions holds, or None when it is forgotten.

        Where snapshots join, those of the first `start` positions are left out.
        """
        forgotten = self.offset - len(self)
        if not forgotten <= start <= end <= self.offset:
            return None
        return self._buffer.copy(start - forgotten, end - forgotten)

    def restore(self, snapshots: Sequence[Arrays], end: int) -> None:
        """Make an empty cache one of the first `end` positions.

        It gets the snapshots that join up to there, or the one at `end`.
        """
        self._buffer.fill(snapshots)
        self.offset = end

    def _take(self, new: Arrays) -> None:
        self._buffer.append(new)
        self.offset += new[0].shape[2]


class SlidingCache(FullCache):
    """The last positions: those that the next query sees, without its own.

    What an update brings stays behind them until the next one, so that it can be rewound.
    """

    snapshots_join = False

    def __init__(self, window: int) -> None:
        super().__init__()
        self._window = window
        self._buffer = _Buffer(spare=1)

    def make_mask(self, length: int, /, *, return_array: bool, window_size: int | None) -> Mask:
        """Return a causal mask that sees no farther back than the window."""
        return Causal(self._window)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Take new positions and return them behind the window of the first."""
        self._buffer.keep_last(self._window - 1)
        self._take((keys, values))
        held = self._buffer.held()
        return held[0], held[1]

    def peek(self) -> tuple[Any, Any]:
        """Return the window of the next query, without its own position."""
        held = self._buffer.held(self._window - 1)
        return held[0], held[1]

    def snapshot(self, start: int, end: int) -> Arrays | None:
        """Copy the window of the position behind `end`, or None when it is forgotten."""
        return super().snapshot(max(0, end - self._window + 1), end)


class BoundedCache(FullCache):
    """The first positions and the last ones, at most `max_size` in all between two updates."""

    snapshots_join = False

    def __init__(self, max_size: int) -> None:
        super().__init__()
        self.max_size = max_size

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Take new positions and return them behind what is remembered."""
        surplus = len(self._buffer) + keys.shape[2] - self.max_size
        droppable = len(self._buffer) - SINKS
        if surplus > 0 and droppable > 0:
            count = max(surplus, self.max_size // DROPPED_SHARE)
            self._buffer.drop(SINKS, min(count, droppable))
        return super().update_and_fetch(keys, values)

    @property
    def room(self) -> int:
        """As FullCache's: up to where it is full, or up to where it is full again.

        Behind a prompt it may hold more than its size, and what a drop takes beyond that is less.
        """
        left = self.max_size - len(self)
        return left if left > 0 else max(1, self.max_size // DROPPED_SHARE + left)

    def snapshot(self, start: int, end: int) -> Arrays | None:
        """Copy what is remembered at `end`, or None when it no longer is what it was there."""
        if len(self) == self.offset:
            return super().snapshot(0, end)
        return self._buffer.copy(0, len(self)) if end == self.offset else None


class CodedCache(FullCache):
    """Every position, quantized by MLX in groups along the head dimensions."""

    def __init__(self, bits: int, group_size: int) -> None:
        super().__init__()
        self.bits = bits
        self.group_size = group_size

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Code new positions and return all: twice codes, scales and biases."""
        coded = [
            part
            for array in (keys, values)
            for part in mx.quantize(array, group_size=self.group_size, bits=self.bits)
        ]
        self._take(tuple(coded))
        return self.peek()

    def peek(self) -> tuple[Any, Any]:
        """Return all positions: twice codes, scales and biases."""
        held = self._buffer.held()
        return held[:3], held[3:]


class Rows:
    """The caches of one layer for several sequences, which step together and attend separately.

    Sequences of different lengths need no padding, and each reads the very arrays that it would
    read alone.
    """

    def __init__(self, entries: Sequence[Cache]) -> None:
        self.entries = entries

    @property
    def offset(self) -> list[int]:
        return [entry.offset for entry in self.entries]

    @property
    def state(self) -> list[Any]:
        return [entry.state for entry in self.entries]

    def make_mask(self, length: int, /, *, return_array: bool, window_size: int | None) -> Mask:
        """Return the mask of the sequences: caches of one layer all have the same kind."""
        return self.entries[0].make_mask(length, return_array=return_array, window_size=window_size)


def rewind(caches: Sequence[Any], length: int) -> None:
    """Drop all positions behind the first `length`, as if they had never been taken.

    At least one position of the last update stays, which had no more than there was `room` for.
    """
    for entry in caches:
        entry.rewind(entry.offset - length)


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
        _full(caching) if layer_type == FULL else SlidingCache(config.sliding_window)
        for layer_type in config.layer_types[: config.first_shared]
    ]


def _full(caching: Caching) -> FullCache:
    if caching.kv_bits is not None:
        return CodedCache(caching.kv_bits, caching.kv_group_size)
    if caching.max_kv_size is not None:
        return BoundedCache(caching.max_kv_size)
    return FullCache()
