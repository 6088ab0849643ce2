"""Numbers in config.json that pass for numbers: refused by name, or taken for what they mean.

Nothing but an HLWQError comes of any of them, in any command, and no memory is taken for them.
"""

import dataclasses
import importlib
import json
import math
import os
import re
import subprocess
import sys
from copy import deepcopy

import pytest
import tiny_media

from hlwq_mlx import cli
from hlwq_mlx.disk.fields import kind_of
from hlwq_mlx.errors import CheckpointError, ConfigError
from hlwq_mlx.folder import published
from hlwq_mlx.gemma4.config import EXPERT_KEYS, FLAT, Gemma4Config, RopeConfig, TextConfig
from hlwq_mlx.gemma4.towers.config import AudioConfig, VisionConfig
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert
from hlwq_mlx.write.check import canonical_tensors, normalize_config, unread_names

SECTIONS = {"text_config": TextConfig, "vision_config": VisionConfig, "audio_config": AudioConfig}
FORMS = (*SECTIONS.values(), RopeConfig)
HOSTILE = [
    *(0, -1, 10**30, 1 << 31, 1 << 40, -(10**30), 1.5, 1e300),
    *(math.nan, math.inf, -math.inf, True, "7", [], {}),
]
UNREAD = {"initializer_range", "attention_dropout", "bos_token_id", "eos_token_id"}
UNREAD_SIZE = ("vision_config", "max_position_embeddings")
# Numbers that no layer's shape depends on: what is inside their bounds is taken.
SHAPELESS = {
    *("max_position_embeddings", "sliding_window", "rms_norm_eps", "final_logit_softcapping"),
    *("pad_token_id", "pooling_kernel_size", "residual_weight", "attention_chunk_size"),
    *("attention_context_left", "attention_logit_cap", "gradient_clipping"),
    *("num_attention_heads", "num_key_value_heads"),  # where 1 or all divide what is there
    "vocab_size_per_layer_input",  # held against the row store
}


def settings():
    """A tiny model's config.json whose layer types follow from their number."""
    found = tiny_media.config()
    found["text_config"]["layer_types"] = None
    found["text_config"]["num_kv_shared_layers"] = 0
    found["text_config"].pop("per_layer_config")
    found["text_config"] |= {"global_head_dim": 32, "num_global_key_value_heads": None}
    return found


def places(section, path=()):
    """Every number of a config that something is made of, as the keys that lead to it."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from places(value, (*path, key))
        elif type(value) in (int, float) and key not in UNREAD and (*path, key) != UNREAD_SIZE:
            yield (*path, key)


def edited(original, path, value):
    changed = deepcopy(original)
    section = changed
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return changed


def extremes(path):
    """The ends of the bounds of a number of a section."""
    form = SECTIONS.get(path[0])
    fields = {field.name: field for field in dataclasses.fields(form)} if form else {}
    is_field = len(path) == 2 and path[1] in fields
    bounds = kind_of(fields[path[1]].type).bounds if is_field else None
    return [] if bounds is None else list(bounds)


@pytest.mark.parametrize("form", FORMS)
def test_every_number_of_a_section_states_its_bounds(form):
    for field in dataclasses.fields(form):
        kind = kind_of(field.type)
        if {int, float} & set(kind.options):
            assert kind.bounds is not None, field.name
            assert all(map(math.isfinite, kind.bounds)), field.name


def test_released_models_are_well_inside_the_bounds():
    config = published.e4b_config()
    for section, form in SECTIONS.items():
        read = getattr(Gemma4Config.from_dict(config), section)
        for field in dataclasses.fields(form):
            bounds, value = kind_of(field.type).bounds, getattr(read, field.name)
            if bounds is not None and isinstance(value, int) and value > 1:
                assert 4 * value <= bounds.most, field.name


@pytest.mark.parametrize("path", list(places(settings())), ids=".".join)
def test_hostile_numbers_are_refused_by_name(path):
    refused = 0
    for value in HOSTILE:
        try:
            Gemma4Config.from_dict(edited(settings(), path, value))
        except ConfigError as refusal:
            refused += 1
            message = str(refusal)
            assert path[-1] in message or "layer_types" in message, message
            assert len(message.splitlines()) == 1
            assert len(message) < 300
    assert refused >= 8


@pytest.mark.parametrize("key", EXPERT_KEYS)
def test_hostile_numbers_of_experts_are_refused_by_name(key):
    experts = {"enable_moe_block": True, **dict.fromkeys(EXPERT_KEYS, 8)}
    original = settings()
    original["text_config"] |= experts
    Gemma4Config.from_dict(original)
    for value in HOSTILE:
        with pytest.raises(ConfigError, match=rf"^\[text_config\.{key}\] needed"):
            Gemma4Config.from_dict(edited(original, ("text_config", key), value))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A source and the folder that it was converted into, whose configs may be overwritten."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "source").mkdir()
    source = tiny_media.write(root / "source")
    convert.convert(Source(source), root / "converted")
    return source, root / "converted"


@pytest.fixture
def damage(folders):
    """Overwrite the configs of both folders, and restore them at the end."""
    files = {folder / "config.json": (folder / "config.json").read_bytes() for folder in folders}

    def write(change):
        for path, original in files.items():
            path.write_bytes(change(json.loads(original)))
        return folders

    yield write
    for path, original in files.items():
        path.write_bytes(original)


def test_the_ends_of_the_bounds_are_held_against_the_tensors(folders):
    source, _ = folders
    tensors = canonical_tensors(Source(source))
    original = normalize_config(json.loads((source / "config.json").read_text()))
    taken = set()
    for path in places(original):
        for value in extremes(path):
            try:
                unread_names(edited(original, path, value), tensors)
            except (ConfigError, CheckpointError):
                continue
            section = original[path[0]]
            if section[path[1]] != value:
                taken.add(path[-1])
    assert taken <= SHAPELESS


# As wide, or as deep, as bounds allow, where nothing on disk is.
LARGEST = {
    "text_config": {
        **{"hidden_size": 65536, "intermediate_size": 262144, "vocab_size": 1 << 22},
        **{"vocab_size_per_layer_input": 1 << 22, "hidden_size_per_layer_input": 65536},
        **{"num_attention_heads": 1024, "num_key_value_heads": 1024, "head_dim": 8192},
        **{"enable_moe_block": True, "num_experts": 1024, "top_k_experts": 1024},
        "moe_intermediate_size": 262144,
        **{"global_head_dim": 8192, "num_global_key_value_heads": None, "per_layer_config": None},
    },
    "vision_config": {
        **{"hidden_size": 65536, "intermediate_size": 262144, "head_dim": 8192},
        **{"num_attention_heads": 1024, "num_key_value_heads": 1024, "patch_size": 64},
        "position_embedding_size": 1 << 20,
    },
    "audio_config": {
        **{"hidden_size": 1 << 14, "attention_context_left": 128, "output_proj_dims": 65536},
        **{"subsampling_conv_channels": [4096, 4096], "conv_kernel_size": 1024},
    },
}
DEEPEST = {"num_hidden_layers": 256, "layer_types": None, "num_kv_shared_layers": 0}
CHILD = """
import json, resource, sys
from pathlib import Path
from hlwq_mlx import doctor
from hlwq_mlx.errors import HLWQError
from hlwq_mlx.folder import loading
from hlwq_mlx.memory import inventory
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write.check import canonical_tensors, unread_names

def peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

def load(config):
    model = loading.load(folder)
    for kind in model.args.towers:
        model.resources.load_tower(kind)

def examine(config):
    odd = list(doctor.contents(inventory.take(str(folder))))[-1]
    is_told = "config.json's shape" in odd or "layers by config.json" in odd
    raise HLWQError(odd) if is_told else AssertionError(odd)

source, folder = map(Path, sys.argv[1:])
tensors = canonical_tensors(Source(source))
before = peak()
for config in json.load(sys.stdin):
    (folder / "config.json").write_text(json.dumps(config))
    for act in (load, examine, lambda config: unread_names(config, tensors)):
        try:
            act(config)
        except HLWQError:
            continue
        raise AssertionError("taken")
print(peak() - before)
"""


def test_no_memory_is_taken_for_what_is_not_there(folders, damage):
    source, converted = folders
    original = json.loads((converted / "config.json").read_text())
    configs = [
        original | {section: original[section] | change}
        for section, largest in LARGEST.items()
        for change in (largest, {key: DEEPEST[key] for key in DEEPEST if key in original[section]})
    ]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(converted)],
        input=json.dumps(configs),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.returncode == 0, child.stderr[-2000:]
    assert int(child.stdout) < 128 << 20


DAMAGES = {
    "eps 0": (("text_config", "rms_norm_eps"), 0),
    "eps -1": (("text_config", "rms_norm_eps"), -1),
    "vision eps": (("vision_config", "rms_norm_eps"), 1e30),
    "intermediate": (("text_config", "intermediate_size"), 10**30),
    "hidden": (("text_config", "hidden_size"), 1 << 40),
    "head": (("text_config", "head_dim"), 1 << 31),
    "dims": (("audio_config", "output_proj_dims"), 10**30),
}
BROKEN = {
    "nested": lambda config: b'{"model_type":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "latin": lambda config: json.dumps(config | {"n": "\xe9"}, ensure_ascii=False).encode("latin1"),
    "nan": lambda config: json.dumps(config | {"n": math.nan}).encode(),
    "twice": lambda config: b'{"model_type": "gemma4", ' + json.dumps(config).encode()[1:],
}
COMMANDS = {
    "convert": ["--model", "{source}", "--output", "{new}"],
    "doctor": ["{source}"],
    "doctor ": ["{converted}"],
    "quantize": ["--model", "{source}", "--output", "{new}", "--variant", "PQ5"],
    "export": ["--model", "{source}", "--output", "{new}", "--bf16"],
    "export ": ["--model", "{source}", "--output", "{new}", "--affine", "4"],
    "generate": ["--model", "{converted}", "--prompt", "a", "--force"],
}


@pytest.mark.parametrize("name", [*DAMAGES, *BROKEN])
def test_every_command_ends_in_a_line(name, damage, tmp_path, capsys):
    if name in BROKEN:
        change, named = BROKEN[name], ""
    else:
        path, value = DAMAGES[name]
        named = ".".join(path)

        def change(config):
            return json.dumps(edited(config, path, value)).encode()

    source, converted = damage(change)
    new = tmp_path / "new"
    for command, pattern in COMMANDS.items():
        arguments = [each.format(source=source, converted=converted, new=new) for each in pattern]
        module = importlib.import_module(f"hlwq_mlx.{command.strip()}")
        assert cli.run(module.main, arguments) == cli.EXIT_ERROR, command
        (line,) = capsys.readouterr().err.splitlines()
        found = re.match(r"error: \[(?:/.+/)?config\.json(?:: )?(.*?)\] needed ", line)
        assert found and found[1] == named, command
        assert list(tmp_path.iterdir()) == [], command


def test_the_flat_form_has_the_same_bounds():
    flat = settings()["text_config"] | {"model_type": FLAT}
    for value in HOSTILE:
        with pytest.raises(ConfigError, match=r"^\[text_config\.hidden_size\] needed"):
            Gemma4Config.from_dict(flat | {"hidden_size": value})


@pytest.mark.parametrize(
    "key", ["image_token_id", "audio_token_id", "boi_token_id", "pad_token_id"]
)
def test_ids_are_of_the_vocabulary(key):
    path = ("text_config", key) if key == "pad_token_id" else (key,)
    with pytest.raises(
        ConfigError, match=rf"{key}\] needed 0 to {tiny_media.VOCAB - 1} as the voc"
    ):
        Gemma4Config.from_dict(edited(settings(), path, tiny_media.VOCAB))


def test_ids_of_absent_towers_do_not_matter():
    config = settings() | {"vision_config": None, "audio_config": None, "image_token_id": 10**30}
    assert 10**30 not in Gemma4Config.from_dict(config).media_token_ids
