"""The table of chips: that it is what the counts say, who finds which line, and what is refused."""

import json

import mlx.core as mx
import pytest

from hlwq_mlx.errors import ConfigError
from hlwq_mlx.quant import device
from hlwq_mlx.quant.backends import choose
from hlwq_mlx.quant.chips import CHECKS, PATH, Chip, Tile, chip_named, chips, read
from scripts.kernels.agx import chip_table, counts

KEPT = json.loads(PATH.read_text())


def test_the_table_is_what_the_counts_say():
    found = chip_table.refreshed(KEPT, counts.load())
    assert chip_table.text(found) == PATH.read_text()


def test_what_was_measured_is_left_alone():
    measured = {**KEPT["M1"], "found": "measured", "tokens_a_pass": [2] * 8}
    table = {"M1": measured, "M2": KEPT["M2"] | {"tokens_a_pass": [1] * 8}}
    found = chip_table.refreshed(table, counts.load())
    assert found == {"M1": measured, "M2": KEPT["M2"]}


@pytest.mark.parametrize(
    ("name", "architecture", "line"),
    [
        ("Apple M1", "applegpu_g13g", "M1"),
        ("Apple M1 Max", "applegpu_g13s", "M1 Max"),
        ("Apple Paravirtual device", "applegpu_g14g", "M2"),
        ("Apple M4 Nano", "applegpu_g16p", "M4"),
        ("Apple M9", "applegpu_g21x", "M5"),
        ("None", "None", "M5"),
    ],
)
def test_a_chip_is_found_by_its_name_or_its_generation(name, architecture, line):
    assert chip_named(name, architecture) is chips()[line]


def test_dtypes_and_tiles_are_the_table_s():
    assert chips()["M2"].activations == mx.float16 and chips()["M3"].activations == mx.bfloat16
    chip = chips()["M1"]._replace(lanes=(32, 4), simdgroups=2, rows=((4,) * 8,) * 2 + ((8,) * 8,))
    assert chip.tile(5, 1, 4096, 2048) == Tile(4, 32, 2, 1)
    assert chip.tile(5, 6, 4096, 2560 + 128) == Tile(8, 4, 2, 3)
    assert chip.tile(5, 1, 1023, 2048).rows == 2


def test_tokens_a_pass_are_the_chip_s_where_there_is_metal(monkeypatch):
    assert [choose.tokens_a_pass(bits) for bits in (1, 4)] == [5, 5]
    monkeypatch.setattr(device, "has_metal", lambda: True)
    monkeypatch.setattr(device, "chip", lambda: chips()["M1"])
    assert [choose.tokens_a_pass(bits) for bits in (1, 2, 3, 4, 8)] == [1, 3, 4, 5, 5]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activations", "float64"),
        ("qmm_rows", True),
        ("simdgroups", 3),
        ("lanes", [16, 8]),
        ("lanes", "4"),
        ("rows", [[4] * 8] * 4),
        ("rows", [[3] * 8] * 5),
        ("tokens_a_pass", [6] * 8),
        ("generation", "13"),
    ],
)
def test_a_value_that_no_kernel_takes_is_refused_by_name(key, value, tmp_path):
    path = tmp_path / "chips.json"
    path.write_text(json.dumps({"M1": {**KEPT["M1"], key: value}}))
    with pytest.raises(ConfigError, match=rf"^\[{path}: M1\.{key}\] needed .*, got .*\. Restore"):
        read(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"M1": 1}', '{"M1": {"rows": 1}}'])
def test_a_table_of_another_form_is_refused(text, tmp_path):
    path = tmp_path / "chips.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^\[{path}"):
        read(path)


def test_every_field_is_checked():
    assert CHECKS.keys() == set(Chip._fields)
