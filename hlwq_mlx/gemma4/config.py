"""Gemma 4's config.json as frozen values: every key that fixes a shape or a formula is required.

Reads the released form (`global_head_dim`), the form that transformers re-saves
(`per_layer_config`) and the flat text-only form (`model_type: gemma4_text`). The towers' sections
are tower_config's. It does not interpret anything about sampling or token text.
Source: transformers 5.23.0, models/gemma4/configuration_gemma4.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from ..errors import ConfigError
from .section import as_section, check_fixed, check_known, check_sizes, check_types, required
from .towers.config import AUDIO, VISION, AudioConfig, VisionConfig

# The multimodal form: Google's name, and the one our folders carry so that stock tools which know
# gemma4 do not misread coded tensors.
MULTIMODAL = ("gemma4", "hlwq_gemma4")
FLAT = "gemma4_text"

SLIDING = "sliding_attention"
FULL = "full_attention"
LAYER_TYPES = (SLIDING, FULL)
ROPE_TYPES = ("default", "proportional")

# Text keys with one implemented value, and what another value would ask for.
FIXED = {
    "model_type": (FLAT, "a text model other than Gemma 4's"),
    "hidden_activation": ("gelu_pytorch_tanh", "another activation"),
    "attention_bias": (False, "biases in attention"),
    "tie_word_embeddings": (True, "an output head of its own"),
    "enable_moe_block": (False, "mixture-of-experts (MoE) layers, as in 26B-A4B"),
}

# Text keys that change neither a shape nor a formula of inference without experts.
IGNORED = frozenset(
    {
        *("use_cache", "eos_token_id", "bos_token_id"),
        *("num_experts", "top_k_experts", "moe_intermediate_size"),
    }
)
# In a flat file these stand beside the text keys, and are read by others.
FLAT_IGNORED = frozenset({"quantization_config", "quantization", "model_file"})

# The second spelling of `eoa_token_id` is the only one in files that transformers re-saves.
END_OF_AUDIO = ("eoa_token_id", "eoa_token_index")
MEDIA_TOKENS = (
    *("image_token_id", "video_token_id", "audio_token_id"),
    *("boi_token_id", "eoi_token_id", "boa_token_id", *END_OF_AUDIO),
)

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "sliding_window"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "global_head_dim"),
    "max_position_embeddings",
)


@dataclass(frozen=True)
class RopeConfig:
    """The rotary angles of one layer type."""

    rope_theta: float
    partial_rotary_factor: float


@dataclass(frozen=True)
class LayerConfig:
    """What one decoder layer is built from."""

    layer_type: str
    head_dim: int
    num_key_value_heads: int
    intermediate_size: int
    has_kv: bool
    k_eq_v: bool


@dataclass(frozen=True)
class TextConfig:
    """The `text_config` section; fields carry the checkpoint's key names."""

    vocab_size: int
    vocab_size_per_layer_input: int
    hidden_size: int
    hidden_size_per_layer_input: int
    intermediate_size: int
    num_hidden_layers: int
    num_kv_shared_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    num_global_key_value_heads: int | None
    head_dim: int
    global_head_dim: int
    attention_k_eq_v: bool
    use_double_wide_mlp: bool
    use_bidirectional_attention: str | None
    layer_types: tuple[str, ...]
    rope_parameters: Mapping[str, RopeConfig]
    sliding_window: int
    max_position_embeddings: int
    rms_norm_eps: float
    final_logit_softcapping: float | None
    pad_token_id: int

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> Self:
        """Read a `text_config` section in any of its forms.

        An unknown key may stand for a formula, unless it is null or false.
        Raises: ConfigError naming the key that is missing, unknown or not implemented.
        """
        values = _released_form(section)
        check_fixed(values, FIXED, "text_config")
        names = [field.name for field in fields(cls)]
        check_known(values, {*names, *FIXED, *IGNORED}, "text_config")
        chosen = {name: required(values, name, "text_config") for name in names}
        chosen["layer_types"] = _layer_types(chosen)
        chosen["rope_parameters"] = _ropes(chosen["rope_parameters"])
        check_sizes(chosen, SIZES, "text_config")
        check_types(cls, chosen, "text_config")
        config = cls(**chosen)
        _check_sizes(config)
        _check_sharing(config)
        _check_formulas(config)
        return config

    @property
    def first_shared(self) -> int:
        """Index of the first layer that attends to another layer's keys and values."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    def layer(self, index: int) -> LayerConfig:
        """Resolve layer type, sharing and width rules for one layer."""
        is_full = self.layer_types[index] == FULL
        has_kv = index < self.first_shared
        k_eq_v = is_full and self.attention_k_eq_v
        global_heads = self.num_global_key_value_heads if k_eq_v else None
        is_wide = self.use_double_wide_mlp and not has_kv
        return LayerConfig(
            layer_type=self.layer_types[index],
            head_dim=self.global_head_dim if is_full else self.head_dim,
            num_key_value_heads=global_heads or self.num_key_value_heads,
            intermediate_size=self.intermediate_size * (2 if is_wide else 1),
            has_kv=has_kv,
            k_eq_v=k_eq_v,
        )


@dataclass(frozen=True)
class Gemma4Config:
    """The whole config.json, as far as the model needs it; a section that is null is no tower."""

    model_type: str
    text_config: TextConfig
    vision_config: VisionConfig | None
    audio_config: AudioConfig | None
    image_token_id: int | None
    video_token_id: int | None
    audio_token_id: int | None
    boi_token_id: int | None
    eoi_token_id: int | None
    boa_token_id: int | None
    eoa_token_id: int | None
    media_token_ids: tuple[int, ...]  # soft tokens and what encloses them, towers or not
    quantization_config: Mapping[str, Any] | None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed config.json.

        Raises: ConfigError naming the key that is missing, unknown or not implemented.
        """
        model_type = required(config, "model_type", "config")
        if model_type not in (*MULTIMODAL, FLAT):
            raise ConfigError(
                f"[config.model_type] needed one of {', '.join((*MULTIMODAL, FLAT))}, "
                f"got {model_type}. Use a checkpoint of one of these architectures."
            )
        if model_type == FLAT:
            text = {key: value for key, value in config.items() if key not in FLAT_IGNORED}
            towers: dict[str, Any] = {}
        else:
            text = dict(as_section(required(config, "text_config", "config"), "text_config"))
            if "tie_word_embeddings" in config:
                text.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
            towers = dict(config)
        vision, audio = towers.get("vision_config"), towers.get("audio_config")
        media = {config[key] for key in MEDIA_TOKENS if type(config.get(key)) is int}
        manifest = config.get("quantization_config")
        read = cls(
            model_type=model_type,
            text_config=TextConfig.from_dict(text),
            vision_config=None if vision is None else VisionConfig.from_dict(vision),
            audio_config=None if audio is None else AudioConfig.from_dict(audio),
            image_token_id=None if vision is None else required(config, "image_token_id", "config"),
            video_token_id=None if vision is None else required(config, "video_token_id", "config"),
            audio_token_id=None if audio is None else required(config, "audio_token_id", "config"),
            boi_token_id=None if vision is None else required(config, "boi_token_id", "config"),
            eoi_token_id=None if vision is None else required(config, "eoi_token_id", "config"),
            boa_token_id=None if audio is None else required(config, "boa_token_id", "config"),
            eoa_token_id=None if audio is None else _end_of_audio(config),
            media_token_ids=tuple(sorted(media)),
            quantization_config=manifest and as_section(manifest, "quantization_config"),
        )
        check_types(cls, vars(read), "config")
        return read

    @property
    def towers(self) -> tuple[str, ...]:
        """The kinds of tower that the model has."""
        configs = {VISION: self.vision_config, AUDIO: self.audio_config}
        return tuple(kind for kind, config in configs.items() if config is not None)

    def manifest(self, belongs: Callable[[str], bool]) -> dict[str, Any]:
        """The HLWQ manifest as far as it is about one part of the model; empty if there is none.

        `belongs` says of a tensor's name whether the part has it.
        Raises: ConfigError when it names no tensors.
        """
        whole = self.quantization_config
        if whole is None or whole.get("quant_method") != "hlwq":
            return {"tensors": {}, "tables": {}}
        named = as_section(whole.get("tensors"), "quantization_config.tensors")
        tensors = {name: entry for name, entry in named.items() if belongs(name)}
        return {**whole, "tensors": tensors}

    @property
    def vision_token_ids(self) -> tuple[int, ...]:
        """The ids whose contiguous runs form one bidirectional block."""
        return tuple(i for i in (self.image_token_id, self.video_token_id) if i is not None)

    @property
    def soft_token_ids(self) -> tuple[int, ...]:
        """The ids whose embeddings come from a tower."""
        audio = () if self.audio_token_id is None else (self.audio_token_id,)
        return self.vision_token_ids + audio


def _end_of_audio(config: Mapping[str, Any]) -> Any:
    stated = (key for key in END_OF_AUDIO if key in config)
    return required(config, next(stated, END_OF_AUDIO[0]), "config")


def _released_form(section: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `per_layer_config`, which overrides full layers one by one, into the released keys."""
    values = dict(section)
    overrides = values.pop("per_layer_config", None)
    if overrides is None:
        return values
    overrides = as_section(overrides, "text_config.per_layer_config")
    types = _layer_types(values)
    full = {str(i) for i, layer_type in enumerate(types) if layer_type == FULL}
    entries = list(overrides.values())
    uniform = all(entry == entries[0] for entry in entries)
    is_known = uniform and entries and isinstance(entries[0], dict)
    is_known = is_known and entries[0].keys() <= {"head_dim", "num_key_value_heads"}
    if not is_known or {str(i) for i in overrides} != full:
        raise ConfigError(
            "[text_config.per_layer_config] needed one equal entry of head_dim and "
            f"num_key_value_heads for each of the layers {', '.join(sorted(full, key=int))}, "
            f"got {overrides}. Other overrides are not implemented."
        )
    released = {
        "global_head_dim": required(entries[0], "head_dim", "text_config.per_layer_config"),
        "num_global_key_value_heads": entries[0].get("num_key_value_heads"),
    }
    for key, value in released.items():
        if values.setdefault(key, value) != value:
            raise ConfigError(
                f"[text_config.{key}] needed {value} as in per_layer_config, got {values[key]}. "
                "Remove one of the two."
            )
    return values


def _layer_types(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The type of each layer; null means five sliding layers, then a full one, and the last full.

    Source: transformers 5.23.0, configuration_gemma4.py, Gemma4TextConfig.__post_init__.
    """
    count = required(values, "num_hidden_layers", "text_config")
    check_sizes(values, ("num_hidden_layers",), "text_config")
    types = required(values, "layer_types", "text_config")
    if types is None:
        return tuple(FULL if i % 6 == 5 or i == count - 1 else SLIDING for i in range(count))
    is_list = isinstance(types, list | tuple) and len(types) == count and types[-1] == FULL
    if not is_list or any(each not in LAYER_TYPES for each in types):
        raise ConfigError(
            f"[text_config.layer_types] needed {count} entries out of {', '.join(LAYER_TYPES)}, "
            f"the last one {FULL}, got {types}. Correct the list."
        )
    return tuple(types)


def _ropes(parameters: Any) -> dict[str, RopeConfig]:
    """One RopeConfig per layer type, from `rope_parameters`."""
    where = "text_config.rope_parameters"
    ropes = {}
    for layer_type in LAYER_TYPES:
        rope = required(as_section(parameters or {}, where), layer_type, where)
        rope = as_section(rope, f"{where}.{layer_type}")
        rope_type = required(rope, "rope_type", f"{where}.{layer_type}")
        if rope_type not in ROPE_TYPES:
            raise ConfigError(
                f"[{where}.{layer_type}.rope_type] needed one of {', '.join(ROPE_TYPES)}, "
                f"got {rope_type}. Other rotary embeddings are not implemented."
            )
        known = {"rope_type", "rope_theta", "partial_rotary_factor"}
        if rope.keys() - known:
            raise ConfigError(
                f"[{where}.{layer_type}] needed only {', '.join(sorted(known))}, got "
                f"{', '.join(sorted(rope.keys() - known))}. Rotary scaling is not implemented."
            )
        part = 1.0
        if rope_type == "proportional":
            part = required(rope, "partial_rotary_factor", f"{where}.{layer_type}")
        theta = required(rope, "rope_theta", f"{where}.{layer_type}")
        ropes[layer_type] = RopeConfig(rope_theta=theta, partial_rotary_factor=part)
        check_types(RopeConfig, vars(ropes[layer_type]), f"{where}.{layer_type}")
        if not (theta > 0 and 0 <= part <= 1):
            raise ConfigError(
                f"[{where}.{layer_type}] needed a positive rope_theta and a partial_rotary_factor "
                f"of 0 to 1, got {theta} and {part}. Correct the values."
            )
    return ropes


def _check_sizes(config: TextConfig) -> None:
    if not 0 <= config.pad_token_id < config.vocab_size:
        raise ConfigError(
            f"[text_config.pad_token_id] needed 0 to {config.vocab_size - 1}, got "
            f"{config.pad_token_id}. Soft tokens are embedded as it."
        )
    for key, heads in (
        ("num_key_value_heads", config.num_key_value_heads),
        ("num_global_key_value_heads", config.num_global_key_value_heads),
    ):
        if heads is not None and (heads < 1 or config.num_attention_heads % heads):
            raise ConfigError(
                f"[text_config.{key}] needed a divisor of num_attention_heads "
                f"{config.num_attention_heads}, got {heads}. Correct the value."
            )
    if config.hidden_size_per_layer_input and config.vocab_size_per_layer_input < config.vocab_size:
        raise ConfigError(
            f"[text_config.vocab_size_per_layer_input] needed at least vocab_size "
            f"{config.vocab_size}, got {config.vocab_size_per_layer_input}. "
            "Every token needs a row."
        )


def _check_sharing(config: TextConfig) -> None:
    if not 0 <= config.num_kv_shared_layers < config.num_hidden_layers:
        raise ConfigError(
            f"[text_config.num_kv_shared_layers] needed 0 to {config.num_hidden_layers - 1}, "
            f"got {config.num_kv_shared_layers}. Some layer has to make keys and values."
        )
    producers = set(config.layer_types[: config.first_shared])
    missing = set(config.layer_types[config.first_shared :]) - producers
    if missing:
        raise ConfigError(
            "[text_config.num_kv_shared_layers] needed a layer of each shared type before the "
            f"shared ones, got no {', '.join(sorted(missing))}. Correct the value."
        )


def _check_formulas(config: TextConfig) -> None:
    if config.use_bidirectional_attention not in (None, "vision"):
        raise ConfigError(
            "[text_config.use_bidirectional_attention] needed null or 'vision', got "
            f"{config.use_bidirectional_attention!r}. Encoder use ('all') is not implemented."
        )
    cap = config.final_logit_softcapping
    if cap is not None and not cap > 0:
        raise ConfigError(
            f"[text_config.final_logit_softcapping] needed null or a positive number, got {cap}. "
            "Correct the value."
        )
