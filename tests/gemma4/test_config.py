"""Every form of config.json that is accepted, and the message of each refusal."""

import dataclasses
from copy import deepcopy

import pytest
from oracle import VARIANTS, config

from hlwq_mlx.errors import ConfigError
from hlwq_mlx.folder import published
from hlwq_mlx.gemma4.config import (
    EXPERT_KEYS,
    FULL,
    SLIDING,
    Gemma4Config,
    RopeConfig,
    TextConfig,
)

E4B = published.e4b_config()


def released(variant="plain"):
    """The oracle's config in the released form."""
    settings = config(variant)
    entry = settings["text_config"].pop("per_layer_config")["2"]
    settings["text_config"]["global_head_dim"] = entry["head_dim"]
    settings["text_config"]["num_global_key_value_heads"] = entry.get("num_key_value_heads")
    return settings


def changed(**changes):
    """The released form with text keys changed."""
    settings = released()
    settings["text_config"].update(changes)
    return settings


def refuse(settings, message):
    with pytest.raises(ConfigError, match=message):
        Gemma4Config.from_dict(settings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_forms_give_the_same(variant):
    settings = released(variant)
    assert Gemma4Config.from_dict(settings) == Gemma4Config.from_dict(config(variant))


def test_reads_e4b():
    e4b = Gemma4Config.from_dict(E4B)
    text = e4b.text_config
    assert text.first_shared == 24
    assert (text.layer_types.count(FULL), text.layer_types.count(SLIDING)) == (7, 35)
    sliding, full, sharing = text.layer(22), text.layer(23), text.layer(41)
    assert (sliding.head_dim, full.head_dim, sharing.head_dim) == (256, 512, 512)
    assert (sliding.has_kv, full.has_kv, sharing.has_kv) == (True, True, False)
    assert {text.layer(i).num_key_value_heads for i in range(42)} == {2}
    assert {text.layer(i).intermediate_size for i in range(42)} == {10240}
    assert text.rope_parameters == {SLIDING: RopeConfig(1e4, 1.0), FULL: RopeConfig(1e6, 0.25)}
    assert e4b.vision_token_ids == (258880, 258884)
    assert e4b.soft_token_ids == (258880, 258884, 258881)
    assert e4b.towers == ("vision", "audio")
    assert e4b.quantization_config is None


def test_layer_rules_of_the_variants():
    texts = {v: Gemma4Config.from_dict(config(v)).text_config for v in VARIANTS}
    assert [texts["k_eq_v"].layer(i).num_key_value_heads for i in range(3)] == [2, 2, 1]
    assert [texts["k_eq_v"].layer(i).k_eq_v for i in range(3)] == [False, False, True]
    assert not any(texts["plain"].layer(i).k_eq_v for i in range(8))
    widths = [texts["double_wide"].layer(i).intermediate_size for i in range(8)]
    assert widths == [96] * 5 + [192] * 3


def test_k_eq_v_without_global_heads_keeps_the_others():
    text = TextConfig.from_dict(changed(attention_k_eq_v=True)["text_config"])
    assert text.layer(2).num_key_value_heads == 2


def test_global_heads_count_only_with_k_eq_v():
    text = TextConfig.from_dict(changed(num_global_key_value_heads=1)["text_config"])
    assert text.layer(2).num_key_value_heads == 2


def test_reads_the_flat_text_form():
    flat = {
        **config()["text_config"],
        "architectures": ["Gemma4ForCausalLM"],
        "transformers_version": "5.23.0",
        "quantization_config": {"quant_method": "hlwq"},
    }
    read = Gemma4Config.from_dict(flat)
    assert read.text_config == Gemma4Config.from_dict(config()).text_config
    assert read.soft_token_ids == ()
    assert read.quantization_config == {"quant_method": "hlwq"}


def test_our_own_model_type_is_the_multimodal_form():
    ours = Gemma4Config.from_dict({**config(), "model_type": "hlwq_gemma4"})
    google = Gemma4Config.from_dict(config())
    assert dataclasses.replace(ours, model_type="gemma4") == google


def test_a_config_without_towers_needs_no_soft_tokens():
    settings = released()
    for key in ("vision_config", "image_token_id", "video_token_id"):
        del settings[key]
    settings["audio_config"] = None
    del settings["audio_token_id"]
    assert Gemma4Config.from_dict(settings).soft_token_ids == ()


def test_reading_leaves_the_dictionary_as_it_was():
    settings = config()
    before = deepcopy(settings)
    Gemma4Config.from_dict(settings)
    assert settings == before


def test_unknown_keys_at_top_level_are_ignored():
    assert Gemma4Config.from_dict({**released(), "anything": 1}) == Gemma4Config.from_dict(config())


def test_values_are_frozen():
    text = Gemma4Config.from_dict(config()).text_config
    with pytest.raises(dataclasses.FrozenInstanceError):
        text.hidden_size = 1


REQUIRED = [
    field.name for field in dataclasses.fields(TextConfig) if field.name not in EXPERT_KEYS
] + ["model_type", "hidden_activation", "attention_bias"]


def test_a_missing_text_key_is_named():
    for key in REQUIRED:
        settings = released()
        del settings["text_config"][key]
        message = rf"^\[text_config\] needed key {key}, got none\. It fixes a shape or a formula"
        refuse(settings, message)


@pytest.mark.parametrize(
    "key", ["model_type", "text_config", "image_token_id", "video_token_id", "audio_token_id"]
)
def test_a_missing_top_level_key_is_named(key):
    settings = released()
    del settings[key]
    refuse(settings, rf"^\[config\] needed key {key}, got none\.")


def test_tying_may_stand_at_either_level():
    settings = released()
    del settings["text_config"]["tie_word_embeddings"]
    assert Gemma4Config.from_dict(settings) == Gemma4Config.from_dict(config())
    refuse({**settings, "tie_word_embeddings": False}, r"^\[text_config.tie_word_embeddings\]")
    del settings["tie_word_embeddings"]
    refuse(settings, r"^\[text_config\] needed key tie_word_embeddings, got none\.")


@pytest.mark.parametrize(
    ("key", "value", "meaning"),
    [
        ("attention_bias", True, "biases in attention"),
        ("hidden_activation", "silu", "another activation"),
        ("tie_word_embeddings", False, "an output head of its own"),
        ("model_type", "gemma3n_text", "a text model other than Gemma 4's"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(key, value, meaning):
    message = rf"^\[text_config.{key}\] needed .*, got {value!r}. This would need {meaning}, which"
    refuse(changed(**{key: value}), message)


@pytest.mark.parametrize("model_type", ["gemma4_unified_text", "gemma4_assistant", "llama"])
def test_other_architectures_are_refused_by_name(model_type):
    settings = {**released(), "model_type": model_type}
    refuse(settings, rf"^\[config.model_type\] needed one of gemma4, .*, got '{model_type}'\.")


def test_encoder_use_is_refused_by_name():
    message = r"needed null or 'vision', got 'all'\. Encoder use \('all'\) is not implemented"
    refuse(changed(use_bidirectional_attention="all"), message)


def test_unknown_text_keys_are_named():
    message = r"^\[text_config\] needed known keys, got attn_softcap, query_scalar\."
    refuse(changed(query_scalar=1.0, attn_softcap=50.0), message)


def test_unknown_text_keys_that_ask_for_nothing_pass():
    told = changed(query_scalar=None, use_new_norm=False)
    assert TextConfig.from_dict(told["text_config"]) == TextConfig.from_dict(
        changed()["text_config"]
    )


def test_null_layer_types_mean_five_to_one_with_a_full_end():
    settings = changed(layer_types=None, num_kv_shared_layers=0)
    text = TextConfig.from_dict(settings["text_config"])
    assert text.layer_types == (*[SLIDING] * 5, FULL, SLIDING, FULL)


@pytest.mark.parametrize(
    "types", [[FULL] * 7, [FULL] * 7 + [SLIDING], [*["chunked_attention"] * 7, FULL]]
)
def test_wrong_layer_types_are_refused(types):
    refuse(changed(layer_types=types), r"^\[text_config.layer_types\] needed 8 entries out of slid")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_type": "yarn"},
            r"full_attention.rope_type\] needed one of default, prop.*got 'yarn'",
        ),
        ({"factor": 8.0}, r"full_attention\] needed only .*, got factor\. Rotary scaling"),
        ({"partial_rotary_factor": None}, r"full_attention\] needed key partial_rotary_factor"),
        ({"rope_theta": None}, r"full_attention\] needed key rope_theta, got none"),
        ({"rope_type": None}, r"full_attention\] needed key rope_type, got none"),
    ],
)
def test_other_rotary_embeddings_are_refused(change, message):
    settings = released()
    rope = {**settings["text_config"]["rope_parameters"][FULL], **change}
    rope = {key: value for key, value in rope.items() if value is not None}
    settings["text_config"]["rope_parameters"][FULL] = rope
    refuse(settings, rf"^\[text_config.rope_parameters.{message}")


@pytest.mark.parametrize("ropes", [None, {SLIDING: {"rope_type": "default", "rope_theta": 1e4}}])
def test_both_layer_types_need_a_rotary_embedding(ropes):
    message = r"^\[text_config.rope_parameters\] needed key (full|sliding)_attention, got none"
    refuse(changed(rope_parameters=ropes), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, r"hidden_size\] needed a whole number from 1 to 65536, got 0\."),
        ({"sliding_window": "6"}, r"sliding_window\] needed a whole number from 1 .*, got '6'\."),
        ({"head_dim": True}, r"head_dim\] needed a whole number from 1 .*, got True\."),
        ({"num_key_value_heads": 3}, r"num_key_value_heads\] needed a divisor .* 4, got 3\."),
        (
            {"num_global_key_value_heads": 3},
            r"num_global_key_value_heads\] needed a divisor .* 4, got 3\.",
        ),
        (
            {"vocab_size_per_layer_input": 319},
            r"vocab_size_per_layer_input\] needed at least vocab_size 320, got 319\.",
        ),
        ({"num_kv_shared_layers": 8}, r"num_kv_shared_layers\] needed 0 to 7, got 8\."),
        ({"num_kv_shared_layers": -1}, r"num_kv_shared_layers\] needed .* from 0 to 256, got -1\."),
        (
            {"num_kv_shared_layers": 6},
            r"num_kv_shared_layers\] needed a layer of each .*, got no full_attention\.",
        ),
        (
            {"final_logit_softcapping": 0.0},
            r"softcapping\] needed a number from 0\.01 .* or null, got",
        ),
    ],
)
def test_impossible_values_are_refused(change, message):
    refuse(changed(**change), rf"^\[text_config\.(final_logit_)?{message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_k_eq_v": 1}, r"attention_k_eq_v\] needed true or false, got 1\."),
        (
            {"rms_norm_eps": "1e-6"},
            r"rms_norm_eps\] needed a number from 1e-12 to 0.01, got '1e-6'\.",
        ),
        (
            {"num_kv_shared_layers": None},
            r"shared_layers\] needed a whole number from .*, got None\.",
        ),
        (
            {"hidden_size_per_layer_input": 1.5},
            r"layer_input\] needed a whole number from .*, got 1\.5\.",
        ),
        (
            {"use_bidirectional_attention": True},
            r"attention\] needed a text or null, got True\.",
        ),
        ({"pad_token_id": 320}, r"pad_token_id\] needed 0 to 319 .*, got 320\."),
        ({"layer_types": 7}, r"layer_types\] needed 8 entries out of .*, got 7\."),
        ({"per_layer_config": 7}, r"per_layer_config\] needed a JSON object, got 7\."),
    ],
)
def test_values_of_another_kind_are_refused(change, message):
    refuse(changed(**change), rf"^\[text_config\..*{message}")


EXPERTS = {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2}
EXPERTS |= {"moe_intermediate_size": 24}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enable_moe_block": 1}, r"enable_moe_block\] needed true or false, got 1\."),
        ({"top_k_experts": 7}, r"top_k_experts\] needed 1 to num_experts 6, got 7\."),
        (
            {"num_experts": None},
            r"num_experts\] needed a whole number with enable_moe_block, got N",
        ),
        (
            {"top_k_experts": 0},
            r"top_k_experts\] needed a whole number from 1 to 1024 or null, got",
        ),
    ],
)
def test_impossible_experts_are_refused(change, message):
    refuse(changed(**EXPERTS | change), rf"^\[text_config\.{message}")


def test_keys_of_experts_are_needed_with_experts_alone():
    for key in EXPERT_KEYS:
        settings = changed(**EXPERTS)
        del settings["text_config"][key]
        refuse(settings, rf"^\[text_config\] needed key {key}, got none\.")
    without = changed(**EXPERTS | {"enable_moe_block": False})
    assert Gemma4Config.from_dict(without) == Gemma4Config.from_dict(config())


@pytest.mark.parametrize("change", [{"rope_theta": 0}, {"partial_rotary_factor": 1.5}])
def test_impossible_angles_are_refused(change):
    settings = released()
    settings["text_config"]["rope_parameters"][FULL] |= change
    ((key, value),) = change.items()
    refuse(settings, rf"full_attention.{key}\] needed a number from . to .*, got {value}\.")


def places(section, path=()):
    """Every key of a config, as the keys that lead to it."""
    for key, value in section.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


@pytest.mark.parametrize("settings", [config("clipped"), released(), E4B], ids=["re", "old", "e4b"])
def test_nothing_but_a_config_error_comes_of_a_value(settings):
    for value in (None, "x", -1, 1.5, True, [], [[]], {}, {"a": 1}):
        refused = 0
        for *path, last in places(settings):
            edited = deepcopy(settings)
            section = edited
            for key in path:
                section = section[key]
            section[last] = value
            try:
                Gemma4Config.from_dict(edited)
            except ConfigError:
                refused += 1
        assert refused > 30, value


def test_a_manifest_without_tensors_is_named():
    empty = Gemma4Config.from_dict(config() | {"quantization_config": {"quant_method": "hlwq"}})
    with pytest.raises(ConfigError, match=r"^\[quantization_config.tensors\] needed a JSON object"):
        empty.manifest(lambda name: True)


def test_e4b_media_tokens_have_googles_ids():
    e4b = Gemma4Config.from_dict(E4B)
    assert (e4b.boi_token_id, e4b.eoi_token_id) == (255999, 258882)
    assert (e4b.boa_token_id, e4b.eoa_token_id) == (256000, 258883)
    assert e4b.media_token_ids == (255999, 256000, *range(258880, 258885))


def test_media_ids_are_known_of_a_model_that_does_not_see():
    settings = config() | {"vision_config": None, "audio_config": None}
    blind = Gemma4Config.from_dict(settings)
    assert blind.boi_token_id is blind.eoa_token_id is None
    assert blind.media_token_ids == tuple(range(300, 307))
    assert Gemma4Config.from_dict(config()["text_config"]).media_token_ids == ()


@pytest.mark.parametrize("key", ["boi_token_id", "eoi_token_id", "boa_token_id"])
def test_a_missing_id_around_media_is_named(key):
    settings = config()
    del settings[key]
    refuse(settings, rf"^\[config\] needed key {key}, got none\.")


def test_the_end_of_a_sound_in_either_spelling():
    settings = config()
    settings["eoa_token_id"] = settings.pop("eoa_token_index")
    assert Gemma4Config.from_dict(settings).eoa_token_id == 306
    del settings["eoa_token_id"]
    refuse(settings, r"^\[config\] needed key eoa_token_id, got none\.")
