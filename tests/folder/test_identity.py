"""Files of two models do not mix, and a damaged copy is told from a whole one."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
import tiny

from hlwq_mlx import cli, doctor
from hlwq_mlx.disk.runs import Runs
from hlwq_mlx.disk.tensorfile import TensorFile
from hlwq_mlx.errors import CheckpointError
from hlwq_mlx.folder import checksums, loading
from hlwq_mlx.folder.identity import MANIFEST_KEY, METADATA_KEY
from hlwq_mlx.folder.names import INDEX_NAME
from hlwq_mlx.folder.rows import FILE_NAME as ROW_STORE
from hlwq_mlx.mlxlm.model import Model, ModelArgs
from hlwq_mlx.mlxlm.plugin import FOLDER_KEY
from hlwq_mlx.source.repository import Source, read_json
from hlwq_mlx.write import convert, leftovers

SHARD = "model-00001-of-00001.safetensors"


def make(folder, weights, choice=leftovers.KEEP):
    root = tiny.write_root(folder / "source", tiny.config())
    tiny.publish(root / "PQ5", weights, tiny.pure(5))
    convert.convert(Source(root / "PQ5"), folder / "out", choice)
    return folder / "out"


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return make(tmp_path_factory.mktemp("ours"), tiny.make_weights(tiny.config()))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A fine-tune of the same shape: one matrix is another."""
    weights = tiny.make_weights(tiny.config())
    name = f"{tiny.TEXT}layers.0.self_attn.q_proj.weight"
    weights[name] = tiny.as_float(tiny.as_bfloat16(weights[name] * 1.5))
    return make(tmp_path_factory.mktemp("theirs"), weights)


@pytest.fixture
def own(ours, tmp_path):
    """A copy, free to be damaged."""
    return shutil.copytree(ours, tmp_path / "own")


def load_stock(folder):
    """Build the model as mlx-lm does."""
    return Model(ModelArgs.from_dict(read_json(folder / "config.json") | {FOLDER_KEY: folder}))


@pytest.mark.parametrize("load", [loading.load, load_stock])
@pytest.mark.parametrize("file", [SHARD, ROW_STORE, "config.json"])
def test_files_of_two_models_do_not_mix(own, theirs, file, load):
    load(own)
    shutil.copyfile(theirs / file, own / file)
    named = ".*" if file == "config.json" else file
    with pytest.raises(CheckpointError, match=rf"^\[{named}\] needed a file of the conversion"):
        load(own)


def test_the_same_conversion_gives_the_same_files(ours, tmp_path):
    again = make(tmp_path, tiny.make_weights(tiny.config()))
    for path in ours.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    other = make(tmp_path / "small", tiny.make_weights(tiny.config()), leftovers.SMALL)
    manifests = [read_json(folder / "config.json") for folder in (ours, other)]
    assert len({each["quantization_config"][MANIFEST_KEY] for each in manifests}) == 2


def without_identity(folder):
    """Make of a folder what was written before there were identities and checksums."""
    config = read_json(folder / "config.json")
    del config["quantization_config"][MANIFEST_KEY]
    (folder / "config.json").write_text(json.dumps(config))
    for name in (SHARD, ROW_STORE):
        tensors, metadata = mx.load(str(folder / name), return_metadata=True)
        mx.eval(list(tensors.values()))
        del metadata[METADATA_KEY]
        (folder / name).unlink()
        mx.save_safetensors(str(folder / name), tensors, metadata)
    (folder / checksums.FILE_NAME).unlink()
    return folder


def test_a_folder_made_before_loads_as_ever(ours, own):
    expected = tiny.logits(loading.load(ours))
    old = without_identity(own)
    assert np.array_equal(tiny.logits(loading.load(old)), expected)
    load_stock(old)
    with pytest.raises(CheckpointError, match=r"^\[checksums.json\] needed checksums in .*before"):
        checksums.verify(old, [].append)


def verify(folder, capsys):
    status = cli.run(doctor.main, ["--verify", str(folder)])
    printed = capsys.readouterr()
    said = [line for line in printed.err.splitlines() if line]
    return status, printed.out, [line.removeprefix("error: ") for line in said]


def test_a_whole_folder_is_verified(own, capsys):
    status, out, said = verify(own, capsys)
    count = len(list(own.iterdir())) - 1
    assert (status, said) == (0, [])
    assert out.startswith(f"{count} files, ")
    assert out.endswith("all as convert wrote them\n")
    (own / "notes.txt").write_text("of the person")
    assert verify(own, capsys)[0] == 0


def test_every_file_that_differs_is_named(own, capsys):
    with (own / SHARD).open("r+b") as file:  # one bit
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    with (own / ROW_STORE).open("r+b") as file:
        file.truncate(100_000)
    (own / "generation_config.json").write_text("{}")
    (own / "tokenizer.json").unlink()
    (own / "tokenizer.json").mkdir()
    (own / INDEX_NAME).unlink()
    status, out, said = verify(own, capsys)
    assert (status, out) == (2, "")
    assert [line.split()[0] for line in said] == [
        f"[{SHARD}]",
        f"[{ROW_STORE}]",
        "[generation_config.json]",
        f"[{INDEX_NAME}]",
        "[tokenizer.json]",
    ]
    assert "got no such file." in said[3] and "got a folder." in said[4]
    assert "needed the bytes that convert wrote, got others between" in said[0]
    assert "bytes, got 100,000." in said[1]


@pytest.mark.parametrize("name", [SHARD, ROW_STORE, "config.json", "tokenizer.json"])
def test_no_bit_may_change_anywhere(own, name):
    """Headers, tensors and what pads them."""
    whole = (own / name).read_bytes()
    for at in np.random.default_rng(0).integers(len(whole), size=20):
        spoiled = bytearray(whole)
        spoiled[at] ^= 4
        (own / name).write_bytes(spoiled)
        read = []
        with pytest.raises(CheckpointError, match=rf"^\[{name}\] needed the bytes"):
            checksums.verify(own, read.append)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"algorithm": "md5", "files": {"a": []}},
        {"algorithm": "sha256", "files": {"config.json": [[1, 5, ""]]}},
        {"algorithm": "sha256", "files": {"config.json": [[0, "5", ""]]}},
        {"algorithm": "sha256", "files": {"config.json": [[0, 5, ""], [6, 9, ""]]}},
        {"algorithm": "sha256", "files": {"../config.json": [[0, 5, ""]]}},
        {"algorithm": "sha256", "files": {}},
    ],
)
def test_checksums_that_are_none(own, value, capsys):
    (own / checksums.FILE_NAME).write_text(json.dumps(value))
    status, _, said = verify(own, capsys)
    assert status == 2
    assert len(said) == 1
    assert said[0].startswith("[checksums.json] needed ")


def test_verify_wants_a_converted_folder(ours, capsys):
    status, _, said = verify(ours.parent / "source", capsys)
    assert status == 2
    assert said[0].startswith("[--verify] needed a folder that convert made, got ")


def test_runs_are_told_apart_and_joined():
    runs = Runs()
    for at, raw in [(0, b"ab"), (8, b"xy"), (2, b"cd"), (10, b"z"), (4, b""), (4, b"efgh")]:
        runs.add(at, raw)
    whole = Runs()
    whole.add(0, b"abcdefgh")
    first, second = runs.listed()
    assert first == whole.listed()[0]
    assert second[:2] == (8, 11)


def test_a_file_states_whose_it_is(ours):
    own = read_json(ours / "config.json")["quantization_config"][MANIFEST_KEY]
    stated = {TensorFile(ours / name).metadata[METADATA_KEY] for name in (SHARD, ROW_STORE)}
    assert stated == {own}
