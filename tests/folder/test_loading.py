"""Our folder: names, configs of every form, and strict loading."""

import json
import re
import shutil

import mlx.core as mx
import numpy as np
import pytest
import tiny
from mlx.utils import tree_flatten

from hlwq_mlx.errors import CheckpointError, ConfigError, SourceError
from hlwq_mlx.folder import loading
from hlwq_mlx.folder.folder import is_ours
from hlwq_mlx.folder.manifest import make_manifest
from hlwq_mlx.folder.names import INDEX_NAME, coded_names
from hlwq_mlx.folder.rows import FILE_NAME as ROW_STORE
from hlwq_mlx.memory import inventory
from hlwq_mlx.quant import device
from hlwq_mlx.quant.backends import choose
from hlwq_mlx.quant.layers import HLWQEmbedding, HLWQLinear
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write.check import canonical_name, normalize_config
from hlwq_mlx.write.convert import convert

NORM = f"{tiny.TEXT}norm.weight"
UP = f"{tiny.TEXT}layers.0.mlp.up_proj"
SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A converted folder with a coded audio tower and a 16-bit row store."""
    root = tiny.write_root(tmp_path_factory.mktemp("load"), tiny.config())
    tiny.publish(root / "PQ5", tiny.make_weights(tiny.config()), tiny.pure(5))
    convert(Source(root / "PQ5", "PQ5"), root / "out")
    return root / "out"


@pytest.fixture
def own(converted, tmp_path):
    """A copy of it, free to be damaged."""
    return shutil.copytree(converted, tmp_path / "own")


def change_json(path, edit):
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def change_shard(folder, edit):
    tensors, metadata = mx.load(str(folder / SHARD), return_metadata=True)
    edit(tensors)
    mx.eval(list(tensors.values()))
    (folder / SHARD).unlink()
    mx.save_safetensors(str(folder / SHARD), tensors, metadata)


def refuse(folder, message, error=CheckpointError):
    with pytest.raises(error, match=message) as caught:
        loading.load(folder)
    (line,) = str(caught.value).splitlines()
    return re.split(r" (?=\[)|(?<=\.) (?=And )", line.replace(f"{folder / 'config.json'}: ", ""))


def test_a_folder_loads_in_the_dtype_of_this_machine(converted):
    model = loading.load(converted)
    parameters = dict(tree_flatten(model.parameters()))
    dtypes = {name.rsplit(".", 1)[1]: array.dtype for name, array in parameters.items()}
    assert dtypes.pop("codes") == mx.uint32
    assert dtypes.pop("norms") == mx.float16
    assert dtypes.pop("centroids") == mx.float32
    assert set(dtypes.values()) == {device.activation_dtype()}
    assert not model.training


def test_a_loaded_model_is_ready_to_answer(tmp_path, monkeypatch, capsys):
    """Nothing is left to do: no product to make, and no file to read."""
    tiny.write_root(tmp_path, tiny.config())
    tiny.publish(tmp_path / "PQ5", tiny.make_weights(tiny.config()), tiny.all_coded)
    folder = tmp_path / "out"
    convert(Source(tmp_path / "PQ5", "PQ5"), folder)
    capsys.readouterr()
    monkeypatch.setattr(loading, "_PATIENCE_S", 3600.0)  # a bar is for those who wait
    model = loading.load(folder)
    assert capsys.readouterr().err == ""

    def refuse(*arguments):
        raise AssertionError("a product was made after loading")

    monkeypatch.setattr(choose, "prepare", refuse)
    coded = [module for module in model.modules() if isinstance(module, HLWQLinear | HLWQEmbedding)]
    assert {type(module) for module in coded} == {HLWQLinear, HLWQEmbedding}
    for module in coded:
        module.prepare()
    for path in folder.glob("model*.safetensors"):
        with path.open("r+b") as file:
            file.truncate(0)
    mx.eval(model.parameters())


def test_those_who_wait_see_a_bar(converted, monkeypatch, capsys):
    monkeypatch.setattr(loading, "_PATIENCE_S", 0.0)
    loading.load(converted)
    assert re.search(r"load: 100%.* (\d+\.?\d*[kM])/\1 ", capsys.readouterr().err)


def test_towers_and_dead_tensors_stay_in_the_folder_alone(converted):
    names = {name for name, _ in tree_flatten(loading.load(converted).parameters())}
    weight_map = json.loads((converted / INDEX_NAME).read_text())["weight_map"]
    codes = coded_names(tiny.AUDIO).codes
    assert codes in weight_map
    assert codes not in names
    assert set(tiny.dead_names()).isdisjoint(weight_map)


def test_ours_is_told_from_a_source(converted, tmp_path):
    assert is_ours(converted)
    assert not is_ours(converted.parent)
    assert not is_ours(tmp_path)


@pytest.mark.parametrize("name", [NORM, "lm_head.weight", tiny.AUDIO, tiny.VISION])
def test_a_multimodal_name_is_kept(name):
    assert canonical_name(name) == name


def test_a_text_only_name_is_completed():
    assert canonical_name("model.norm.weight") == NORM
    assert canonical_name("model.layers.0.mlp.up_proj.weight") == f"{UP}.weight"


def test_a_config_keeps_all_but_who_quantized_it():
    settings = tiny.config() | {"quantization_config": {"quant_method": "polar"}, "more": 1}
    settings |= {"quantization": {"bits": 4}}
    wanted = tiny.config() | {"more": 1, "model_type": "hlwq_gemma4"}
    assert normalize_config(settings) == wanted


def test_a_flat_config_is_nested():
    text = tiny.config()["text_config"]
    flat = text | {"quantization_config": {"quant_method": "polar"}, "eos_token_id": 1}
    assert normalize_config(flat) == {
        "model_type": "hlwq_gemma4",
        "eos_token_id": 1,
        "text_config": text | {"eos_token_id": 1},
    }


@pytest.mark.parametrize("kind", [None, "llama", "gemma3"])
def test_the_config_of_another_model_is_refused(kind):
    with pytest.raises(SourceError, match=rf"needed model_type gemma4, .*, got {kind!r}"):
        normalize_config({"model_type": kind})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"quant_method": "polar"}, r"needed a folder of format hlwq 1, got polar 1\. Convert"),
        ({"format": 2}, r"needed a folder of format hlwq 1, got hlwq 2\. Convert the model again"),
        ({"format": 1.0}, r"needed a folder of format hlwq 1, got hlwq 1\.0\. Convert the model"),
        ({"format": True}, r"needed a folder of format hlwq 1, got hlwq True\. Convert the model"),
    ],
)
def test_another_format_is_refused(own, edit, message):
    change_json(own / "config.json", lambda config: config["quantization_config"].update(edit))
    refuse(own, message)


@pytest.mark.parametrize("value", [None, {}, 5, ["hlwq"], "hlwq"])
def test_a_manifest_that_is_none_is_refused(own, value):
    change_json(own / "config.json", lambda config: config.update(quantization_config=value))
    refuse(own, r"needed a folder of format hlwq 1, got None None\.")


@pytest.mark.parametrize(
    "edit",
    [
        {"tensors": None},
        {"tables": []},
        {"tensors": {"a.weight": 5}},
        {"tensors": {"a.weight": {"bits": 9, "table": "clip4_100"}}},
        {"tensors": {"a.weight": {"bits": "5", "table": "clip4_100"}}},
        {"tensors": {"a.weight": {"bits": 5}}},
        {"tensors": {"a.weight": {"bits": 5.0, "table": "clip4_100/5"}}},
        {"tensors": {"a.weight": {"bits": True, "table": "clip4_100/1"}}},
        {"tensors": {"a.weight": {"bits": 5, "table": 5}}},
        {"tables": {"clip4_100/5": "none"}},
        {"block": 64},
        {"block": 128.0},
        {"variant": 5},
        {"templates": "all"},
    ],
)
def test_a_damaged_manifest_is_refused(own, edit):
    change_json(own / "config.json", lambda config: config["quantization_config"].update(edit))
    refuse(own, r"config\.json\] needed a whole manifest as quantization_config, got ")
    with pytest.raises(CheckpointError, match="needed a whole manifest"):
        inventory.take(str(own))


def test_a_missing_config_is_refused(own):
    (own / "config.json").unlink()
    refuse(own, r"\[config.json\] needed to read .*No such file", SourceError)


def test_a_config_without_a_key_is_refused(own):
    change_json(own / "config.json", lambda config: config["text_config"].pop("head_dim"))
    message = rf"\[{own}/config\.json: text_config\] needed key head_dim, got none\."
    refuse(own, message, ConfigError)


def test_a_missing_shard_is_refused(own):
    (own / SHARD).unlink()
    refuse(own, rf"\[{SHARD}\] needed to read .*No such file", SourceError)


def test_a_cut_off_shard_is_refused(own):
    (own / SHARD).write_bytes((own / SHARD).read_bytes()[:-1])
    refuse(own, rf"\[{SHARD}\] needed a whole safetensors file")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (None, SourceError, r"\[model.safetensors.index.json\] needed to read .*No such"),
        ({}, CheckpointError, r"in the folder, got no such tensor.* And \d+ more\.$"),
    ],
)
def test_a_missing_or_empty_index_is_refused(own, value, error, message):
    (own / INDEX_NAME).unlink()
    if value is not None:
        (own / INDEX_NAME).write_text(json.dumps(value))
    refuse(own, message, error)


def test_a_tensor_that_the_index_names_but_no_shard_has_is_refused(own):
    change_shard(own, lambda tensors: tensors.pop(NORM))
    lines = refuse(own, rf"\[{NORM}\] needed in {SHARD}, got no such tensor\. Convert again\.")
    assert len(lines) == 1


def test_all_that_does_not_fit_is_listed(own):
    def edit(tensors):
        del tensors[NORM]
        tensors[f"{UP}.norms"] = tensors[f"{UP}.norms"][:-1]
        tensors[f"{tiny.TEXT}more.weight"] = mx.zeros((2, 3))

    change_shard(own, edit)
    change_json(own / INDEX_NAME, lambda index: index["weight_map"].pop(NORM))
    assert refuse(own, "needed") == [
        f"[{NORM}] needed in the folder, got no such tensor. Convert the model again.",
        f"[{UP}.norms] needed shape (256, 1), got (255, 1). Convert the model again.",
        f"[{tiny.TEXT}more.weight] needed no such tensor, got one of (2, 3). Convert again.",
    ]


def test_a_manifest_without_a_coded_tensor_is_refused(own):
    def edit(config):
        del config["quantization_config"]["tensors"][f"{UP}.weight"]

    change_json(own / "config.json", edit)
    assert refuse(own, "needed") == [
        f"[{UP}.weight] needed in the folder, got no such tensor. Convert the model again.",
        f"[{UP}.centroids] needed no such tensor, got one of (32,). Convert again.",
        f"[{UP}.codes] needed no such tensor, got one of (256, 20). Convert again.",
        "And 1 more.",
    ]


def test_a_manifest_without_a_table_is_refused(own):
    change_json(own / "config.json", lambda c: c["quantization_config"]["tables"].clear())
    refuse(own, r"needed a table of 2\*\*bits centroids for every coded tensor, got none for")


def test_a_missing_row_store_is_refused(own):
    (own / ROW_STORE).unlink()
    refuse(
        own, r"\[ple.safetensors\] needed the row store .*, got no such file\. It belongs beside"
    )


def test_a_cut_off_row_store_is_refused(own):
    (own / ROW_STORE).write_bytes((own / ROW_STORE).read_bytes()[:-1])
    refuse(own, r"\[ple.safetensors\] needed a whole safetensors file")


@pytest.mark.parametrize("shape", [(319, 256), (320, 255)])
def test_the_row_store_of_another_model_is_refused(own, shape):
    (own / ROW_STORE).unlink()
    mx.save_safetensors(str(own / ROW_STORE), {tiny.ROWS: mx.zeros(shape)})
    got = rf"\({shape[0]}, {shape[1]}\)"
    refuse(own, rf"\[ple.safetensors\] needed \(320, 256\) by config.json, got {got}\. The files")


def test_coded_parts_are_named_after_their_module():
    wanted = ("a.b.codes", "a.b.norms", "a.b.centroids", "a.b.means")
    assert coded_names("a.b.weight") == wanted


def test_tables_of_the_files_own_are_kept_apart(tmp_path):
    """Two tensors of one width may bring two tables; the manifest holds both."""
    from types import SimpleNamespace

    tables = [np.array([-1, 1], np.float32), np.array([-2, 2], np.float32)]
    coded = {
        f"{name}.weight": (SimpleNamespace(bits=1), SimpleNamespace(table="file", centroids=table))
        for name, table in zip("abc", [*tables, tables[0]], strict=True)
    }
    manifest = make_manifest("PQ1", coded)
    assert manifest["tables"] == {"file/1": [-1.0, 1.0], "file-2/1": [-2.0, 2.0]}
    assert [manifest["tensors"][f"{name}.weight"]["table"] for name in "abc"] == [
        *("file", "file-2", "file"),
    ]
