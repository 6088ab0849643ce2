"""The tensors of the released Gemma 4 checkpoints: every name and shape, from the config alone.

For E4B these are the 2,130 of Google's file, dead key and value weights of KV-shared layers
included. It says what a source should hold; what one does hold is `inventory`'s to find.

Source: spec gemma4_architecture §4.1.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..gemma4.config import Gemma4Config
from ..gemma4.model import KEY_VALUE_PARTS, Model
from .names import TEXT, text_shapes, tower_shapes

Shape = tuple[int, ...]

E4B_CONFIG = Path(__file__).with_name("e4b_config.json")


def e4b_config() -> dict[str, Any]:
    """Return Gemma 4 E4B's config.json."""
    config: dict[str, Any] = json.loads(E4B_CONFIG.read_text(encoding="utf-8"))
    return config


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """List every tensor of a released checkpoint by name, with its shape.

    Raises: ConfigError for a config that is incomplete.
    """
    args = Gemma4Config.from_dict(config)
    args = replace(args, quantization_config=None)
    shapes = text_shapes(Model(args)) | dead(args)
    for kind in args.towers:
        shapes |= tower_shapes(args, kind)
    return shapes


def dead(args: Gemma4Config) -> dict[str, Shape]:
    """List the key and value weights that released files carry for layers which borrow theirs."""
    text = args.text_config
    shapes: dict[str, Shape] = {}
    for index in range(text.first_shared, text.num_hidden_layers):
        layer = text.layer(index)
        wide = (layer.num_key_value_heads * layer.head_dim, text.hidden_size)
        for part in KEY_VALUE_PARTS:
            shape = (layer.head_dim,) if part == "k_norm" else wide
            shapes[f"{TEXT}layers.{index}.self_attn.{part}.weight"] = shape
    return shapes
