"""Choose the bits of every unit of a model for a machine: the least loss that fits.

Every unit begins at the fewest bits that it may have. Then, one bit at a time, the unit gets one
more whose loss falls the most for each byte that this takes, until nothing fits any more: as a
further bit takes as many bytes as the one before and saves less, no other mixture of this size has
less loss.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..disk.sizes import format_bytes
from ..errors import DeviceError
from ..source.rules import Unit, unit_of, unit_rule
from ..write import leftovers
from ..write.loss import WIDTHS, Losses
from .inventory import Entry, Inventory, as_quantized, stored_bytes
from .machine import Machine
from .need import Need, Settings, need


class Choice(NamedTuple):
    """What a unit loses and what it takes, by the bits that it may have."""

    losses: Mapping[int, float]
    sizes: Mapping[int, int]


Choices = Mapping[Unit, Choice]


def choose(choices: Choices, budget: int) -> dict[Unit, int] | None:
    """Return the bits of each unit within a budget of bytes; None where the fewest are too many."""
    widths = fewest(choices)
    spare = budget - total(choices, widths)
    if spare < 0:
        return None

    def cost(unit: Unit) -> int:
        sizes, bits = choices[unit].sizes, widths[unit]
        return sizes[bits + 1] - sizes[bits]

    def gain(unit: Unit) -> float:
        losses, bits = choices[unit].losses, widths[unit]
        return (losses[bits] - losses[bits + 1]) / cost(unit)

    while True:
        growing = [unit for unit, choice in choices.items() if widths[unit] < max(choice.sizes)]
        fitting = [unit for unit in growing if cost(unit) <= spare]
        if not fitting:
            return widths
        best = max(fitting, key=gain)
        spare -= cost(best)
        widths[best] += 1


def fewest(choices: Choices) -> dict[Unit, int]:
    """Return the fewest bits of each unit."""
    return {unit: min(choice.sizes) for unit, choice in choices.items()}


def total(choices: Choices, widths: Mapping[Unit, int]) -> int:
    """Return the bytes of a mixture."""
    return sum(choice.sizes[widths[unit]] for unit, choice in choices.items())


def loss_of(choices: Choices, widths: Mapping[Unit, int]) -> float:
    """Return the loss of a mixture."""
    return sum(choice.losses[widths[unit]] for unit, choice in choices.items())


@dataclass(frozen=True)
class Mixture:
    """The bits of each unit, the model that they make, and what it needs."""

    choices: Choices
    widths: Mapping[Unit, int]
    inventory: Inventory
    needed: Need
    machine: Machine
    settings: Settings

    def lines(self) -> Iterator[str]:
        """Yield the mixture as lines for a person: bits, and in how many layers."""
        yield f"{'tensors':<16}{'bytes':>12}{'loss':>10}  bits"
        for label, units in self.labelled().items():
            chosen = {unit: self.choices[unit] for unit in units}
            size = format_bytes(total(chosen, self.widths))
            counts = Counter(self.widths[unit] for unit in units)
            yield (f"{label:<16}{size:>12}{loss_of(chosen, self.widths):>10.4f}  {spelled(counts)}")
        yield (
            f"{format_bytes(self.needed.total)} at a context of {self.settings.context} "
            f"({self.needed.parts()}), of {format_bytes(self.machine.limit_bytes)} on "
            f"{self.machine.name}"
        )

    def labelled(self) -> dict[str, list[Unit]]:
        """Return the units of every class, of experts those of each stack."""
        found: dict[str, list[Unit]] = {}
        for unit in sorted(self.widths):
            label = f"{unit.kind}.{unit.part}" if unit.part else unit.kind
            found.setdefault(label, []).append(unit)
        return found


def spelled(counts: Mapping[int, int]) -> str:
    """Return bits and in how many layers, as "2 (of 14), 3 (of 16)", or bits alone."""
    if len(counts) == 1:
        return str(*counts)
    return ", ".join(f"{bits} (of {count})" for bits, count in sorted(counts.items()))


def choices_of(found: Inventory, losses: Losses) -> dict[Unit, Choice]:
    """Return the units of a 16-bit model and the bits that each may have."""
    entries: dict[Unit, list[Entry]] = {}
    for entry in found.live:
        unit = unit_of(entry.name, entry.shape)
        if unit is not None:
            entries.setdefault(unit, []).append(entry)
    choices = {}
    for unit, own in sorted(entries.items()):
        allowed = [bits for bits in WIDTHS if bits >= leftovers.FLOORS[unit.kind]]
        sizes = {
            bits: sum(stored_bytes(each.shape, bits, each.has_means) for each in own)
            for bits in allowed
        }
        choices[unit] = Choice(losses[unit], sizes)
    return choices


def propose(found: Inventory, losses: Losses, settings: Settings, machine: Machine) -> Mixture:
    """Choose the bits with which a 16-bit model fits a machine with the least loss.

    Raises: DeviceError where it fits at no width.
    """
    choices = choices_of(found, losses)
    narrow = fewest(choices)
    least = need(as_quantized(found, unit_rule(narrow), leftovers.AUTO), settings, machine).total
    budget = machine.limit_bytes - least + total(choices, narrow)
    while (widths := choose(choices, budget)) is not None:
        made = as_quantized(found, unit_rule(widths), leftovers.AUTO)
        needed = need(made, settings, machine)
        if needed.total <= machine.limit_bytes:
            return Mixture(choices, widths, made, needed, machine, settings)
        # What towers take depends on the widths: leftovers beside 8 bits stay in 16.
        budget = total(choices, widths) - (needed.total - machine.limit_bytes)
    raise DeviceError(
        f"[fit] needed {format_bytes(least)} at the fewest bits for a context of "
        f"{settings.context}, got {format_bytes(machine.limit_bytes)} on {machine.name}. "
        "Choose a smaller model, a larger Mac, a shorter --context or --kv-bits 8."
    )
