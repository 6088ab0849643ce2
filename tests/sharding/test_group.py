"""Two processes on loopback that mlx.launch starts: their answers are one process's."""

import pytest

from scripts.sharding import parity

CLOSE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    settings = parity.experts()
    settings["text_config"] |= {"num_hidden_layers": 2}
    settings["text_config"]["layer_types"] = settings["text_config"]["layer_types"][:2]
    return parity.coded(tmp_path_factory.mktemp("experts"), settings)


@pytest.mark.parametrize("split", ["layers", "tensors"])
def test_a_group_answers_as_one_process(folder, split):
    found = parity.launch(folder, split, 2, tokens=4, prompt=24)
    assert found["text"] <= CLOSE
    assert [found[kind] for kind in ("greedy", "drafted", "warm")] == [4, 4, 4]
    assert found["batch"]
    whole = parity.text_bytes(parity.Folder.open(folder))
    assert sum(found["read"]) <= 1.1 * whole  # each reads its part alone
    if split == "tensors":
        assert max(found["read"]) <= 1.05 * whole / 2 + 0.05 * whole
    expected = parity.formula(parity.Folder.open(folder).args, split, 2)
    assert found["counted"] == expected
    assert expected <= found["tcp"] <= 1.1 * expected
