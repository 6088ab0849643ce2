"""The towers' sections of config.json as frozen values: fields carry the checkpoint's key names.

Pixels, frames and budgets, by which a processor makes their inputs, are in media/processor.py.
Source: transformers 5.23.0, models/gemma4/configuration_gemma4.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self

from ...disk.fields import Bounds, checked, shown
from ...errors import ConfigError
from ..section import (
    CAP,
    EPS,
    HEAD_WIDTH,
    HEADS,
    INNER_WIDTH,
    LAYERS,
    THETA,
    WIDTH,
    as_section,
    check_fixed,
    check_known,
    required,
)

# The two kinds of tower, and the sections that describe them.
VISION = "vision"
AUDIO = "audio"
VISION_SECTION = "vision_config"
AUDIO_SECTION = "audio_config"
# One rotary embedding under two names: that of released files and that of re-saved ones.
ROPE_TYPES = ("default", "axial")

VISION_FIXED = {
    "model_type": ("gemma4_vision", "another image encoder"),
    "hidden_activation": ("gelu_pytorch_tanh", "another activation"),
    "attention_bias": (False, "biases in attention"),
}
AUDIO_FIXED = {
    "model_type": ("gemma4_audio", "another sound encoder"),
    "hidden_act": ("silu", "another activation"),
    "attention_context_right": (0, "sight of later frames"),
    "attention_invalid_logits_value": (-1e9, "hidden frames that keep some weight"),
}
CHANNELS = 1 << 12  # the most that a convolution may have
# What no layer reads; the output length is the processor's budget.
VISION_IGNORED = frozenset({"max_position_embeddings", "global_head_dim", "default_output_length"})


@dataclass(frozen=True)
class VisionConfig:
    """The `vision_config` section."""

    hidden_size: Annotated[int, WIDTH]
    intermediate_size: Annotated[int, INNER_WIDTH]
    num_hidden_layers: Annotated[int, LAYERS]
    num_attention_heads: Annotated[int, HEADS]
    num_key_value_heads: Annotated[int, HEADS]
    head_dim: Annotated[int, HEAD_WIDTH]
    rms_norm_eps: Annotated[float, EPS]
    rope_theta: Annotated[float, THETA]  # stands in `rope_parameters`
    patch_size: Annotated[int, Bounds(1, 64)]
    pooling_kernel_size: Annotated[int, Bounds(1, 16)]
    position_embedding_size: Annotated[int, Bounds(1, 1 << 20)]
    use_clipped_linears: bool
    standardize: bool

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> Self:
        """Read a `vision_config` section in either of its forms.

        Raises: ConfigError naming the key that is missing, unknown or not implemented.
        """
        values = dict(as_section(section, VISION_SECTION))
        where = f"{VISION_SECTION}.rope_parameters"
        rope = as_section(required(values, "rope_parameters", VISION_SECTION) or {}, where)
        rope_type = required(rope, "rope_type", where)
        if rope_type not in ROPE_TYPES or rope.keys() - {"rope_type", "rope_theta"}:
            raise ConfigError(
                f"[{where}] needed rope_theta and a rope_type of {', '.join(ROPE_TYPES)}, got "
                f"{shown(rope)}. Other rotary embeddings are not implemented."
            )
        del values["rope_parameters"]
        values["rope_theta"] = required(rope, "rope_theta", where)
        check_fixed(values, VISION_FIXED, VISION_SECTION)
        names = [field.name for field in fields(cls)]
        check_known(values, {*names, *VISION_FIXED, *VISION_IGNORED}, VISION_SECTION)
        chosen = {name: required(values, name, VISION_SECTION) for name in names}
        config = cls(**checked(cls, chosen, VISION_SECTION))
        config._check()
        return config

    def _check(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"[{VISION_SECTION}.num_key_value_heads] needed a divisor of num_attention_heads "
                f"{self.num_attention_heads}, got {self.num_key_value_heads}. Correct the value."
            )
        if self.head_dim % 4:
            raise ConfigError(
                f"[{VISION_SECTION}.head_dim] needed a multiple of 4, got {self.head_dim}. "
                "Each axis of an image turns pairs of dimensions."
            )


@dataclass(frozen=True)
class AudioConfig:
    """The `audio_config` section."""

    hidden_size: Annotated[int, Bounds(2, 1 << 14)]
    num_hidden_layers: Annotated[int, LAYERS]
    num_attention_heads: Annotated[int, HEADS]
    subsampling_conv_channels: tuple[int, int]
    conv_kernel_size: Annotated[int, Bounds(1, 1 << 10)]
    residual_weight: Annotated[float, Bounds(0, 100)]
    attention_chunk_size: Annotated[int, Bounds(1, 1 << 12)]
    # Counts the frame itself and one more than is seen.
    attention_context_left: Annotated[int, Bounds(2, 1 << 7)]
    attention_logit_cap: Annotated[float, CAP]
    use_clipped_linears: bool
    rms_norm_eps: Annotated[float, EPS]
    gradient_clipping: Annotated[float, Bounds(1e-2, 3e38)]
    output_proj_dims: Annotated[int, WIDTH]

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> Self:
        """Read an `audio_config` section.

        Raises: ConfigError naming the key that is missing, unknown or not implemented.
        """
        section = as_section(section, AUDIO_SECTION)
        check_fixed(section, AUDIO_FIXED, AUDIO_SECTION)
        names = [field.name for field in fields(cls)]
        check_known(section, {*names, *AUDIO_FIXED}, AUDIO_SECTION)
        chosen = {name: required(section, name, AUDIO_SECTION) for name in names}
        chosen["subsampling_conv_channels"] = _channels(chosen["subsampling_conv_channels"])
        config = cls(**checked(cls, chosen, AUDIO_SECTION))
        config._check()
        return config

    @property
    def head_dim(self) -> int:
        """Dimensions of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def mel_groups(self) -> int:
        """How many values the convolutions leave of a frame's mel bins: a quarter, rounded up."""
        return self.subsampling_conv_channels[0] // 4

    def _check(self) -> None:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ConfigError(
                f"[{AUDIO_SECTION}.hidden_size] needed an even multiple of num_attention_heads "
                f"{self.num_attention_heads}, got {self.hidden_size}. Correct the value."
            )


def _channels(value: Any) -> tuple[int, int]:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    if (
        not is_pair
        or any(type(n) is not int or not 1 <= n <= CHANNELS for n in value)
        or value[0] < 4
    ):
        raise ConfigError(
            f"[{AUDIO_SECTION}.subsampling_conv_channels] needed two whole numbers from 1 to "
            f"{CHANNELS}, the first of them at least 4, got {shown(value)}. Correct the value."
        )
    return value[0], value[1]
