"""What headers tell: the same of a hub, a folder and what it is converted into."""

import json
import shutil

import hub_server
import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file

from hlwq_mlx.errors import CheckpointError, SourceError
from hlwq_mlx.folder import loading
from hlwq_mlx.folder.names import INDEX_NAME
from hlwq_mlx.memory import inventory
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert, leftovers

NAME = "owner/Tiny-HLWQ"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tiny.write_root(tmp_path_factory.mktemp("repository"), tiny.config())
    weights = tiny.make_weights(tiny.config(), has_towers=False)
    tiny.publish(root / "PQ5", weights, tiny.pure(5))
    (root / "model.safetensors").write_bytes(b"other weights")
    convert.convert(Source(root / "PQ5", "PQ5"), root / "converted")
    return root


@pytest.fixture
def server(repository, monkeypatch, tmp_path):
    with hub_server.standing_in(NAME, repository, monkeypatch, tmp_path) as running:
        yield running


def test_the_hub_is_asked_for_headers_alone(server, repository, tmp_path):
    found = inventory.take(NAME, "PQ5")
    local = inventory.take(str(repository), "PQ5")
    assert found == local
    assert list(inventory.doubts(found)) == []
    asked = server.ranges("codes.safetensors") + server.ranges("bf16.safetensors")
    assert set(asked) == {"bytes=0-100000"}
    assert server.served() == {
        *("config.json", "PQ5/codes.safetensors", "PQ5/bf16.safetensors"),
    }
    assert not (tmp_path / "hub").exists()


def test_a_converted_folder_is_its_source_without_the_dead(repository):
    source = inventory.take(str(repository / "PQ5"))
    found = inventory.take(str(repository / "converted"))
    facts = {entry.name: (entry.shape, entry.bits) for entry in source.live}
    assert facts == {entry.name: (entry.shape, entry.bits) for entry in found.live}
    assert len(source.entries) - len(source.live) == len(tiny.dead_names())
    assert (found.variant, found.is_converted) == ("PQ5", True)
    assert list(inventory.doubts(found)) == []


def test_a_converted_folder_whose_index_is_damaged(repository, tmp_path):
    folder = shutil.copytree(repository / "converted", tmp_path / "own")
    (folder / INDEX_NAME).write_text('{"weight_map": 5}')
    with pytest.raises(
        SourceError, match=r"needed a weight_map from tensors to files in .* got 5\."
    ):
        inventory.take(str(folder))


def test_a_home_folder_that_nobody_has():
    with pytest.raises(SourceError, match=r"\[~no-such-user/x\] needed a folder that exists"):
        inventory.take("~no-such-user/x")


@pytest.mark.parametrize("choice", leftovers.CHOICES)
@pytest.mark.parametrize("rule", [tiny.pure(5), tiny.all_coded], ids=["plain rows", "coded rows"])
def test_what_converting_will_make_of_the_rows(choice, rule, tmp_path):
    root = tiny.write_root(tmp_path, tiny.config())
    tiny.publish(root / "PQ5", tiny.make_weights(tiny.config(), has_towers=False), rule)
    convert.convert(Source(root / "PQ5", "PQ5"), root / "out", choice)

    def rows(found):
        return next(entry for entry in found.entries if entry.is_row_table)

    source = inventory.take(str(root / "PQ5"))
    assert rows(inventory.as_converted(source, choice)) == rows(inventory.take(str(root / "out")))


def test_coded_sizes_are_those_of_the_format(repository):
    for entry in inventory.take(str(repository), "PQ5").entries:
        meta = 0 if entry.bits is None else 32
        assert entry.stored_bytes == inventory.stored_bytes(entry.shape, entry.bits) + meta


def test_faults_of_the_hub(server):
    with pytest.raises(SourceError, match="needed variant PQ4, got PQ5, bf16"):
        inventory.take(NAME, "PQ4")
    with pytest.raises(CheckpointError, match=r"\[model.safetensors\] needed the header"):
        inventory.take(NAME, "bf16")
    del server.repositories[NAME]["config.json"]
    with pytest.raises(SourceError, match=r"needed config\.json, got a repository without"):
        inventory.take(NAME, "PQ5")


@pytest.mark.parametrize(
    ("content", "got"),
    [(b"{", "Expecting property name"), (b"[1]", "a list"), (b"\xff", "'utf-8' codec")],
)
def test_a_config_of_the_hub_that_is_none(server, content, got):
    server.repositories[NAME]["config.json"] = content
    message = rf"^\[config.json\] needed a JSON object in {NAME}, got {got}.* ask its publisher"
    with pytest.raises(SourceError, match=message):
        inventory.take(NAME, "PQ5")


def test_a_dtype_of_the_hub_that_is_not_known(server):
    header = b'{"odd":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    content = len(header).to_bytes(8, "little") + header + b"\0"
    server.repositories[NAME]["PQ5/bf16.safetensors"] = content
    message = r"^\[PQ5/bf16.safetensors\] needed a dtype of BF16, .* got F8_E4M3 for odd\. Store"
    with pytest.raises(CheckpointError, match=message):
        inventory.take(NAME, "PQ5")


@pytest.fixture
def damaged(tmp_path):
    """Return a function that writes a variant whose tensors were changed, and takes its doubts."""
    root = tiny.write_root(tmp_path / "damaged", tiny.config())
    weights = tiny.make_weights(tiny.config(), has_towers=False)

    def doubts(change, rule=None, variant="PQ5"):
        tiny.publish(root / variant, weights, rule or tiny.pure(5))
        path = root / variant / "codes.safetensors"
        parts = dict(loading.TensorFile(path).specs)
        tensors = {name: loading.TensorFile(path).view(name).copy() for name in parts}
        change(tensors)
        save_file(tensors, path)
        return list(inventory.doubts(inventory.take(str(root / variant))))

    return doubts


KEY = f"{tiny.TEXT}layers.0.mlp.up_proj.weight".replace(".", "__")
NAMED = f"{tiny.TEXT}layers.0.mlp.up_proj.weight"


def test_norms_that_are_missing(damaged):
    found = damaged(lambda tensors: tensors.pop(f"{KEY}__norms"))
    assert found == [
        f"{NAMED} has codes and meta but not both codes and norms",
        f"1 tensors missing: {NAMED}",
    ]


def test_codes_that_are_no_whole_width(damaged):
    def cut(tensors):
        tensors[f"{KEY}__packed"] = tensors[f"{KEY}__packed"][:-1]

    assert "which is no whole number of bits a weight" in damaged(cut)[0]


def test_another_layout(damaged):
    def widen(tensors):
        tensors[f"{KEY}__norms"] = tensors[f"{KEY}__norms"].astype(np.float32)

    assert damaged(widen) == [
        f"{NAMED} is not the published layout: U8 codes, F16 norms and a meta"
    ]


def test_another_rule_than_the_publisher_s(damaged):
    def rule(name, shape):
        is_coded = len(shape) == 2 and "embed" not in name and "per_layer" not in name
        return 4 if is_coded else None

    found = damaged(lambda tensors: None, rule)
    assert len(found) == 2
    assert found[0].startswith("24 tensors coded at 4 bits, where PQ5 should be coded at 5 bits: ")
    assert found[1].startswith("4 tensors coded at 4 bits, where PQ5 should be uncoded: ")
    assert found[1].count("gate_proj") == 3 and found[1].endswith(" ...")


def test_a_config_of_another_model_is_a_doubt(damaged, tmp_path):
    settings = tiny.config()
    settings["text_config"]["intermediate_size"] = 512
    damaged(lambda tensors: None)
    (tmp_path / "damaged" / "config.json").write_text(json.dumps(settings))
    found = list(inventory.doubts(inventory.take(str(tmp_path / "damaged"), "PQ5")))
    assert len(found) == 1
    assert found[0].startswith("12 tensors not of config.json's shape: ")
