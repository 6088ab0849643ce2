"""The config.json of a drafter: a small model that drafts tokens for a Gemma 4 to check.

Every layer of it attends to keys and values of that Gemma 4, its target.
Source: transformers 5.23.0, models/gemma4_assistant/configuration_gemma4_assistant.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

from ..disk.fields import Bounds, checked, shown
from ..errors import CheckpointError, ConfigError
from .config import FULL, SLIDING, TextConfig
from .section import VOCABULARY, WIDTH, as_section, required

# Google's name, and the one that our folders carry.
DRAFTERS = ("gemma4_assistant", "hlwq_gemma4_assistant")

# Text keys that have one value in a drafter.
FIXED = {"hidden_size_per_layer_input": 0, "use_double_wide_mlp": False}


@dataclass(frozen=True)
class DrafterConfig:
    """The parts of config.json that a drafter needs; fields carry the checkpoint's key names."""

    model_type: str
    text_config: TextConfig
    backbone_hidden_size: Annotated[int, WIDTH]
    use_ordered_embeddings: bool
    num_centroids: Annotated[int, Bounds(1, VOCABULARY.most)]
    centroid_intermediate_top_k: Annotated[int, Bounds(1, VOCABULARY.most)]
    quantization_config: Mapping[str, Any] | None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed config.json.

        Raises: ConfigError naming the key that is missing, unknown or not implemented.
        """
        model_type = required(config, "model_type", "config")
        if model_type not in DRAFTERS:
            raise ConfigError(
                f"[config.model_type] needed one of {', '.join(DRAFTERS)}, got "
                f"{shown(model_type)}. Name a drafter that was made for this model."
            )
        numbers = ("backbone_hidden_size", "num_centroids", "centroid_intermediate_top_k")
        chosen = {
            key: required(config, key, "config") for key in (*numbers, "use_ordered_embeddings")
        }
        manifest = config.get("quantization_config")
        made = cls(
            model_type=model_type,
            text_config=_text(config),
            quantization_config=manifest and as_section(manifest, "quantization_config"),
            **checked(cls, chosen, "config"),
        )
        _check_head(made)
        return made


def is_drafter(config: Mapping[str, Any]) -> bool:
    """Return whether a parsed config.json is a drafter's."""
    return config.get("model_type") in DRAFTERS


def require_fit(drafter: DrafterConfig, target: TextConfig) -> None:
    """Check that a drafter reads the keys, states and tokens that a target has.

    Raises: CheckpointError naming the first size that differs.
    """
    own = drafter.text_config
    sizes = {
        "backbone_hidden_size": (target.hidden_size, drafter.backbone_hidden_size),
        "vocab_size": (target.vocab_size, own.vocab_size),
        "sliding_window": (target.sliding_window, own.sliding_window),
        **_head_sizes(own, target),
    }
    for key, (needed, got) in sizes.items():
        if needed != got:
            raise CheckpointError(
                f"[draft-model: {key}] needed {needed} as the model has, got {got}. "
                "Name a drafter that was made for this model."
            )


def _head_sizes(own: TextConfig, target: TextConfig) -> dict[str, tuple[int, int]]:
    """Return the target's and the drafter's sizes of the heads that meet, by the key at fault."""
    sizes = {}
    made = {target.layer_types[index]: index for index in range(target.first_shared)}
    for layer_type, key in ((SLIDING, "head_dim"), (FULL, "global_head_dim")):
        if layer_type not in own.layer_types:
            continue
        if layer_type not in made:
            raise CheckpointError(
                f"[draft-model: layer_types] needed layers that the model has too, got "
                f"{layer_type}. Name a drafter that was made for this model."
            )
        theirs = target.layer(made[layer_type])
        mine = own.layer(own.layer_types.index(layer_type))
        sizes[key] = theirs.head_dim, mine.head_dim
        rest = own.num_attention_heads % theirs.num_key_value_heads
        sizes["num_attention_heads"] = own.num_attention_heads - rest, own.num_attention_heads
    return sizes


def _text(config: Mapping[str, Any]) -> TextConfig:
    """Read the text section, in which every layer shares keys and values."""
    section = dict(as_section(required(config, "text_config", "config"), "text_config"))
    section.setdefault("tie_word_embeddings", config.get("tie_word_embeddings"))
    text = TextConfig.read(section)
    if not text.num_kv_shared_layers:  # as transformers reads it
        text = replace(text, num_kv_shared_layers=text.num_hidden_layers)
    needed = FIXED | {"num_kv_shared_layers": text.num_hidden_layers}
    for key, value in needed.items():
        if getattr(text, key) != value:
            raise ConfigError(
                f"[text_config.{key}] needed {value!r}, got {getattr(text, key)!r}: every layer "
                "of a drafter shares the model's keys and values. Take the drafter's own "
                "config.json."
            )
    return text


def _check_head(config: DrafterConfig) -> None:
    vocab_size = config.text_config.vocab_size
    if config.use_ordered_embeddings and vocab_size % config.num_centroids:
        raise ConfigError(
            f"[config.num_centroids] needed a divisor of vocab_size {vocab_size}, got "
            f"{config.num_centroids}. Correct the value."
        )
    if config.use_ordered_embeddings and config.centroid_intermediate_top_k > config.num_centroids:
        raise ConfigError(
            f"[config.centroid_intermediate_top_k] needed at most num_centroids "
            f"{config.num_centroids}, got {config.centroid_intermediate_top_k}. Correct the value."
        )
