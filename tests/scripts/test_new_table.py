"""The table that a run on a Mac writes: what it takes of the times, and that it can be read."""

import json

import pytest

from hlwq_mlx.quant.chips import PATH, chips, read
from scripts.mac import new_table

KEPT = json.loads(PATH.read_text())
OLD = KEPT["M1"]


def several(bits, tokens, chosen, ms, fastest, its_ms):
    return {
        **{"bits": bits, "tokens": tokens, "chosen": chosen, "ms": ms},
        **{"fastest": fastest, "its ms": its_ms},
    }


def many(rows, qmm, decoded):
    return {"rows": rows, "qmm, ms": qmm, "decoded, ms": decoded}


def test_what_was_faster_is_written_and_the_package_reads_it(tmp_path):
    steps = {
        "rows": [
            several(4, 1, 4, 1.0, 2, 0.9),
            several(4, 5, 2, 1.3, 4, 1.1),
            several(5, 1, 4, 1.0, 2, 0.99),  # less than the margin
            several(5, 2, 4, None, None, None),  # nothing worked
        ],
        "tiles": [{"all": {"4, 16, 4": 1.0, "4, 8, 4": 0.8, "4, 8, 2": 0.7}}],
        "many": [many(32, 1.0, 2.0), many(128, 3.0, 2.0), {"left out": "the rest, after 9 s"}],
    }
    rows = list(new_table.table_step("M1", chips()["M1"], steps, tmp_path / "chips.json"))
    found = read(tmp_path / "chips.json")
    assert {name: chip for name, chip in found.items() if chip != chips()[name]}.keys() == {"M1"}
    new = found["M1"]
    assert new.found == "measured"
    assert new.rows[0] == (8, 4, 4, 2, 4, 4, 4, 4)
    assert new.rows[4] == (2, 2, 2, 4, 2, 2, 2, 2)
    assert (new.lanes, new.simdgroups, new.qmm_rows) == ((8, 4), 2, 32)
    # At 4 bits five tokens take 1.1 of 0.9; at 5 bits one number alone says nothing.
    assert new.tokens_a_pass == (1, 3, 4, 1, 5, 5, 5, 5)
    changed = {row["key"] for row in rows if row["before"] != row["now"]}
    assert changed == {"found", "rows", "lanes", "simdgroups", "qmm_rows", "tokens_a_pass"}


def test_what_was_not_measured_stays(tmp_path):
    left_out = {"left out": "the rest, after 9 s"}
    steps = {"rows": [left_out], "tiles": [left_out], "many": [left_out]}
    for found in ({}, steps):
        list(new_table.table_step("M1", chips()["M1"], found, tmp_path / "chips.json"))
        table = json.loads((tmp_path / "chips.json").read_text())
        assert table == {**KEPT, "M1": {**OLD, "found": "measured"}}


def test_a_chip_without_a_line_gets_one_like_that_which_it_used(tmp_path):
    list(new_table.table_step("M4 Nano", chips()["M4"], {}, tmp_path / "chips.json"))
    table = json.loads((tmp_path / "chips.json").read_text())
    assert table == {**KEPT, "M4 Nano": {**KEPT["M4"], "found": "measured"}}


@pytest.mark.parametrize(
    ("tiles", "best"),
    [
        ([{"4, 16, 4": 1.0, "4, 8, 4": 0.99}], 16),
        ([{"4, 16, 4": 1.0, "4, 8, 4": 0.5}, {"4, 16, 4": 1.0, "4, 8, 4": 9.0}], 16),
        ([{"4, 16, 4": 1.0, "4, 8, 4": 0.5}, {"4, 16, 4": 1.0}], 16),  # 8 does not always fit
        ([{"4, 8, 4": 1.0, "4, 4, 4": 0.5}], 16),  # the present choice was not tried
        ([{"4, 16, 4": 1.0, "4, 8, 4": 0.5}], 8),
        ([], 16),
    ],
)
def test_lanes_change_where_others_are_faster_throughout(tiles, best):
    assert new_table.best_part(16, tiles, 1) == best


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], 512),
        ([many(32, 1, 2), many(128, 1, 2)], 512),
        ([many(32, 1, 2), many(1024, 1, 2)], 1024),
        ([many(32, 2, 1), many(128, 1, 2)], 8),
        ([many(32, 1, 2), many(32, 4, 2)], 8),  # in sum
    ],
)
def test_qmm_serves_as_many_rows_as_it_is_faster_for(rows, expected):
    assert new_table.qmm_rows(512, rows) == expected
