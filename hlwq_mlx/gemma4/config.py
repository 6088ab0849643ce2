"""Gemma 4's config.json as frozen values: every key that fixes a shape or a formula is required.

Reads the released form (`global_head_dim`), the form that transformers re-saves
(`per_layer_config`), the flat text-only form (`model_type: gemma4_text`) and 12B's (unified.py).
The towers' sections are read in towers/config.py. Sampling and token texts are not read at all.
Source: transformers 5.23.0, models/gemma4/configuration_gemma4.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self

from ..disk.fields import Bounds, checked, shown
from ..errors import ConfigError
from . import unified
from .overrides import released_form
from .section import (
    CAP,
    EPS,
    EXPERTS,
    HEAD_WIDTH,
    HEADS,
    INNER_WIDTH,
    LAYERS,
    POSITIONS,
    THETA,
    TOKEN,
    VOCABULARY,
    WIDTH,
    as_section,
    check_fixed,
    check_known,
    required,
)
from .towers.config import (
    AUDIO,
    AUDIO_SECTION,
    VISION,
    VISION_SECTION,
    AudioConfig,
    VisionConfig,
)
from .unified import as_gemma4

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
}

# Text keys that change neither a shape nor a formula of inference.
IGNORED = frozenset({"use_cache", "eos_token_id", "bos_token_id"})
# What a layer with experts has of its own; without `enable_moe_block` nobody reads them.
EXPERT_KEYS = ("num_experts", "top_k_experts", "moe_intermediate_size")
# In a flat file these stand beside the text keys, and are read by others.
FLAT_IGNORED = frozenset({"quantization_config", "quantization", "model_file"})

# The second spelling of `eoa_token_id` is the only one in files that transformers re-saves.
END_OF_AUDIO = ("eoa_token_id", "eoa_token_index")
VISION_TOKENS = ("image_token_id", "video_token_id", "boi_token_id", "eoi_token_id")
AUDIO_TOKENS = ("audio_token_id", "boa_token_id", END_OF_AUDIO[0])
MEDIA_TOKENS = (*VISION_TOKENS, *AUDIO_TOKENS, END_OF_AUDIO[1])


@dataclass(frozen=True)
class RopeConfig:
    """The rotary angles of one layer type."""

    rope_theta: Annotated[float, THETA]
    partial_rotary_factor: Annotated[float, Bounds(0, 1)]


@dataclass(frozen=True)
class LayerConfig:
    """The sizes and the kind of one decoder layer."""

    layer_type: str
    head_dim: int
    num_key_value_heads: int
    intermediate_size: int
    has_kv: bool
    k_eq_v: bool


@dataclass(frozen=True)
class TextConfig:
    """The `text_config` section; fields carry the checkpoint's key names."""

    vocab_size: Annotated[int, VOCABULARY]
    vocab_size_per_layer_input: Annotated[int, Bounds(0, VOCABULARY.most)]
    hidden_size: Annotated[int, WIDTH]
    hidden_size_per_layer_input: Annotated[int, Bounds(0, WIDTH.most)]
    intermediate_size: Annotated[int, INNER_WIDTH]
    num_hidden_layers: Annotated[int, LAYERS]
    num_kv_shared_layers: Annotated[int, Bounds(0, LAYERS.most)]
    num_attention_heads: Annotated[int, HEADS]
    num_key_value_heads: Annotated[int, HEADS]
    num_global_key_value_heads: Annotated[int | None, HEADS]
    head_dim: Annotated[int, HEAD_WIDTH]
    global_head_dim: Annotated[int, HEAD_WIDTH]
    attention_k_eq_v: bool
    use_double_wide_mlp: bool
    enable_moe_block: bool
    num_experts: Annotated[int | None, EXPERTS]
    top_k_experts: Annotated[int | None, EXPERTS]
    moe_intermediate_size: Annotated[int | None, INNER_WIDTH]
    use_bidirectional_attention: str | None
    layer_types: tuple[str, ...]
    rope_parameters: Mapping[str, RopeConfig]
    sliding_window: Annotated[int, POSITIONS]
    max_position_embeddings: Annotated[int, POSITIONS]
    rms_norm_eps: Annotated[float, EPS]
    final_logit_softcapping: Annotated[float | None, CAP]
    pad_token_id: Annotated[int, TOKEN]

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> Self:
        """Read a `text_config` section in any of its forms.

        An unknown key may stand for a formula, unless it is null or false.
        Raises: ConfigError naming the key that is missing, unknown or not implemented.
        """
        config = cls.read(section)
        _check_sharing(config)
        return config

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> Self:
        """Read a section as `from_dict` does, whichever layers make keys and values."""
        types = _layer_types(section)
        values = released_form(section, [layer_type == FULL for layer_type in types])
        if values.get("enable_moe_block") is not True:
            values |= dict.fromkeys(EXPERT_KEYS)
        check_fixed(values, FIXED, "text_config")
        names = [field.name for field in fields(cls)]
        check_known(values, {*names, *FIXED, *IGNORED}, "text_config")
        chosen = {name: required(values, name, "text_config") for name in names}
        chosen["layer_types"] = types
        chosen["rope_parameters"] = _ropes(chosen["rope_parameters"])
        config = cls(**checked(cls, chosen, "text_config"))
        _check_sizes(config)
        _check_experts(config)
        _check_formulas(config)
        return config

    @property
    def first_shared(self) -> int:
        """Index of the first layer that attends to another layer's keys and values."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    @property
    def per_layer_width(self) -> int:
        """Width of a row of the per-layer table, 0 if there is none."""
        return self.num_hidden_layers * self.hidden_size_per_layer_input

    def layer(self, index: int) -> LayerConfig:
        """Return one layer's config, by the rules for its type, sharing and width."""
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
    """The parts of config.json that the model needs; a tower whose section is null is absent."""

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
        config = as_gemma4(config)
        model_type = required(config, "model_type", "config")
        if model_type not in (*MULTIMODAL, FLAT):
            known = ", ".join((*MULTIMODAL, unified.MODEL_TYPE, FLAT))
            raise ConfigError(
                f"[config.model_type] needed one of {known}, "
                f"got {shown(model_type)}. Use a checkpoint of one of these architectures."
            )
        if model_type == FLAT:
            text = {key: value for key, value in config.items() if key not in FLAT_IGNORED}
            towers: dict[str, Any] = {}
        else:
            text = dict(as_section(required(config, "text_config", "config"), "text_config"))
            if "tie_word_embeddings" in config:
                text.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
            towers = dict(config)
        vision, audio = towers.get(VISION_SECTION), towers.get(AUDIO_SECTION)
        text_config = TextConfig.from_dict(text)
        manifest = config.get("quantization_config")
        vocab_size = text_config.vocab_size
        ids = dict.fromkeys((*VISION_TOKENS, *AUDIO_TOKENS))
        if vision is not None:
            ids |= {key: _token_id(config, key, vocab_size) for key in VISION_TOKENS}
        if audio is not None:
            ids |= {key: _token_id(config, key, vocab_size) for key in AUDIO_TOKENS}
        return cls(
            model_type=model_type,
            text_config=text_config,
            vision_config=None if vision is None else VisionConfig.from_dict(vision),
            audio_config=None if audio is None else AudioConfig.from_dict(audio),
            media_token_ids=_known_media_ids(config, vocab_size),
            quantization_config=manifest and as_section(manifest, "quantization_config"),
            **ids,
        )

    @property
    def towers(self) -> tuple[str, ...]:
        """The kinds of tower that the model has."""
        configs = {VISION: self.vision_config, AUDIO: self.audio_config}
        return tuple(kind for kind, config in configs.items() if config is not None)

    def manifest(self, belongs: Callable[[str], bool]) -> dict[str, Any]:
        """Return the part of the HLWQ manifest whose tensors `belongs` accepts by name.

        Raises: as `manifest_part`.
        """
        return manifest_part(self.quantization_config, belongs)

    @property
    def vision_token_ids(self) -> tuple[int, ...]:
        """The ids whose contiguous runs form one bidirectional block."""
        return tuple(i for i in (self.image_token_id, self.video_token_id) if i is not None)

    @property
    def soft_token_ids(self) -> tuple[int, ...]:
        """The ids whose embeddings come from a tower."""
        audio = () if self.audio_token_id is None else (self.audio_token_id,)
        return self.vision_token_ids + audio


def manifest_part(
    whole: Mapping[str, Any] | None, belongs: Callable[[str], bool]
) -> dict[str, Any]:
    """Return the part of a config's manifest whose tensors `belongs` accepts by name.

    It is empty for a config without an HLWQ manifest.
    Raises: ConfigError when it names no tensors.
    """
    if whole is None or whole.get("quant_method") != "hlwq":
        return {"tensors": {}, "tables": {}}
    named = as_section(whole.get("tensors"), "quantization_config.tensors")
    tensors = {name: entry for name, entry in named.items() if belongs(name)}
    return {**whole, "tensors": tensors}


def _token_id(config: Mapping[str, Any], key: str, vocab_size: int) -> int:
    """Return the id of a soft token, or of a token that encloses a run of them."""
    if key == END_OF_AUDIO[0]:
        key = next((name for name in END_OF_AUDIO if name in config), key)
    value: int = required(config, key, "config")
    _check_id(value, f"config.{key}", vocab_size)
    return value


def _known_media_ids(config: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """Return the ids of soft tokens and their enclosures, towers or not, within the vocabulary."""
    stated = (config.get(key) for key in MEDIA_TOKENS)
    return tuple(sorted({i for i in stated if type(i) is int and 0 <= i < vocab_size}))


def _check_id(value: Any, where: str, vocab_size: int) -> None:
    if type(value) is not int or not 0 <= value < vocab_size:
        raise ConfigError(
            f"[{where}] needed 0 to {vocab_size - 1} as the vocabulary has, got {shown(value)}. "
            "Take the model's own config.json."
        )


def _layer_types(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return each layer's type; null means every sixth layer, and the last, has full attention.

    Source: transformers 5.23.0, configuration_gemma4.py, Gemma4TextConfig.__post_init__.
    """
    count = required(values, "num_hidden_layers", "text_config")
    checked(TextConfig, {"num_hidden_layers": count}, "text_config")
    types = required(values, "layer_types", "text_config")
    if types is None:
        return tuple(FULL if i % 6 == 5 or i == count - 1 else SLIDING for i in range(count))
    is_list = isinstance(types, list | tuple) and len(types) == count and types[-1] == FULL
    if not is_list or any(each not in LAYER_TYPES for each in types):
        raise ConfigError(
            f"[text_config.layer_types] needed {count} entries out of {', '.join(LAYER_TYPES)}, "
            f"the last one {FULL}, got {shown(types)}. Correct the list."
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
                f"got {shown(rope_type)}. Other rotary embeddings are not implemented."
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
        values = {"rope_theta": theta, "partial_rotary_factor": part}
        ropes[layer_type] = RopeConfig(**checked(RopeConfig, values, f"{where}.{layer_type}"))
    return ropes


def _check_sizes(config: TextConfig) -> None:
    _check_id(config.pad_token_id, "text_config.pad_token_id", config.vocab_size)
    for key, width in (("head_dim", config.head_dim), ("global_head_dim", config.global_head_dim)):
        if width % 2:
            raise ConfigError(
                f"[text_config.{key}] needed an even number, got {width}. "
                "Rotary embeddings turn pairs of dimensions."
            )
    for key, heads in (
        ("num_key_value_heads", config.num_key_value_heads),
        ("num_global_key_value_heads", config.num_global_key_value_heads),
    ):
        if heads is not None and config.num_attention_heads % heads:
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
    if config.num_kv_shared_layers >= config.num_hidden_layers:
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


def _check_experts(config: TextConfig) -> None:
    if not config.enable_moe_block:
        return
    for key in EXPERT_KEYS:
        if getattr(config, key) is None:
            raise ConfigError(
                f"[text_config.{key}] needed a whole number with enable_moe_block, got None. "
                "Take the model's own config.json."
            )
    chosen, count = config.top_k_experts or 0, config.num_experts or 0
    if chosen > count:
        raise ConfigError(
            f"[text_config.top_k_experts] needed 1 to num_experts {count}, got {chosen}. "
            "Correct the value."
        )


def _check_formulas(config: TextConfig) -> None:
    if config.use_bidirectional_attention not in (None, "vision"):
        raise ConfigError(
            "[text_config.use_bidirectional_attention] needed null or 'vision', got "
            f"{config.use_bidirectional_attention!r}. Encoder use ('all') is not implemented."
        )
