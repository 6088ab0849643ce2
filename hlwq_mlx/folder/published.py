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

E4B_DRAFTER: Mapping[str, Any] = {
    "model_type": "gemma4_assistant",
    "backbone_hidden_size": 2560,
    "use_ordered_embeddings": True,
    "num_centroids": 2048,
    "centroid_intermediate_top_k": 32,
    "text_config": {
        "model_type": "gemma4_text",
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 0,
        "hidden_size": 256,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": None,
        "head_dim": 256,
        "global_head_dim": 512,
        "attention_k_eq_v": False,
        "use_double_wide_mlp": False,
        "use_bidirectional_attention": None,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": 1000000.0,
                "partial_rotary_factor": 0.25,
            },
        },
        "sliding_window": 512,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": None,
        "pad_token_id": 0,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "enable_moe_block": False,
    },
}
"""What is known of the config of google/gemma-4-E4B-it-assistant (spec gemma4_architecture §8)."""

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
