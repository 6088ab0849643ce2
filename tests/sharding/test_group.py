"""Processes on loopback that mlx.launch starts: their answers are one process's."""

import mlx.core as mx
import pytest

from hlwq_mlx.sharding.link import Link
from scripts.sharding import parity

CLOSE = {"layers": 0, "tensors": 1e-5}  # by tensors, sums of columns are taken in parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    settings = parity.experts()
    settings["text_config"] |= {"num_hidden_layers": 2}
    settings["text_config"]["layer_types"] = settings["text_config"]["layer_types"][:2]
    return parity.coded(tmp_path_factory.mktemp("experts"), settings)


@pytest.mark.parametrize(
    ("split", "size"),
    [("layers", 2), ("tensors", 2), pytest.param("tensors", 4, marks=pytest.mark.slow)],
)
def test_a_group_answers_as_one_process(folder, split, size):
    found = parity.launch(folder, split, size, tokens=4, prompt=24)
    assert found["text"] <= CLOSE[split]
    assert [found[kind] for kind in ("greedy", "drafted", "warm")] == [4, 4, 4]
    assert found["batch"]
    whole = parity.text_bytes(parity.Folder.open(folder))
    assert sum(found["read"]) <= 1.1 * whole  # each reads its part alone
    if split == "tensors":
        assert max(found["read"]) <= whole / size + 0.05 * whole
    expected = parity.formula(parity.Folder.open(folder).args, split, size)
    assert found["counted"] == expected
    assert expected <= found["tcp"] <= 1.1 * expected


def test_a_row_is_summed_in_one_order_in_any_company(monkeypatch):
    given = mx.random.normal((4, 5, 96), key=mx.random.key(1))
    group = type("Group", (), {"rank": lambda self: 0, "size": lambda self: 4})()
    link = Link(group)
    monkeypatch.setattr(link, "gather", lambda rows: given[:, : len(rows)])
    a, b, c, d = given
    assert mx.array_equal(link.sum(given[0]), (a + b) + (c + d))
    assert mx.array_equal(link.sum(given[0, :1]), link.sum(given[0])[:1])
