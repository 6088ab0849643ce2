"""The Gemma 4 without towers (12B, `gemma4_unified`) in the form of the others: its text model.

That is Gemma 4's, without per-layer inputs and experts, whose keys its config leaves out. Raw
patches of pictures and raw frames of sound enter it through embedders of another kind, which are
not implemented: their sections are dropped and their tensors are read by no layer.
Source: transformers 5.23.0, models/gemma4_unified.
"""

from collections.abc import Mapping
from typing import Any

from ..disk.fields import shown
from ..errors import ConfigError
from .section import as_section, required

MODEL_TYPE = "gemma4_unified"
TEXT_TYPE = f"{MODEL_TYPE}_text"
EMBEDDERS = ("model.vision_embedder.", "model.embed_vision.", "model.embed_audio.")
_MARK = "without_towers"
_MEDIA = ("vision_config", "audio_config")


def is_unserved(config: Mapping[str, Any], name: str) -> bool:
    """Return whether a tensor belongs to an embedder that is not implemented."""
    is_unified = config.get("model_type") == MODEL_TYPE or config.get(_MARK) is True
    return is_unified and name.startswith(EMBEDDERS)


def as_gemma4(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config of this kind as one of `gemma4` for text, and any other as it is.

    Raises: ConfigError where its text section is of another kind.
    """
    if config.get("model_type") != MODEL_TYPE:
        return config
    text = as_section(required(config, "text_config", "config"), "text_config")
    if text.get("model_type") != TEXT_TYPE:
        raise ConfigError(
            f"[text_config.model_type] needed {TEXT_TYPE!r} in a config of {MODEL_TYPE}, got "
            f"{shown(text.get('model_type'))}. Take the model's own config.json."
        )
    absent = {
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": required(text, "vocab_size", "text_config"),
        "enable_moe_block": False,
    }
    return {
        **config,
        **dict.fromkeys(_MEDIA),
        "model_type": "gemma4",
        "text_config": {**absent, **text, "model_type": "gemma4_text"},
        _MARK: True,
    }
