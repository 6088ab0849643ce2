"""Decide whether a model fits a machine, how long a context fits, and what would help.

`doctor` prints the verdict; `generate`, `chat` and `serve` check it before they load a model.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..disk.sizes import format_bytes
from ..errors import DeviceError
from ..folder.folder import Folder
from ..gemma4.caches import KV_BITS, SINKS, WHOLE, Caching
from ..write import leftovers
from .inventory import Inventory, as_converted, is_at_hand, of_converted, take
from .machine import MIB, Machine, this_machine
from .need import Need, Settings, need, running_bytes

LONG_CHUNKS = (2048, 1024)  # beyond them the model of an M1 gains a hundredth


def longest_context(inventory: Inventory, settings: Settings, machine: Machine) -> int:
    """Find the longest context that fits, 0 when none does."""
    needed = need(inventory, settings, machine)
    spare = machine.limit_bytes - (needed.total - needed.kv - needed.activations)
    item_bytes = 2 if machine.has_metal else 4
    low, high = 0, inventory.args.text_config.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        tried = replace(settings, context=middle)
        if sum(running_bytes(inventory, tried, item_bytes)) <= spare:
            low = middle
        else:
            high = middle - 1
    return low


def with_long_chunk(inventory: Inventory, settings: Settings, machine: Machine) -> Settings:
    """Return the settings with the longest chunk that costs no context.

    On Metal each chunk decodes every weight once (quant.backends.metal). A CPU gains nothing by
    longer ones. Source of LONG_CHUNKS: scripts/benchmarks/prefill_model.py.
    """
    if not machine.has_metal:
        return settings
    longest = longest_context(inventory, settings, machine)
    for step in LONG_CHUNKS:
        tried = replace(settings, prefill_step=step)
        is_as_long = longest_context(inventory, tried, machine) >= longest
        if is_as_long and _fits(inventory, tried, machine):
            return tried
    return settings


def _fits(inventory: Inventory, settings: Settings, machine: Machine) -> bool:
    return need(inventory, settings, machine).total <= machine.limit_bytes


def advice(inventory: Inventory, settings: Settings, machine: Machine) -> str:
    """Return the one setting that would make the model fit; the mildest is tried first."""
    tries: list[tuple[str, Settings]] = []
    if settings.caching == WHOLE:
        for bits in sorted(KV_BITS, reverse=True):
            tries.append((f"--kv-bits {bits}", replace(settings, caching=Caching(bits))))
    tries.append(("--prefill-step-size 128", replace(settings, prefill_step=128)))
    for option, changed in tries:
        if _fits(inventory, changed, machine):
            return f"{option} makes it fit"
    longest = longest_context(inventory, settings, machine)
    bound = longest - settings.prefill_step
    if bound > SINKS:
        # A coded cache cannot be bounded too: Caching refuses both together.
        option = f"--max-kv-size {bound} or " if settings.caching.kv_bits is None else ""
        return f"{option}a shorter conversation fits"
    needed = need(inventory, settings, machine).total
    if needed <= machine.largest_limit_bytes:
        return (
            f"`sudo sysctl iogpu.wired_limit_mb={-(-needed // MIB)}` lets the GPU have it until "
            "the next start; close other programs"
        )
    return "choose a variant of fewer bits, or convert it with --leftovers small"


@dataclass(frozen=True)
class Verdict:
    """The result of comparing a model's need with a machine, with the numbers."""

    needed: Need
    machine: Machine
    settings: Settings
    longest_context: int
    advice: str

    @property
    def is_fit(self) -> bool:
        return self.needed.total <= self.machine.limit_bytes

    @property
    def spare_bytes(self) -> int:
        """Bytes that the model leaves free, 0 when it does not fit."""
        return max(0, self.machine.limit_bytes - self.needed.total)

    def require(self) -> None:
        """Refuse a model that would push the machine into swap.

        Raises: DeviceError with the numbers and what would help.
        """
        if not self.is_fit:
            raise DeviceError(
                f"[memory] needed {format_bytes(self.needed.total)} for a context of "
                f"{self.settings.context} ({self.needed.parts()}), got "
                f"{format_bytes(self.machine.limit_bytes)} on {self.machine.name}. "
                f"{self.advice[0].upper()}{self.advice[1:]}; --force tries all the same."
            )

    def lines(self) -> Iterator[str]:
        """Yield the verdict as lines to print."""
        word = "fits" if self.is_fit else "does not fit"
        yield (
            f"{word}: {format_bytes(self.needed.total)} at a context of {self.settings.context} "
            f"({self.needed.parts()}), of {format_bytes(self.machine.limit_bytes)} on "
            f"{self.machine.name}"
        )
        if self.longest_context:
            yield f"longest context that fits: {self.longest_context} tokens"
        if self.advice:
            yield f"what would help: {self.advice}"


def judge(inventory: Inventory, settings: Settings, machine: Machine) -> Verdict:
    """Return whether a model fits a machine, how long a context does, and what would help."""
    needed = need(inventory, settings, machine)
    hint = "" if needed.total <= machine.limit_bytes else advice(inventory, settings, machine)
    longest = longest_context(inventory, settings, machine)
    most = inventory.args.text_config.max_position_embeddings
    if not hint and longest < most and settings.caching == WHOLE:
        coded = longest_context(inventory, replace(settings, caching=Caching(8)), machine)
        hint = f"--kv-bits 8 allows {coded} tokens"
    return Verdict(needed, machine, settings, longest, hint)


def plan(folder: Folder, settings: Settings) -> Verdict:
    """Judge a converted folder on this machine: its inventory and the machine are taken once."""
    return judge(of_converted(folder), settings, this_machine(folder.path))


def check_before_download(model: str, variant: str | None, settings: Settings) -> None:
    """Refuse, before the download, a model that will not fit once the commands have converted it.

    Raises: DeviceError as `require`; SourceError when the hub lacks the model or is out of reach.
    """
    if is_at_hand(model, variant):
        return
    made = as_converted(take(model, variant), leftovers.AUTO)
    judge(made, settings, this_machine(Path.cwd())).require()
