"""A model with experts through the house: quantized by class, listed, loaded and exported."""

import mlx.core as mx
import numpy as np
import pytest
import tiny

from hlwq_mlx import cli
from hlwq_mlx.disk.jsonfile import read_json
from hlwq_mlx.folder import loading
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.memory import inventory
from hlwq_mlx.quantize import PUBLISHED, TABLES, main
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert, export

BITS = "experts=3,attention=5,mlp=4,embedding=6,router=8"
LAYER = f"{tiny.TEXT}layers.0."
SETTINGS = tiny.experts_config()
TOLERANCE = 2e-4  # as in test_convert


@pytest.fixture(scope="module")
def weights():
    return tiny.make_weights(SETTINGS, has_dead=False, has_towers=False)


@pytest.fixture(scope="module")
def plain(weights, tmp_path_factory):
    """A 16-bit repository."""
    root = tiny.write_root(tmp_path_factory.mktemp("plain"), SETTINGS)
    tiny.save_plain(root / "model.safetensors", weights)
    return root


@pytest.fixture(scope="module")
def coded(plain):
    made = plain / "coded"
    arguments = ["--model", str(plain), "--bits", BITS, "--output", str(made)]
    arguments += ["--table", TABLES[PUBLISHED]]  # so that the published layout says the same
    assert cli.run(main, arguments) == 0
    return made


def test_each_class_has_its_width(coded):
    tensors = read_json(coded / "config.json")["quantization_config"]["tensors"]
    widths = {name.removeprefix(LAYER): entry["bits"] for name, entry in tensors.items()}
    wanted = {"experts.gate_up_proj": 3, "experts.down_proj": 3, "router.proj": 8}
    wanted |= {"mlp.up_proj": 4, "self_attn.o_proj": 5}
    assert {name: widths[f"{name}.weight"] for name in wanted} == wanted


def test_it_is_listed_whole_with_nothing_odd(coded, plain):
    found = inventory.take(str(coded))
    assert list(inventory.doubts(found)) == []
    assert list(inventory.doubts(inventory.take(str(plain)))) == []
    layers, experts, width, hidden = 4, 6, 176, 128
    padded = experts * (2 * width * hidden + hidden * 256)  # 176 columns are padded to 256
    assert found.kinds()["experts", 3][1] == layers * padded
    loading.require_loadable(Folder.open(coded))


def test_its_export_in_bf16_computes_the_same_under_the_sources_names(coded, plain, tmp_path):
    arguments = ["--model", str(plain), "--bits", BITS, "--layout", "published"]
    assert cli.run(main, [*arguments, "--output", str(tmp_path / "repo")]) == 0
    (variant,) = (tmp_path / "repo").glob("PQ*")
    export.export_bf16(Source(variant, variant.name), tmp_path / "out")
    tensors = mx.load(str(tmp_path / "out" / "model-00001-of-00001.safetensors"))
    assert f"{LAYER}experts.gate_up_proj" in tensors
    decoded = {name: tiny.as_float(array) for name, array in tensors.items()}
    got = tiny.logits(tiny.dense_model(SETTINGS, decoded))
    # bfloat16 rounds what is decoded, by less than coding changed it.
    wanted = tiny.logits(loading.load(coded))
    whole = tiny.logits(tiny.dense_model(SETTINGS, decoded | weights_of(plain)))
    assert np.abs(got - wanted).mean() < 0.1 * np.abs(got - whole).mean()


def weights_of(folder):
    return {
        name: tiny.as_float(array)
        for name, array in mx.load(str(folder / "model.safetensors")).items()
    }


def test_leftovers_of_a_variant_take_stacks(plain, tmp_path):
    arguments = ["--model", str(plain), "--bits", "attention=5", "--layout", "published"]
    assert cli.run(main, [*arguments, "--output", str(tmp_path / "repo")]) == 0
    (variant,) = (tmp_path / "repo").glob("PQ*")
    opened = Source(variant, variant.name)
    kept = convert.convert(opened, tmp_path / "kept", "keep")
    small = convert.convert(opened, tmp_path / "small", "small")
    assert small.written_bytes < 0.7 * kept.written_bytes
    tensors = read_json(tmp_path / "small" / "config.json")["quantization_config"]["tensors"]
    assert f"{LAYER}experts.down_proj.weight" in tensors
    assert tensors[f"{LAYER}router.proj.weight"]["bits"] == 8
    estimate = inventory.as_converted(inventory.take(str(variant)), "small")
    stored = inventory.take(str(tmp_path / "small")).stored_bytes
    assert abs(estimate.stored_bytes - stored) < 0.03 * stored  # but for the tables
    loading.load(tmp_path / "small")
