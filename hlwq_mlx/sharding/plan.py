"""Plan who holds what: a function of a model's tensors, the machines and the link between them.

By layers, each machine holds some of them, so that the fullest is as little filled as can be; the
layers that share keys and values stay with those that make them. By tensors, each holds a share of
every layer. Nothing is asked of a network here, and nothing is loaded.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf, prod

from ..disk.sizes import format_bytes
from ..errors import DeviceError, RequestError
from ..folder.names import EXPERTS
from ..gemma4.config import TextConfig
from ..memory.inventory import Entry, Inventory
from ..memory.machine import CACHE_BYTES, IN_FLIGHT
from ..memory.need import Settings, kv_bytes, running_bytes
from ..quant.packing import BLOCK
from .shares import Run, Split
from .speed import Link, Mac, all_reduces, layers_tokens_s, lone_tokens_s, tensors_tokens_s

LAYERS, TENSORS = "layers", "tensors"
SPLITS = (LAYERS, TENSORS)
ITEM_BYTES = 2  # of activations by Metal
WORTH = 1.05  # of one machine's speed
_LAYER = re.compile(r"\.layers\.(\d{1,6})\.")


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model: of each layer, and of all else, which rank 0 has where layers part.

    `held` are bytes in memory, `kept` among them of keys and values, `read` those that one token
    reads; every machine needs the `working` ones: activations, and what MLX keeps of freed memory.
    """

    held: tuple[float, ...]
    kept: tuple[float, ...]
    read: tuple[float, ...]
    ends_held: float
    ends_read: float
    towers: float
    working: float

    @property
    def whole(self) -> float:
        """Bytes that a machine alone holds."""
        return sum(self.held) + self.ends_held + self.towers + self.working


@dataclass(frozen=True)
class Plan:
    """A way of splitting a model, what each machine holds and reads a token, and how fast it is.

    `layers` are each machine's, all of them where tensors part. Among what is `held`, `kept` are
    keys and values. Speeds are a model's.
    """

    split: str
    layers: tuple[Run, ...]
    held: tuple[float, ...]
    kept: tuple[float, ...]
    read: tuple[float, ...]
    limits: tuple[float, ...]
    tokens_s: float
    lone_tokens_s: float
    fits_alone: bool

    @property
    def fits(self) -> bool:
        """Whether every machine can hold its part."""
        return all(size <= limit for size, limit in zip(self.held, self.limits, strict=True))

    @property
    def is_worth_it(self) -> bool:
        """Whether it lets a model run that one machine cannot hold, or runs it faster."""
        return self.fits and (not self.fits_alone or self.tokens_s >= WORTH * self.lone_tokens_s)

    def require(self) -> None:
        """Refuse parts that would push their machines into swap.

        Raises: DeviceError naming the first.
        """
        for rank, (size, limit) in enumerate(zip(self.held, self.limits, strict=True)):
            if size > limit:
                raise DeviceError(
                    f"[rank {rank}] needed {format_bytes(int(size))} for its part, got "
                    f"{format_bytes(int(limit))}. Add a machine, or choose a variant of fewer "
                    "bits; --force tries all the same."
                )


def sizes_of(found: Inventory, settings: Settings) -> Sizes:
    """Sum the bytes of a converted model by layer, with keys and values at a context.

    Raises: ConfigError for a config that is incomplete.
    """
    text = found.args.text_config
    count = text.num_hidden_layers
    held, read = [0.0] * count, [0.0] * count
    ends_held = ends_read = towers = 0.0
    for entry in found.live:
        layer = _LAYER.search(entry.name)
        if entry.is_tower:
            towers += entry.stored_bytes
        elif entry.is_row_table:
            continue
        elif layer is not None:
            held[int(layer[1])] += entry.stored_bytes
            read[int(layer[1])] += entry.stored_bytes * _read_part(entry, text)
        else:
            ends_held += entry.stored_bytes
            ends_read += entry.stored_bytes
    kept = [0.0] * count
    for index in range(text.first_shared):
        kept[index] = kv_bytes(text, settings, ITEM_BYTES) / text.first_shared
        held[index] += kept[index]
    activations = running_bytes(found, settings, ITEM_BYTES)[1]
    working = activations + CACHE_BYTES + IN_FLIGHT["MLX_MAX_MB_PER_BUFFER"] * 10**6
    return Sizes(tuple(held), tuple(kept), tuple(read), ends_held, ends_read, towers, working)


def _read_part(entry: Entry, text: TextConfig, own: Run | None = None) -> float:
    """Return which part of a tensor one token reads: of experts, those that were chosen.

    A machine with whole experts, `own`, multiplies by its first or last one for each that others
    have.
    """
    if EXPERTS not in entry.name or not text.num_experts:
        return 1.0
    part = (text.top_k_experts or 0) / text.num_experts
    return part if own is None else min(1.0, part + 2 / len(own))


def last_cut(text: TextConfig) -> int:
    """Return the last layer before which the layers may part.

    Layers that share keys and values stay with the last layer of each type that makes some.
    """
    if not text.num_kv_shared_layers:
        return text.num_hidden_layers - 1
    makers = dict(zip(text.layer_types[: text.first_shared], range(text.first_shared), strict=True))
    return min(makers.values())


def plan_layers(found: Inventory, settings: Settings, macs: Sequence[Mac], link: Link) -> Plan:
    """Cut the layers so that the fullest machine is as little filled as can be.

    Raises: RequestError when there are more machines than parts.
    """
    text, sizes = found.args.text_config, sizes_of(found, settings)
    size, most = len(macs), last_cut(text)
    if size < 2 or size - 1 > most:
        raise RequestError(
            f"[--split] needed 2 to {most + 1} machines to part the layers, got {size}. "
            "Start as many."
        )
    layers = _cut(sizes, [mac.limit_bytes for mac in macs], most)
    held = [sum(sizes.held[run.start : run.stop]) + sizes.working for run in layers]
    kept = [sum(sizes.kept[run.start : run.stop]) for run in layers]
    read = [sum(sizes.read[run.start : run.stop]) for run in layers]
    held[0] += sizes.ends_held + sizes.towers
    read[0] += sizes.ends_read
    hidden = ITEM_BYTES * text.hidden_size * (1 + (text.hidden_size_per_layer_input > 0))
    speed = layers_tokens_s(read, macs, link, hidden, ITEM_BYTES * text.hidden_size)
    return _plan(LAYERS, layers, held, kept, read, speed, sizes, macs)


def plan_tensors(found: Inventory, settings: Settings, macs: Sequence[Mac], link: Link) -> Plan:
    """Give each machine a share of every layer.

    Raises: RequestError for a number of machines, or a model, that cannot be split so.
    """
    text, size = found.args.text_config, len(macs)
    sizes = sizes_of(found, settings)
    splits = splits_of(found, size)
    shares = len(splits[0].kv_heads(0)) / text.layer(0).num_key_value_heads
    kept = [kv_bytes(text, settings, ITEM_BYTES) * shares] * size
    held = [each + sizes.working for each in kept]
    read = [0.0] * size
    for entry in language_weights(found):
        for rank, split in enumerate(splits):
            part = part_of(entry, split) * entry.stored_bytes
            held[rank] += part
            read[rank] += part * _read_part(entry, text, split.experts)
    held[0] += sizes.towers
    speed = tensors_tokens_s(read, macs, link, all_reduces(text), ITEM_BYTES * text.hidden_size)
    every = tuple(Run(0, text.num_hidden_layers) for _ in macs)
    return _plan(TENSORS, every, held, kept, read, speed, sizes, macs)


def splits_of(found: Inventory, size: int) -> list[Split]:
    """Return what each of `size` machines holds where tensors part.

    Raises: RequestError for a number of machines, or a model, that cannot be split so.
    """
    grain = BLOCK if any(entry.bits is not None for entry in language_weights(found)) else 1
    return [Split(found.args.text_config, size, rank, grain) for rank in range(size)]


def language_weights(found: Inventory) -> list[Entry]:
    """Return the tensors of the language model that machines hold in memory."""
    return [each for each in found.live if not (each.is_tower or each.is_row_table)]


def part_of(entry: Entry, split: Split) -> float:
    """Return which part of a tensor a machine holds."""
    share = split.share(entry.name)
    *stack, columns = entry.shape or (1,)
    return share.part_of(prod(stack), columns)


def _plan(
    split: str,
    layers: Sequence[Run],
    held: Sequence[float],
    kept: Sequence[float],
    read: Sequence[float],
    speed: float,
    sizes: Sizes,
    macs: Sequence[Mac],
) -> Plan:
    alone = lone_tokens_s(sum(sizes.read) + sizes.ends_read, macs[0])
    limits = tuple(mac.limit_bytes for mac in macs)
    return Plan(
        *(split, tuple(layers), tuple(held), tuple(kept), tuple(read), limits, speed, alone),
        fits_alone=sizes.whole <= limits[0],
    )


def _cut(sizes: Sizes, limits: Sequence[float], most: int) -> tuple[Run, ...]:
    """Cut so that the largest filled part of a machine's memory is smallest.

    What every machine needs to work is taken off its memory first.
    """
    room = [max(1.0, limit - sizes.working) for limit in limits]
    count, size = len(sizes.held), len(limits)
    before = [0.0]
    for held in sizes.held:
        before.append(before[-1] + held)
    first = sizes.ends_held + sizes.towers

    @cache
    def best(rank: int, start: int) -> tuple[float, tuple[int, ...]]:
        """The least filling of machines `rank` and on, for layers `start` and on, and the cuts."""
        ends = first if rank == 0 else 0.0
        if rank == size - 1:
            return (before[count] - before[start] + ends) / room[rank], ()
        found: tuple[float, tuple[int, ...]] = (inf, ())
        for stop in range(start + 1, most + 1):
            filled = (before[stop] - before[start] + ends) / room[rank]
            rest, cuts = best(rank + 1, stop)
            found = min(found, (max(filled, rest), (stop, *cuts)))
        return found

    _, cuts = best(0, 0)
    return tuple(Run(start, stop) for start, stop in zip((0, *cuts), (*cuts, count), strict=True))


MAKERS = {LAYERS: plan_layers, TENSORS: plan_tensors}


def describe_parts(plan: Plan, macs: Sequence[Mac]) -> Iterator[str]:
    """Yield a line for each machine's part."""
    for rank, (mac, layers, held) in enumerate(zip(macs, plan.layers, plan.held, strict=True)):
        what = f"a share of all {len(layers)} layers"
        if plan.split == LAYERS:
            what = f"layers {layers.start} to {layers.stop - 1}"
        role = ", embedding, head and towers" if rank == 0 and plan.split == LAYERS else ""
        full = "" if held <= mac.limit_bytes else ", which does not fit"
        yield (
            f"rank {rank}, {mac.name}: {what}{role}, {format_bytes(int(held))} of "
            f"{format_bytes(int(mac.limit_bytes))}{full}"
        )


def describe(plan: Plan, macs: Sequence[Mac], link: Link) -> Iterator[str]:
    """Yield a plan as lines to print, with its modelled speed."""
    yield from describe_parts(plan, macs)
    alone = f"{plan.lone_tokens_s:.1f} alone" if plan.fits_alone else "it does not fit one"
    yield (f"modelled, not measured: {plan.tokens_s:.1f} tokens a second over {link.name}; {alone}")
    if not plan.fits:
        yield "does not fit these machines"
    elif not plan.is_worth_it:
        yield "not worth it on this link: one machine is as fast"
