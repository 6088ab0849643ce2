"""Configurations as transformers' own class saves them, and overrides that nobody should write.

The class needs no torch. What it saves is read, and held against its attributes.
"""

import json
from pathlib import Path

import pytest
from oracle import VARIANTS, config
from transformers import Gemma4Config as TheirConfig
from transformers import Gemma4TextConfig as TheirTextConfig

from hlwq_mlx.errors import ConfigError
from hlwq_mlx.folder import published
from hlwq_mlx.gemma4.config import FULL, SLIDING, Gemma4Config

RESAVED = Path(__file__).parents[1] / "data" / "configs" / "e4b_resaved.json"
E4B = published.e4b_config()
BIG_VISION = {
    **{"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
    **{"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 72},
    **{"use_clipped_linears": False, "standardize": True},
}
WITHOUT_SHARING = {
    **{"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "layer_types": None},
    **{"attention_k_eq_v": True, "use_bidirectional_attention": "vision"},
    **{"sliding_window": 1024, "max_position_embeddings": 262144},
}
# What differs from E4B in the text sections of other released sizes.
TEXTS = {
    "E4B": {},
    "E2B": {
        **{"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35},
        **{"num_key_value_heads": 1, "num_kv_shared_layers": 20, "use_double_wide_mlp": True},
        "layer_types": [FULL if i % 5 == 4 else SLIDING for i in range(35)],
    },
    "12B": WITHOUT_SHARING
    | {
        **{"hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48},
        **{"num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 1},
    },
    "31B": WITHOUT_SHARING
    | {
        **{"hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 60},
        **{"num_attention_heads": 32, "num_key_value_heads": 16, "num_global_key_value_heads": 4},
    },
    "26B-A4B": WITHOUT_SHARING
    | {
        **{"hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30},
        **{"num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2},
        **{"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8},
        "moe_intermediate_size": 704,
    },
}


def theirs(size: str) -> TheirConfig:
    """The class's own configuration of a released size."""
    changes: dict = {"text_config": E4B["text_config"] | TEXTS[size]}
    if size not in ("E2B", "E4B"):
        changes |= {"audio_config": None, "vision_config": E4B["vision_config"] | BIG_VISION}
    return TheirConfig(**json.loads(json.dumps(E4B | changes)))


def saved(settings, folder):
    settings.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def check_section(read, original, apart=()):
    """Compare every value of one of our sections with the class's attribute."""
    for key, value in vars(read).items():
        if key not in apart:
            expected = getattr(original, key)
            assert value == (tuple(expected) if isinstance(expected, list) else expected), key


def check_text(read, original):
    own = ("head_dim", "global_head_dim", "num_key_value_heads", "num_global_key_value_heads")
    check_section(read, original, ("rope_parameters", *own))
    for layer_type, rope in read.rope_parameters.items():
        expected = original.rope_parameters[layer_type]
        assert rope.rope_theta == expected["rope_theta"]
        assert rope.partial_rotary_factor == expected.get("partial_rotary_factor", 1.0)
    for index, layer in enumerate(original.per_layer_config):
        found = read.layer(index)
        assert found.head_dim == layer.head_dim, index
        assert found.num_key_value_heads == layer.num_key_value_heads, index


@pytest.mark.parametrize("size", TEXTS)
def test_what_the_class_saves_is_read(size, tmp_path):
    original = theirs(size)
    read = Gemma4Config.from_dict(saved(original, tmp_path))
    check_text(read.text_config, original.text_config)
    check_section(read.vision_config, original.vision_config, ("rope_theta",))
    assert read.vision_config.rope_theta == original.vision_config.rope_parameters["rope_theta"]
    assert (read.audio_config is None) == (original.audio_config is None)
    if read.audio_config is not None:
        check_section(read.audio_config, original.audio_config)
        assert read.eoa_token_id == original.eoa_token_index
    assert read.image_token_id == original.image_token_id
    flat = Gemma4Config.from_dict(saved(original.text_config, tmp_path))
    assert flat.text_config == read.text_config


@pytest.mark.parametrize("count", range(1, 61))
def test_every_depth_is_read(count, tmp_path):
    """Keys have a width that depends on the last layer's number."""
    shared = count // 3 if count > 12 else 0
    original = TheirTextConfig(num_hidden_layers=count, num_kv_shared_layers=shared)
    check_text(Gemma4Config.from_dict(saved(original, tmp_path)).text_config, original)


@pytest.mark.parametrize(
    "changes",
    [
        {"global_head_dim": 256},  # no layer has anything of its own
        {"global_head_dim": 256, "attention_k_eq_v": True, "num_global_key_value_heads": 2},
        {"attention_k_eq_v": True, "num_global_key_value_heads": 4},  # as in other layers
        {"dtype": "float16", "num_labels": 3, "output_attentions": True, "return_dict": False},
        {"bos_token_id": None, "eos_token_id": None, "attention_dropout": None},
    ],
)
def test_what_equals_a_default_may_be_left_out(changes, tmp_path):
    original = TheirTextConfig(num_hidden_layers=12, **changes)
    check_text(Gemma4Config.from_dict(saved(original, tmp_path)).text_config, original)


@pytest.mark.parametrize("flag", ["serialize_explicit", "allow_global"])
def test_overrides_may_name_every_layer(flag, tmp_path):
    original = TheirTextConfig(num_hidden_layers=12)
    plain = saved(original, tmp_path)
    names = {
        "serialize_explicit": "serialize_explicit_per_layer_config",
        "allow_global": "allow_global_per_layer_attribute_access",
    }
    setattr(original, names[flag], True)
    text = saved(original, tmp_path)
    assert text != plain
    assert Gemma4Config.from_dict(text) == Gemma4Config.from_dict(plain)


def test_e4b_as_a_fine_tune_carries_it():
    resaved = json.loads(RESAVED.read_text())
    assert Gemma4Config.from_dict(resaved) == Gemma4Config.from_dict(E4B)


def overridden(variant="plain", **changes):
    settings = config(variant)
    settings["text_config"] |= changes
    return settings


def refuse(settings, message):
    with pytest.raises(ConfigError, match=message):
        Gemma4Config.from_dict(settings)


def heads(*layers, head_dim=32):
    return {f"{i}": {"head_dim": head_dim} for i in layers}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (heads(2, 4, "07", 7), r"\] needed each of the layers 0 to 7 at most once, got '7'\."),
        (heads(2, 4, 7, 8), r"\] needed each of the layers 0 to 7 at most once, got '8'\."),
        (heads(2, 4, 7, -1), r"\] needed .* at most once, got '-1'\."),
        (heads(2, 4, "٧"), r"\] needed .* at most once, got '٧'\."),
        (heads(2, 4, "9" * 9999), r"\] needed .* at most once, got '999.*\.\.\.\."),
        (
            heads(2, 4),
            r"\] needed head_dim 32, .* for layer 7 as for others of its type, got .* 16",
        ),
        (heads(2, 4, 5, 7), r"\] needed head_dim 16, .* for layer 5 as for others of its type"),
        (heads(2, 4, 7) | {"7": {"skip": ["mlp"]}}, r"\.7\] needed only .*, got 'skip'\."),
        (heads(2, 4, 7) | {"7": 32}, r"\.7\] needed a JSON object, got 32\."),
        (
            {str(i): {"num_key_value_heads": 1} for i in (2, 4, 7)},
            r"\] needed num_key_value_heads 2 for every layer, got 1\. Other heads without att",
        ),
        (7, r"\] needed a JSON object, got 7\."),
    ],
)
def test_other_overrides_are_refused(overrides, message):
    refuse(overridden(per_layer_config=overrides), rf"^\[text_config\.per_layer_config{message}")


@pytest.mark.parametrize("value", [0, -1, 1 << 31, "32", True, None])
def test_a_head_size_of_overrides_has_the_bounds_of_any(value):
    overrides = heads(2, 4, 7, head_dim=value)
    refuse(overridden(per_layer_config=overrides), r"global_head_dim\] needed a whole number from")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_two_forms_may_not_contradict_each_other(variant):
    settings = overridden(variant, global_head_dim=32)
    assert Gemma4Config.from_dict(settings) == Gemma4Config.from_dict(config(variant))
    refuse(
        overridden(variant, global_head_dim=64),
        r"^\[text_config.global_head_dim\] needed 32 as in per_layer_config, got 64\.",
    )


def test_null_overrides_are_none():
    settings = overridden(per_layer_config=None, global_head_dim=32)
    settings["text_config"]["num_global_key_value_heads"] = None
    assert Gemma4Config.from_dict(settings) == Gemma4Config.from_dict(config())
