"""Compute the memory that a model needs, before anything is loaded.

The sums count MLX's arrays: weights as they lie in memory, keys and values at a context, the
largest set of activations alive during one chunk of prefill or in a tower, and freed memory that
MLX keeps. They are computed, not measured. The interpreter and its libraries are not counted, since
they are outside of the memory that a GPU is given.

S positions of a chunk, T positions of context, H hidden size, N layers, d per-layer input width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..disk.sizes import format_bytes
from ..engine.request import PREFILL_STEP
from ..gemma4.attention import SCORES
from ..gemma4.caches import WHOLE, Caching
from ..gemma4.config import FULL, Gemma4Config, TextConfig
from ..gemma4.towers.config import AudioConfig, VisionConfig
from ..media.processor import FRAMES_PER_TOKEN, ImageSettings, SoundSettings
from ..quant.backends.choose import prepared_bytes
from .inventory import Entry, Inventory, stored_bytes
from .machine import Machine

KV_STEP = 256  # by which caches grow
PICTURES, SOUNDS = ImageSettings(), SoundSettings()


@dataclass(frozen=True)
class Settings:
    """The user's choices that change how much memory is needed."""

    context: int
    prefill_step: int = PREFILL_STEP
    caching: Caching = WHOLE
    has_towers: bool = False


@dataclass(frozen=True)
class Need:
    """Bytes that a model takes in memory, and those of its rows on disk."""

    text: int
    towers: int
    kv: int
    activations: int
    spare: int
    rows_on_disk: int
    drafter: int = 0

    @property
    def total(self) -> int:
        return self.text + self.towers + self.drafter + self.kv + self.activations + self.spare

    def parts(self) -> str:
        """Return the sum's terms as text."""
        named = {
            "text weights": self.text,
            "towers": self.towers,
            "drafter": self.drafter,
            "keys and values": self.kv,
            "activations": self.activations,
            "freed or in flight": self.spare,
        }
        return ", ".join(f"{what} {format_bytes(size)}" for what, size in named.items() if size)


class Space(NamedTuple):
    """Memory for keys and values: its bytes, and how many of them a sequence of tokens takes."""

    nbytes: int
    bytes_of: Callable[[int], int]

    @classmethod
    def of(cls, nbytes: int, config: TextConfig, settings: Settings, item_bytes: int) -> "Space":
        """Return so many bytes, as the model's sequences fill them."""

        def bytes_of(tokens: int) -> int:
            return kv_bytes(config, replace(settings, context=tokens), item_bytes)

        return cls(nbytes, bytes_of)


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
    kv, activations = running_bytes(inventory, settings, item_bytes)
    spare = machine.cache_bytes + machine.in_flight_bytes
    drafter = sum(_resident_bytes(entry, item_bytes, machine) for entry in inventory.drafter)
    return Need(text, towers, kv, activations, spare, rows, drafter)


def _resident_bytes(entry: Entry, item_bytes: int, machine: Machine) -> int:
    """Return what a tensor takes in memory: as codes, as stored, or cast as activations are."""
    if entry.is_order:
        return entry.stored_bytes
    if entry.bits is None:
        is_kept = machine.has_library and len(entry.shape) == 2
        return entry.stored_bytes if is_kept else item_bytes * entry.weights
    reads_codes = machine.has_metal or machine.has_library
    prepared = prepared_bytes(entry.weights, has_kernels=reads_codes)
    return stored_bytes(entry.shape, entry.bits, entry.has_means) + prepared


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
    # One array exists twice while it grows, and a coded one also while a CPU reads it.
    return int(total + largest * (1 if settings.caching.kv_bits is None else 2))


def _positions(settings: Settings) -> int:
    """Return how many positions a full layer's cache has room for."""
    T, bound = settings.context, settings.caching.max_kv_size
    if bound is not None:
        return min(T, bound + min(settings.prefill_step, T) - 1)
    return -(-T // KV_STEP) * KV_STEP


def _kv_item_bytes(settings: Settings, item_bytes: int) -> float:
    bits, group = settings.caching.kv_bits, settings.caching.kv_group_size
    return item_bytes if bits is None else bits / 8 + 2 * item_bytes / group  # a scale and a bias


def activation_bytes(config: TextConfig, settings: Settings, item_bytes: int) -> int:
    """Bound what is alive at once while a chunk of prefill runs.

    Per-layer inputs of the layers that make keys and values live through the chunk. Beside them
    lives the largest of four stages: making those inputs, an MLP, the experts of every token, or
    the scores of one attention. Some arrays are float32. Chunks longer than PREFILL_STEP are
    multiplied by an MLP's weights decoded to 16 bits (quant.backends.metal).
    """
    S = min(settings.prefill_step, settings.context)
    H, wide = config.hidden_size, config.intermediate_size
    made = S * config.num_hidden_layers * config.hidden_size_per_layer_input
    inputs = S * config.first_shared * config.hidden_size_per_layer_input
    scores = min(SCORES, config.num_attention_heads * S * _positions(settings))
    copies = 2 if settings.caching.kv_bits is None else 3
    decoded = 3 * H * wide * 2 if S > PREFILL_STEP else 0
    chosen, expert = config.top_k_experts or 0, config.moe_intermediate_size or 0
    stages = (
        made * (3 * item_bytes + 4),
        S * wide * (6 * item_bytes + 12) + decoded,
        S * chosen * (expert * (6 * item_bytes + 12) + H * (2 * item_bytes + 8)),
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
    """Bound what a picture of P patches takes: a layer's attention with all scores, or its MLP.

    All scores are counted, because Metal may keep them in memory.
    """
    scores = 2 * config.num_attention_heads * P**2 * item_bytes
    heads = 16 * P * config.num_attention_heads * config.head_dim * 4  # turned in float32
    stream = 12 * P * config.hidden_size * 4
    return stream + max(scores + heads, 4 * P * config.intermediate_size * item_bytes)


def audio_bytes(config: AudioConfig, frames: int) -> int:
    """Bound what a clip of so many mel frames takes: the convolutions in front, in float32.

    They keep more alive than any later layer: the first one's output, with half of the frames and
    half of the mel bins, in several copies, and the second one's input unfolded, nine values for
    each of a quarter of its positions.
    """
    first = frames // 2 * 2 * config.mel_groups * config.subsampling_conv_channels[0] * 4
    return 4 * first + 2 * 9 * first // 4


def running_bytes(inventory: Inventory, settings: Settings, item_bytes: int) -> tuple[int, int]:
    """Return the bytes of keys and values, and of activations: all that depends on the settings."""
    config = inventory.args.text_config
    activations = activation_bytes(config, settings, item_bytes)
    if settings.has_towers:  # they finish before prefill begins, so the larger of the two counts
        activations = max(activations, tower_bytes(inventory.args, item_bytes))
    return kv_bytes(config, settings, item_bytes), activations
