"""E4B's config, that of smaller models of its kind, and those of the larger Gemma 4.

Source of the larger ones: spec gemma4_architecture §1.1, §1.2.
"""

from typing import Any

from hlwq_mlx.folder import published

SLIDING, FULL = "sliding_attention", "full_attention"
LARGER: dict[str, dict[str, Any]] = {
    "12B": {
        **{"hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48},
        **{"num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 1},
    },
    "26B-A4B": {
        **{"hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30},
        **{"num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2},
        **{"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8},
        "moe_intermediate_size": 704,
    },
    "31B": {
        **{"hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 60},
        **{"num_attention_heads": 32, "num_key_value_heads": 16, "num_global_key_value_heads": 4},
    },
}
OF_LARGER = {
    **{"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "attention_k_eq_v": True},
    **{"use_bidirectional_attention": "vision", "sliding_window": 1024},
    "max_position_embeddings": 262144,
}
OF_LARGER_VISION = {
    **{"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
    **{"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 72},
    **{"global_head_dim": 72, "use_clipped_linears": False, "standardize": True},
}
WITHOUT_TOWERS = ("12B",)


def e4b_config(**text: Any) -> dict[str, Any]:
    """Return E4B's config.json, with other values for some keys of its text model.

    In a smaller vocabulary the tokens around media, which are not there, become its last word.
    """
    config = published.e4b_config()
    config["text_config"] |= text
    last = config["text_config"]["vocab_size"] - 1
    for name, value in config.items():
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            config[name] = min(value, last)
    return config


def larger_config(name: str, **text: Any) -> dict[str, Any]:
    """Return the config of one of LARGER, with other values for some keys of its text model."""
    settings = OF_LARGER | LARGER[name] | text
    count = settings["num_hidden_layers"]
    types = [FULL if layer % 6 == 5 or layer == count - 1 else SLIDING for layer in range(count)]
    config = e4b_config(**{"layer_types": types} | settings)
    config["vision_config"] |= OF_LARGER_VISION
    config["audio_config"] = None
    if name in WITHOUT_TOWERS:
        config["vision_config"] = None
    return config
