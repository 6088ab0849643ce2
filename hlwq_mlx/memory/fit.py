"""What a model needs and what a machine has: the arithmetic, before anything is loaded.

Sums are of MLX's arrays: weights as they lie in memory, keys and values at a context, the largest
set of activations alive during one chunk of prefill or in a tower, and freed memory that MLX keeps.
Not a measurement, and not the process: the interpreter and its libraries come on top, outside of
what a GPU is given. `doctor` prints it; `generate`, `chat` and `serve` ask it first.

S positions of a chunk, T positions of context, H hidden size, N layers, d per-layer input width.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from ..disk.sizes import spell_bytes
from ..engine.request import PREFILL_STEP
from ..errors import DeviceError
from ..gemma4.attention import SCORES
from ..gemma4.caches import KV_BITS, SINKS, WHOLE, Caching
from ..gemma4.config import FULL, Gemma4Config, TextConfig
from ..gemma4.towers.config import AudioConfig, VisionConfig
from ..media.processor import FRAMES_PER_TOKEN, ImageSettings, SoundSettings
from ..quant import device
from ..quant.backends.choose import prepared_bytes
from ..write import leftovers
from .inventory import Entry, Inventory, as_converted, is_at_hand, stored_bytes, take

MIB, GIB = 1 << 20, 1 << 30
CACHE_BYTES = 512 * MIB  # holds what a chunk of prefill frees; more would be kept from others
CACHE_SHARE = 20  # a machine of 8 GB gives it less
OS_BYTES = 4 * GIB  # what a raised limit has to leave to macOS and to other programs
KV_STEP = 256  # by which mlx-lm's caches grow
PICTURES, SOUNDS = ImageSettings(), SoundSettings()

# Launches and megabytes that MLX hands the GPU at once: others report 5 to 13 % more tokens a
# second for models of many launches, as this one. What is under way stays in memory, so that small
# Macs keep MLX's own numbers. Nothing was measured here.
IN_FLIGHT = {"MLX_MAX_OPS_PER_BUFFER": 1000, "MLX_MAX_MB_PER_BUFFER": 400}
OWN_MB_IN_FLIGHT = 40
SMALL_RAM_BYTES = 12 * GIB


@dataclass(frozen=True)
class Settings:
    """What a person chooses that changes how much memory is needed."""

    context: int
    prefill_step: int = PREFILL_STEP
    caching: Caching = WHOLE
    has_towers: bool = False


@dataclass(frozen=True)
class Machine:
    """A machine: its memory, and how much of it MLX may fill before the machine swaps."""

    name: str
    ram_bytes: int
    limit_bytes: int
    has_metal: bool
    wired_limit_mb: int = 0  # 0 where the system chooses
    free_disk_bytes: int | None = None

    @property
    def cache_bytes(self) -> int:
        """How much freed memory MLX should keep."""
        return min(CACHE_BYTES, self.limit_bytes // CACHE_SHARE)

    @property
    def in_flight_bytes(self) -> int:
        """What is held for launches that the GPU has not finished."""
        if not self.has_metal:
            return 0
        is_small = self.ram_bytes < SMALL_RAM_BYTES
        megabytes = OWN_MB_IN_FLIGHT if is_small else IN_FLIGHT["MLX_MAX_MB_PER_BUFFER"]
        return megabytes * 10**6

    @property
    def largest_limit_bytes(self) -> int:
        """What its limit can be raised to; on a machine without Metal it cannot."""
        return max(self.limit_bytes, self.ram_bytes - OS_BYTES) if self.has_metal else 0


@dataclass(frozen=True)
class Need:
    """What a model takes in memory, in bytes, and its rows on disk."""

    text: int
    towers: int
    kv: int
    activations: int
    spare: int
    rows_on_disk: int

    @property
    def total(self) -> int:
        return self.text + self.towers + self.kv + self.activations + self.spare

    def parts(self) -> str:
        """Spell the sum."""
        named = {
            "text weights": self.text,
            "towers": self.towers,
            "keys and values": self.kv,
            "activations": self.activations,
            "freed or in flight": self.spare,
        }
        return ", ".join(f"{what} {spell_bytes(size)}" for what, size in named.items() if size)


# macOS gives the GPU two thirds of 16 GB, as of 8; macOS 26 gives 12,713,115,648 bytes of 16 GB.
# Its share of 8 and 24 GB is taken to be the same: nobody told us.
# Source: spec ecosystem §5.1.
_SHARES = {15: 2 / 3, 26: 12_713_115_648 / (16 * GIB)}
RAM_GB = (8, 16, 24)
RELEASES = tuple(_SHARES)


def mac(ram_gb: int, release: int) -> Machine:
    """Describe a Mac by its memory and its release of macOS."""
    ram = ram_gb * GIB
    return Machine(f"{ram_gb} GB, macOS {release}", ram, int(ram * _SHARES[release]), True)


def this_machine(folder: Path) -> Machine:
    """Describe this machine, and the disk that a folder is on or will be on."""
    info = mx.device_info()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if device.has_metal():
        limit = int(info["max_recommended_working_set_size"])
        name, asked_mb = str(info["device_name"]), _wired_limit_mb()
        return Machine(name, int(info["memory_size"]), limit, True, asked_mb, free)
    return Machine(str(info["device_name"]), ram_bytes(), _available_bytes(), False, 0, free)


def ram_bytes() -> int:
    """Return how much memory this machine has; MLX is not asked."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe(machine: Machine) -> Iterator[str]:
    """Spell what a machine has."""
    given = spell_bytes(machine.limit_bytes)
    memory = f"{spell_bytes(machine.ram_bytes)} of memory, {given} of it for MLX"
    chosen = f" (iogpu.wired_limit_mb={machine.wired_limit_mb})" if machine.wired_limit_mb else ""
    disk = machine.free_disk_bytes
    free = "" if disk is None else f", {spell_bytes(disk)} free on disk"
    yield f"{machine.name}: {memory}{chosen}{free}"


def _wired_limit_mb() -> int:
    """What `sysctl iogpu.wired_limit_mb` was set to by a person, 0 by default."""
    asked = subprocess.run(
        ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(asked.stdout) if asked.stdout.strip().isdigit() else 0


def _available_bytes() -> int:
    """How much memory can be had without swapping."""
    if sys.platform != "linux":
        return max(0, ram_bytes() - OS_BYTES)
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sizes["MemAvailable"] * 1024


@contextmanager
def many_in_flight(*, has_metal: bool, ram: int) -> Iterator[None]:
    """Let MLX hand the GPU more at once, where a person has not said how much, and restore it.

    MLX reads this when it first uses the GPU, even to describe it: enter before.
    """
    is_for = has_metal and ram >= SMALL_RAM_BYTES
    added = [name for name in IN_FLIGHT if is_for and name not in os.environ]
    os.environ.update({name: str(IN_FLIGHT[name]) for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def need(inventory: Inventory, settings: Settings, machine: Machine) -> Need:
    """Sum what a model needs on a machine.

    Raises: ConfigError for a config that is incomplete.
    """
    item_bytes = 2 if machine.has_metal else 4
    text = towers = rows = 0
    for entry in inventory.live:
        if entry.is_row_table:
            rows = entry.stored_bytes
        elif not entry.is_tower:
            text += _resident_bytes(entry, item_bytes, machine)
        elif settings.has_towers:
            towers += _resident_bytes(entry, item_bytes, machine)
    kv, activations = _running_bytes(inventory, settings, item_bytes)
    spare = machine.cache_bytes + machine.in_flight_bytes
    return Need(text, towers, kv, activations, spare, rows)


def _running_bytes(inventory: Inventory, settings: Settings, item_bytes: int) -> tuple[int, int]:
    """Return what keys and values take, and activations: all that the settings change."""
    config = inventory.args.text_config
    activations = activation_bytes(config, settings, item_bytes)
    if settings.has_towers:  # they have answered before a prefill begins
        activations = max(activations, tower_bytes(inventory.args, item_bytes))
    return kv_bytes(config, settings, item_bytes), activations


def _resident_bytes(entry: Entry, item_bytes: int, machine: Machine) -> int:
    """What a tensor takes in memory: cast to what activations are, or as codes."""
    if entry.bits is None:
        return item_bytes * entry.weights
    prepared = prepared_bytes(entry.weights, has_kernels=machine.has_metal)
    return stored_bytes(entry.shape, entry.bits) + prepared


def kv_bytes(config: TextConfig, settings: Settings, item_bytes: int) -> int:
    """Sum the keys and values of the layers that make some.

    Sliding layers keep their window, and the chunk before it; full layers keep every position, or
    the last `max_kv_size`, in 16 bits or coded.
    """
    T = settings.context
    chunk = min(settings.prefill_step, T)
    total = largest = 0.0
    for index in range(config.first_shared):
        layer = config.layer(index)
        width = 2 * layer.num_key_value_heads * layer.head_dim
        if layer.layer_type == FULL:
            size = _positions(settings) * width * _kv_item_bytes(settings, item_bytes)
            largest = max(largest, size / 2)
        else:
            size = min(T, config.sliding_window + chunk - 1) * width * item_bytes
        total += size
    # One array is there twice while it grows, and a coded one while a CPU reads it.
    return int(total + largest * (1 if settings.caching.kv_bits is None else 2))


def _positions(settings: Settings) -> int:
    """How many positions a full layer's cache has room for."""
    T, bound = settings.context, settings.caching.max_kv_size
    if bound is not None:
        return min(T, bound + min(settings.prefill_step, T) - 1)
    return -(-T // KV_STEP) * KV_STEP


def _kv_item_bytes(settings: Settings, item_bytes: int) -> float:
    bits, group = settings.caching.kv_bits, settings.caching.kv_group_size
    return item_bytes if bits is None else bits / 8 + 2 * item_bytes / group  # a scale and a bias


def activation_bytes(config: TextConfig, settings: Settings, item_bytes: int) -> int:
    """Bound what is alive at once while a chunk of prefill runs.

    Per-layer inputs of all layers live through the chunk; beside them the widest of three stages:
    making those inputs, an MLP, the scores of one attention. Some of it is float32.
    """
    S = min(settings.prefill_step, settings.context)
    H, wide = config.hidden_size, config.intermediate_size
    inputs = S * config.num_hidden_layers * config.hidden_size_per_layer_input
    scores = min(SCORES, config.num_attention_heads * S * _positions(settings))
    copies = 2 if settings.caching.kv_bits is None else 3
    stages = (
        inputs * (3 * item_bytes + 4),
        S * wide * (6 * item_bytes + 12),
        scores * copies * item_bytes + S * config.num_attention_heads * config.global_head_dim * 8,
    )
    logits = 3 * 4 * config.vocab_size
    return inputs * item_bytes + 6 * S * H * item_bytes + max(stages) + logits


def tower_bytes(args: Gemma4Config, item_bytes: int) -> int:
    """Bound what is alive at once while a tower looks at one picture or hears one clip.

    A picture has as many patches, and a clip as many frames, as the processor allows by default.
    """
    P = PICTURES.max_soft_tokens * PICTURES.pooling_kernel_size**2
    frames = SOUNDS.max_soft_tokens * FRAMES_PER_TOKEN
    vision, audio = args.vision_config, args.audio_config
    picture = 0 if vision is None else vision_bytes(vision, P, item_bytes)
    return max(picture, 0 if audio is None else audio_bytes(audio, frames))


def vision_bytes(config: VisionConfig, P: int, item_bytes: int) -> int:
    """Bound what a picture of P patches takes: a layer's attention, scores and all, or its MLP.

    Whether Metal keeps all scores in memory is its own choice, so that they are counted.
    """
    scores = 2 * config.num_attention_heads * P**2 * item_bytes
    heads = 16 * P * config.num_attention_heads * config.head_dim * 4  # turned in float32
    stream = 12 * P * config.hidden_size * 4
    return stream + max(scores + heads, 4 * P * config.intermediate_size * item_bytes)


def audio_bytes(config: AudioConfig, frames: int) -> int:
    """Bound what a clip of so many mel frames takes: the convolutions in front, in float32.

    They keep more alive than any layer behind them: half as many frames and mel bins as the clip
    has, in several copies, and of what the second takes in nine times a quarter.
    """
    first = frames // 2 * 2 * config.mel_groups * config.subsampling_conv_channels[0] * 4
    return 4 * first + 2 * 9 * first // 4


def longest_context(inventory: Inventory, settings: Settings, machine: Machine) -> int:
    """Find the longest context that fits, 0 when none does."""
    needed = need(inventory, settings, machine)
    room = machine.limit_bytes - (needed.total - needed.kv - needed.activations)
    item_bytes = 2 if machine.has_metal else 4
    low, high = 0, inventory.args.text_config.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        tried = replace(settings, context=middle)
        if sum(_running_bytes(inventory, tried, item_bytes)) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _fits(inventory: Inventory, settings: Settings, machine: Machine) -> bool:
    return need(inventory, settings, machine).total <= machine.limit_bytes


def advice(inventory: Inventory, settings: Settings, machine: Machine) -> str:
    """Name the one setting that makes a model fit which does not, the mildest first."""
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
        # Coded caches cannot be bounded.
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
    """Whether a model fits a machine, and the numbers."""

    needed: Need
    machine: Machine
    settings: Settings
    longest_context: int
    advice: str

    @property
    def is_fit(self) -> bool:
        return self.needed.total <= self.machine.limit_bytes

    def lines(self) -> Iterator[str]:
        """Spell it for a person."""
        word = "fits" if self.is_fit else "does not fit"
        yield (
            f"{word}: {spell_bytes(self.needed.total)} at a context of {self.settings.context} "
            f"({self.needed.parts()}), of {spell_bytes(self.machine.limit_bytes)} on "
            f"{self.machine.name}"
        )
        if self.longest_context:
            yield f"longest context that fits: {self.longest_context} tokens"
        if self.advice:
            yield f"what would help: {self.advice}"


def judge(inventory: Inventory, settings: Settings, machine: Machine) -> Verdict:
    """Say whether a model fits a machine, how long a context does, and what would help."""
    needed = need(inventory, settings, machine)
    hint = "" if needed.total <= machine.limit_bytes else advice(inventory, settings, machine)
    longest = longest_context(inventory, settings, machine)
    most = inventory.args.text_config.max_position_embeddings
    if not hint and longest < most and settings.caching == WHOLE:
        coded = longest_context(inventory, replace(settings, caching=Caching(8)), machine)
        hint = f"--kv-bits 8 allows {coded} tokens"
    return Verdict(needed, machine, settings, longest, hint)


def ask(folder: Path, settings: Settings) -> None:
    """Refuse a converted folder that would push this machine into swap.

    Raises: DeviceError with the numbers and what would help.
    """
    require(take(str(folder)), settings, this_machine(folder))


def spare_bytes(folder: Path, settings: Settings) -> int:
    """Return how much memory a converted folder would leave, 0 when it does not fit."""
    machine = this_machine(folder)
    return max(0, machine.limit_bytes - need(take(str(folder)), settings, machine).total)


def room(folder: Path, settings: Settings) -> int:
    """Return the longest context that a converted folder can have here, 0 when it does not fit."""
    return longest_context(take(str(folder)), settings, this_machine(folder))


def ask_first(model: str, variant: str | None, settings: Settings) -> None:
    """Refuse a model that will not fit as the commands convert it, before it is downloaded.

    Raises: DeviceError as `ask`; SourceError when the hub lacks the model or cannot be reached.
    """
    if is_at_hand(model, variant):
        return
    made = as_converted(take(model, variant), leftovers.AUTO)
    require(made, settings, this_machine(Path.cwd()))


def require(inventory: Inventory, settings: Settings, machine: Machine) -> None:
    """Refuse a model that would push the machine into swap.

    Raises: DeviceError with the numbers and what would help.
    """
    verdict = judge(inventory, settings, machine)
    if not verdict.is_fit:
        raise DeviceError(
            f"[memory] needed {spell_bytes(verdict.needed.total)} for a context of "
            f"{settings.context} ({verdict.needed.parts()}), got "
            f"{spell_bytes(machine.limit_bytes)} on {machine.name}. "
            f"{verdict.advice[0].upper()}{verdict.advice[1:]}; --force tries all the same."
        )
