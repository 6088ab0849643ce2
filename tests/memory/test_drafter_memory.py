"""What headers tell of a drafter, and what it adds to a model's need."""

import drafters
import oracle
import pytest
import tiny
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from hlwq_mlx import cli, doctor
from hlwq_mlx.folder import loading, published
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.gemma4.drafter_config import DrafterConfig, require_fit
from hlwq_mlx.gemma4.model import ModelArgs
from hlwq_mlx.memory import inventory
from hlwq_mlx.memory.machine import Machine
from hlwq_mlx.memory.need import Settings, need
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert

MACHINE = Machine("a machine", 1 << 34, 1 << 22, has_metal=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model's repository with a drafter in it, and what it was converted into."""
    root = tmp_path_factory.mktemp("beside")
    settings = oracle.config() | {"vision_config": None, "audio_config": None}
    tiny.write_root(root / "source", settings, side_files=())
    save_file(oracle.weights(), root / "source" / "model.safetensors")
    drafters.write(root / "source" / "drafter")
    convert.convert(Source(root / "source"), root / "out")
    return root


def test_a_drafter_is_counted_as_it_is_loaded(root):
    folder = Folder.open(root / "out")
    loading.require_loadable(folder)
    found = inventory.take(str(root / "out"))
    assert found.drafter == inventory.take(str(root / "source")).drafter
    loaded = loading.load_drafter(folder.drafter)
    held = sum(array.nbytes for _, array in tree_flatten(loaded.parameters()))
    with_it = need(found, Settings(64), MACHINE)
    assert with_it.drafter == held
    assert "drafter " in with_it.parts()


def test_doctor_knows_drafters(root, capsys):
    for where, is_there in ((root / "out", True), (root / "out" / "drafter", False)):
        assert cli.run(doctor.main, [str(where), "--context", "64"]) == 0
        text = capsys.readouterr().out
        assert "odd" not in text.replace("odd: " + str(where) + " has no tokenizer.json", "")
        assert (f"beside it a drafter: {len(drafters.weights())} tensors" in text) == is_there
        assert ("--draft-model" in text) != is_there
        assert cli.run(doctor.main, ["--verify", str(where)]) == 0
        assert "as convert wrote them" in capsys.readouterr().out


def test_a_damaged_drafter_is_told(root, capsys):
    path = root / "out" / "drafter" / "model-00001-of-00001.safetensors"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert cli.run(doctor.main, ["--verify", str(root / "out")]) != 0
        path.write_bytes(whole[:-5])
        assert cli.run(doctor.main, [str(root / "out")]) != 0
        assert path.name in capsys.readouterr().err
    finally:
        path.write_bytes(whole)


def test_the_drafter_of_e4b():
    args = DrafterConfig.from_dict(published.E4B_DRAFTER)
    require_fit(args, ModelArgs.from_dict(published.e4b_config()).text_config)
    plain, coded = inventory.of_drafter(None), inventory.of_drafter("PQ5")
    weights = sum(entry.weights for entry in plain if not entry.is_order)
    assert 78.0e6 < weights < 79.0e6  # of the model card
    read = inventory.draft_bytes(plain, args)
    assert inventory.draft_bytes(coded, args) < read < 0.25 * sum(e.stored_bytes for e in plain)
