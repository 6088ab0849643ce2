"""Prefixes of earlier prompts and their caches, so that the next prompt reads only what is new.

They form a tree. A node adds a range of positions to its parent's: its own keys and values for the
layers that remember every position, and for the layers that forget what they hold at its end. A
prompt can go on where a node ends; nodes are split where prompts part. Arrays are shared by nodes,
never by the caches that a prompt is read into. One thread uses a tree.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..gemma4.caches import Arrays

MAX_BYTES = 1 << 31
LATTICE_STEP = 1024
LATTICE_COUNT = 8
_WORTH_SAVING = 2

Keys = NDArray[np.int64]
Layers = tuple[Arrays, ...]


@dataclass(eq=False)
class Node:
    """A range of positions, and what follows it.

    `ranges` are the arrays of the layers whose snapshots join, for the node's own positions alone.
    `state` is what the other layers hold at `end`; without it a node only leads to deeper ones.
    """

    keys: Keys
    end: int
    ranges: Layers = ()
    state: Layers | None = None
    children: "dict[int, Node]" = field(default_factory=dict)
    used: int = 0
    is_system: bool = False
    is_saved: bool = False

    @property
    def start(self) -> int:
        return self.end - len(self.keys)

    @property
    def range_bytes(self) -> int:
        return self.keys.nbytes + bytes_of(self.ranges)

    @property
    def nbytes(self) -> int:
        return self.range_bytes + bytes_of(self.state or ())


class Place(NamedTuple):
    """How far keys follow a tree: through whole nodes, and then into the next one's range."""

    path: list[Node]
    shared: int


@dataclass(frozen=True)
class Match:
    """What of a prompt was read before.

    The first `length` positions need not be read again. `branch` is where the prompt parts from an
    earlier one, if it goes on with that one for longer; a snapshot there serves the next such
    prompt.
    """

    length: int
    branch: int | None
    path: Sequence[Node]
    make_caches: Callable[[], list[Any]]

    def restore(self) -> list[Any]:
        """Make caches of the first `length` positions, which belong to the caller alone."""
        caches = self.make_caches()
        if not self.length:
            return caches
        joining, others = _by_kind(caches)
        for i, cache in enumerate(joining):
            cache.restore([node.ranges[i] for node in self.path], self.length)
        for cache, state in zip(others, self.path[-1].state or (), strict=True):
            cache.restore([state], self.length)
        mx.eval([cache.state for cache in caches])
        return caches

    def positions(self, length: int, marks: Sequence[int] = ()) -> list[int]:
        """Return where a prompt of `length` positions is worth a snapshot while it is read.

        `marks` are the caller's own: where the system's text ends, or a tool's result.
        """
        branch = [] if self.branch is None else [self.branch]
        wanted = {length - 1, *marks, *branch, *lattice(length)}
        return sorted(each for each in wanted if self.length < each < length)


class Store(Protocol):
    """Where nodes outlive the process."""

    def read(self, keys: Keys, salt: str, beyond: int, held: int) -> list[Node]:
        """Return the nodes of the longest prefix known that is longer than `beyond`, or none.

        Those whose ranges end within the first `held` keys are left out.
        """
        ...

    def write(self, path: Sequence[Node], salt: str) -> bool:
        """Have the last node of a path written, and those that lead to it; return whether."""
        ...

    def close(self) -> None:
        """Write what waits."""
        ...


class PrefixCache:
    """A tree of prefixes, of at most `max_bytes`; 0 keeps nothing.

    `make_caches` makes the empty caches that all of its snapshots are of: one model's, kept in one
    way. A `store` keeps nodes on disk as well.
    """

    def __init__(
        self,
        make_caches: Callable[[], list[Any]],
        max_bytes: int = MAX_BYTES,
        store: Store | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self._make_caches = make_caches
        self._store = store
        self._roots: dict[str, Node] = {}
        self._clock = itertools.count(1)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays and keys."""
        return sum(node.nbytes for _, node in self._nodes())

    def find(self, keys: Sequence[int] | Keys, salt: str = "") -> Match:
        """Return the longest prefix that was read before under the same salt.

        At least one position is left to be read.
        """
        asked = np.asarray(keys, dtype=np.int64)
        if self._store is not None:
            self._load(self._store, asked, salt)
        path = self._usable(asked, salt)
        length = path[-1].end if path else 0
        if path:
            path[-1].used = next(self._clock)
        shared = self._follow(asked, salt).shared
        branch = _before_run(asked, shared) if shared < len(asked) else 0
        return Match(length, branch if branch > length else None, path, self._make_caches)

    def keep(
        self,
        keys: Sequence[int] | Keys,
        caches: Sequence[Any],
        position: int,
        salt: str = "",
        is_system: bool = False,
    ) -> bool:
        """Keep the first `position` keys and return whether that was possible.

        It is while the caches still hold what that takes, outside a medium's run, and within
        `max_bytes`. A prefix that is marked `is_system` is dropped last.
        """
        if not 0 < position <= len(keys) or not self.max_bytes:
            return False
        known = np.asarray(keys, dtype=np.int64)
        covered = known[:position]
        if _before_run(known, position) != position:
            return False
        if self._exact(covered, salt) is None:
            node = self._snapshot(covered, caches, salt)
            if node is None or not self._insert(covered, node, salt):
                return False
        kept = self._follow(covered, salt).path[-1]
        kept.used = next(self._clock)
        kept.is_system |= is_system
        self._evict()
        return True

    def save(self) -> None:
        """Give the store what it does not hold yet and a later prompt may go on from."""
        if self._store is None:
            return
        for salt, root in self._roots.items():
            for path in _paths(root):
                node = path[-1]
                if node.state is not None and not node.is_saved and _worth(node) >= _WORTH_SAVING:
                    node.is_saved = self._store.write(path, salt)

    def close(self) -> None:
        """Save, and let the store write what waits; nothing is kept after that."""
        self.save()
        self.forget()
        if self._store is not None:
            self._store.close()

    def forget(self) -> None:
        """Drop all that is in memory."""
        self._roots.clear()

    def _follow(self, keys: Keys, salt: str) -> Place:
        node, path, at = self._roots.get(salt), [], 0
        while node is not None and at < len(keys):
            node = node.children.get(int(keys[at]))
            if node is None:
                break
            shared = _count_shared(node.keys, keys[at:])
            at += shared
            if shared < len(node.keys):
                break
            path.append(node)
        return Place(path, at)

    def _usable(self, keys: Keys, salt: str) -> list[Node]:
        """Return the path to the deepest node that a prompt can go on from."""
        path = self._follow(keys, salt).path
        while path and not _can_go_on(path[-1], keys):
            path.pop()
        return path

    def _exact(self, covered: Keys, salt: str) -> Node | None:
        """Return the node that ends where the keys do, if it has a state."""
        path = self._follow(covered, salt).path
        is_there = path and path[-1].end == len(covered) and path[-1].state is not None
        return path[-1] if is_there else None

    def _snapshot(self, covered: Keys, caches: Sequence[Any], salt: str) -> Node | None:
        """Copy from caches what the tree lacks of a prefix."""
        start, end = self._follow(covered, salt).shared, len(covered)
        joining, others = _by_kind(caches)
        ranges = _all_there(cache.snapshot(start, end) for cache in joining)
        state = _all_there(cache.snapshot(start, end) for cache in others)
        if ranges is None or state is None:
            return None
        _copy_now(ranges + state)
        return Node(covered[start:].copy(), end, ranges, state)

    def _insert(self, covered: Keys, node: Node, salt: str) -> bool:
        """Hang a node that begins where the tree stops to share its keys, if there is room."""
        root = self._roots.setdefault(salt, Node(covered[:0].copy(), 0))
        path, shared = self._follow(covered, salt)
        parent = path[-1] if path else root
        if shared > parent.end:
            parent = _split(parent, int(covered[parent.end]), shared)
            path.append(parent)
        known = sum(each.range_bytes for each in path)
        if known + node.nbytes > self.max_bytes:  # or the new would drive out its own beginning
            return False
        node.used = next(self._clock)
        if node.end > parent.end:
            parent.children[int(node.keys[0])] = node
        elif parent.state is None:
            parent.state, parent.used, parent.is_saved = node.state, node.used, node.is_saved
        return True

    def _load(self, store: Store, asked: Keys, salt: str) -> None:
        """Bring what a store knows of a prompt beyond what is here."""
        path = self._usable(asked, salt)
        held = self._follow(asked, salt).shared
        for node in store.read(asked[:-1], salt, path[-1].end if path else 0, held):
            covered = asked[: node.end]
            start = self._follow(covered, salt).shared
            if start >= node.start and not self._insert(covered, _from(node, start), salt):
                break
        self._evict()

    def _nodes(self) -> Iterator[tuple[Node, Node]]:
        """Yield each node behind its parent."""
        waiting = list(self._roots.values())
        while waiting:
            parent = waiting.pop()
            for node in parent.children.values():
                yield parent, node
                waiting.append(node)

    def _evict(self) -> None:
        """Drop what is worth least until the rest fits."""
        while True:
            nodes = list(self._nodes())
            if sum(node.nbytes for _, node in nodes) <= self.max_bytes:
                break
            parent, node = min(nodes, key=lambda pair: (_worth(pair[1]), pair[1].used))
            if node.children:
                node.state = None
            else:
                del parent.children[int(node.keys[0])]
        self._roots = {salt: root for salt, root in self._roots.items() if root.children}


def lattice(length: int) -> range:
    """Return positions of a long prefill that are worth a snapshot: some powers of two apart.

    They are few, and the same ones for prompts of similar lengths.
    """
    step = LATTICE_STEP
    while length > step * (LATTICE_COUNT + 1):
        step *= 2
    return range(step, length, step)


def bytes_of(layers: Layers) -> int:
    """Return the bytes of all arrays."""
    return sum(array.nbytes for arrays in layers for array in arrays)


def _by_kind(caches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the caches whose snapshots join, and the others."""
    joining = [cache for cache in caches if cache.snapshots_join]
    return joining, [cache for cache in caches if not cache.snapshots_join]


def _all_there(snapshots: Iterator[Arrays | None]) -> Layers | None:
    found = []
    for each in snapshots:
        if each is None:
            return None
        found.append(each)
    return tuple(found)


def _before_run(keys: Keys, position: int) -> int:
    """Return the last position up to this one that splits no run of a medium's soft tokens.

    Where the keys end within a medium it may go on.
    """
    while position and keys[position - 1] < 0 and (position == len(keys) or keys[position] < 0):
        position -= 1
    return position


def _can_go_on(node: Node, keys: Keys) -> bool:
    is_prefix = node.end < len(keys) and _before_run(keys, node.end) == node.end
    return is_prefix and node.state is not None


def _count_shared(one: Keys, other: Keys) -> int:
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length


def _split(parent: Node, key: int, at: int) -> Node:
    """Cut a child in two and return its upper part, which has no state yet."""
    child = parent.children[key]
    cut = at - child.start
    lower = _from(child, at)
    upper = Node(child.keys[:cut].copy(), at, _part(child.ranges, 0, cut), used=child.used)
    upper.children[int(lower.keys[0])] = lower
    parent.children[key] = upper
    return upper


def _from(node: Node, start: int) -> Node:
    """Return the part of a node from a position on."""
    cut = start - node.start
    if not cut:
        return node
    ranges = _part(node.ranges, cut, len(node.keys))
    return replace(node, keys=node.keys[cut:].copy(), ranges=ranges)


def _part(ranges: Layers, start: int, stop: int) -> Layers:
    """Copy some positions; views would keep all of them in memory."""
    places = mx.arange(start, stop)
    part = tuple(tuple(mx.take(each, places, axis=2) for each in arrays) for arrays in ranges)
    _copy_now(part)
    return part


def _copy_now(layers: Layers) -> None:
    """Evaluate copies into memory of their own size: a used buffer may be twice as large."""
    mx.clear_cache()
    mx.eval(layers)


def _paths(root: Node) -> Iterator[list[Node]]:
    """Yield the path to each node, parents first."""
    waiting = [[node] for node in root.children.values()]
    while waiting:
        path = waiting.pop()
        yield path
        waiting += [[*path, node] for node in path[-1].children.values()]


def _worth(node: Node) -> int:
    """Return how late a node is dropped; those of equal worth go by their last use.

    Within one conversation only the deepest state is gone on from, so the others go first. Where
    prompts part there are several children.
    """
    is_leaf = not node.children
    if node.state is None:
        return 0 if is_leaf else 4  # nothing to drop where it leads on
    if node.is_system:
        return 3
    return 1 if len(node.children) == 1 else 2
