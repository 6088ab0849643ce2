"""The towers' sections of config.json: what is read, and the message of each refusal."""

import dataclasses
import json

import pytest
from oracle import config

from hlwq_mlx.errors import ConfigError
from hlwq_mlx.folder import published
from hlwq_mlx.gemma4.config import Gemma4Config
from hlwq_mlx.gemma4.towers.config import AudioConfig, VisionConfig

E4B = published.e4b_config()
VISION = config("clipped")["vision_config"]
AUDIO = config("clipped")["audio_config"]
SECTIONS = {"vision_config": (VisionConfig, VISION), "audio_config": (AudioConfig, AUDIO)}
REQUIRED = [
    *(("vision_config", field.name) for field in dataclasses.fields(VisionConfig)),
    *(("vision_config", key) for key in ("model_type", "hidden_activation", "attention_bias")),
    *(("audio_config", field.name) for field in dataclasses.fields(AudioConfig)),
    *(("audio_config", key) for key in ("model_type", "hidden_act")),
]


def refuse(section, changes, message):
    read, values = SECTIONS[section]
    with pytest.raises(ConfigError, match=message):
        read.from_dict(values | changes)


def test_reads_e4b():
    e4b = Gemma4Config.from_dict(E4B)
    vision, audio = e4b.vision_config, e4b.audio_config
    assert (vision.patch_size, vision.pooling_kernel_size, vision.rope_theta) == (16, 3, 100.0)
    assert (vision.use_clipped_linears, vision.standardize) == (True, False)
    assert (audio.head_dim, audio.mel_groups, audio.subsampling_conv_channels) == (
        128,
        32,
        (128, 32),
    )
    assert (audio.attention_context_left, audio.attention_logit_cap) == (13, 50.0)


def test_both_names_of_the_rotary_embedding_are_one():
    released = VISION | {"rope_parameters": VISION["rope_parameters"] | {"rope_type": "default"}}
    assert released != VISION
    assert VisionConfig.from_dict(released) == VisionConfig.from_dict(VISION)


@pytest.mark.parametrize("absent", [{"audio_config": None}, {}])
def test_a_null_or_absent_section_is_no_tower(absent):
    settings = {key: value for key, value in config("clipped").items() if key != "audio_config"}
    read = Gemma4Config.from_dict(settings | absent)
    assert read.towers == ("vision",)
    assert read.soft_token_ids == (300, 302)


def test_an_empty_section_is_not_taken_for_none():
    with pytest.raises(ConfigError, match=r"^\[audio_config\] needed key model_type, got none"):
        Gemma4Config.from_dict(config("clipped") | {"audio_config": {}})


def test_a_missing_key_is_named():
    for section, key in REQUIRED:
        read, values = SECTIONS[section]
        values = json.loads(json.dumps(values))
        where = section
        if key == "rope_theta":
            del values["rope_parameters"][key]
            where = f"{section}.rope_parameters"
        else:
            del values[key]
        with pytest.raises(ConfigError, match=rf"^\[{where}\] needed key {key}, got none\."):
            read.from_dict(values)


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_keys_are_named_unless_they_ask_for_nothing(section):
    read, values = SECTIONS[section]
    refuse(
        section, {"use_more": 1, "a_norm": "x"}, rf"^\[{section}\] needed .*, got a_norm, use_mo"
    )
    assert read.from_dict(values | {"use_more": False, "a_norm": None}) == read.from_dict(values)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("vision_config", {"model_type": "siglip"}, "This would need another image encoder, which"),
        ("vision_config", {"attention_bias": True}, "This would need biases in attention, which"),
        ("vision_config", {"hidden_activation": "silu"}, "need another activation, which"),
        ("vision_config", {"head_dim": 18}, r"head_dim\] needed a multiple of 4, got 18\."),
        ("vision_config", {"num_key_value_heads": 2}, r"needed a divisor of .* 3, got 2\."),
        ("vision_config", {"patch_size": 0}, r"patch_size\] needed a .* from 1 to 64, got 0\."),
        ("vision_config", {"standardize": 1}, r"standardize\] needed true or false, got 1\."),
        (
            "vision_config",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}},
            r"rope_parameters\] needed rope_theta and a rope_type of default, axial, got",
        ),
        (
            "vision_config",
            {"rope_parameters": {"rope_type": "axial", "rope_theta": 1.0, "factor": 2}},
            r"rope_parameters\] .* Other rotary embeddings are not implemented\.",
        ),
        ("vision_config", {"rope_parameters": None}, r"rope_parameters\] needed key rope_type"),
        ("audio_config", {"model_type": "usm"}, "This would need another sound encoder, which"),
        ("audio_config", {"hidden_act": "relu"}, "This would need another activation, which"),
        (
            "audio_config",
            {"attention_invalid_logits_value": -1.0},
            "This would need hidden frames that keep some weight, which",
        ),
        ("audio_config", {"hidden_size": 33}, r"needed an even multiple of .* 2, got 33\."),
        ("audio_config", {"attention_context_left": 1}, r"needed .* from 2 to 128, got 1\."),
        ("audio_config", {"attention_context_right": 2}, "need sight of later frames, which"),
        ("audio_config", {"attention_logit_cap": 0.0}, r"needed a number from 0\.01 .* got 0\.0\."),
        ("audio_config", {"gradient_clipping": -1}, r"needed a number from 0\.01 .* got -1\."),
        ("audio_config", {"use_clipped_linears": None}, "needed true or false, got None"),
        ("audio_config", {"subsampling_conv_channels": [16]}, r"needed two .* got \[16\]"),
        ("audio_config", {"subsampling_conv_channels": [3, 8]}, r"needed two .* got \[3, 8\]"),
        ("audio_config", {"subsampling_conv_channels": 16}, "needed two .* got 16"),
    ],
)
def test_what_is_not_implemented_is_refused(section, changes, message):
    refuse(section, changes, rf"^\[{section}.*{message}")
