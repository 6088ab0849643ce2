"""The towers' sections of config.json as frozen values: fields carry the checkpoint's key names.

Not what a processor needs to make their inputs: pixels, frames and budgets are other files'.
Source: transformers 5.23.0, models/gemma4/configuration_gemma4.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from ...errors import ConfigError
from ..section import as_section, check_fixed, check_known, check_sizes, check_types, required

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
    "attention_invalid_logits_value": (-1e9, "hidden frames that keep some weight"),
}
# What no layer reads; the output length is the processor's budget.
VISION_IGNORED = frozenset({"max_position_embeddings", "global_head_dim", "default_output_length"})

VISION_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "patch_size", "pooling_kernel_size"),
    "position_embedding_size",
)
AUDIO_SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "conv_kernel_size"),
    *("attention_chunk_size", "attention_context_left", "output_proj_dims"),
)


@dataclass(frozen=True)
class VisionConfig:
    """The `vision_config` section."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float  # stands in `rope_parameters`
    patch_size: int
    pooling_kernel_size: int
    position_embedding_size: int
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
                f"{rope}. Other rotary embeddings are not implemented."
            )
        del values["rope_parameters"]
        values["rope_theta"] = required(rope, "rope_theta", where)
        check_fixed(values, VISION_FIXED, VISION_SECTION)
        names = [field.name for field in fields(cls)]
        check_known(values, {*names, *VISION_FIXED, *VISION_IGNORED}, VISION_SECTION)
        config = cls(**{name: required(values, name, VISION_SECTION) for name in names})
        check_sizes(vars(config), VISION_SIZES, VISION_SECTION)
        check_types(cls, vars(config), VISION_SECTION)
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

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    subsampling_conv_channels: tuple[int, int]
    conv_kernel_size: int
    residual_weight: float
    attention_chunk_size: int
    attention_context_left: int  # counts the frame itself and one more than is seen
    attention_context_right: int
    attention_logit_cap: float
    use_clipped_linears: bool
    rms_norm_eps: float
    gradient_clipping: float
    output_proj_dims: int

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
        config = cls(**chosen)
        check_sizes(chosen, AUDIO_SIZES, AUDIO_SECTION)
        check_types(cls, chosen, AUDIO_SECTION)
        config._check()
        return config

    @property
    def head_dim(self) -> int:
        """How many dimensions a head of attention has."""
        return self.hidden_size // self.num_attention_heads

    @property
    def mel_groups(self) -> int:
        """What the convolutions must leave of a frame's mel bins: a quarter, rounded up."""
        return self.subsampling_conv_channels[0] // 4

    def _check(self) -> None:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ConfigError(
                f"[{AUDIO_SECTION}.hidden_size] needed an even multiple of num_attention_heads "
                f"{self.num_attention_heads}, got {self.hidden_size}. Correct the value."
            )
        if self.attention_context_left < 2 or self.attention_context_right:
            raise ConfigError(
                f"[{AUDIO_SECTION}] needed attention_context_left of at least 2 and "
                f"attention_context_right 0, got {self.attention_context_left} and "
                f"{self.attention_context_right}. Sight of later frames is not implemented."
            )
        for key in ("attention_logit_cap", "gradient_clipping"):
            if not getattr(self, key) > 0:
                raise ConfigError(
                    f"[{AUDIO_SECTION}.{key}] needed a positive number, got {getattr(self, key)}. "
                    "Correct the value."
                )


def _channels(value: Any) -> tuple[int, int]:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    if not is_pair or any(type(count) is not int or count < 1 for count in value) or value[0] < 4:
        raise ConfigError(
            f"[{AUDIO_SECTION}.subsampling_conv_channels] needed two positive integers, the first "
            f"of them at least 4, got {value!r}. Correct the value."
        )
    return value[0], value[1]
