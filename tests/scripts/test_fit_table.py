"""The table of the larger models: what the README shows is what the script prints."""

from pathlib import Path

import pytest

from hlwq_mlx import cli
from scripts.benchmarks import fit_table, launches

README = Path(__file__).parents[2] / "scripts" / "README.md"


@pytest.mark.parametrize("name", ["26B-A4B"])
def test_the_table_is_what_it_prints(name):
    lines = [*fit_table.table(name, cli.CONTEXT), *fit_table.notes(name, cli.CONTEXT)]
    shown = README.read_text()
    assert [line for line in lines if line not in shown] == []
    assert len(lines) > 15


def test_experts_are_counted_by_what_a_token_meets():
    found = fit_table.plain("26B-A4B")
    whole = sum(entry.stored_bytes for entry in found.live if not entry.is_tower)
    experts = sum(entry.stored_bytes for entry in found.live if ".experts." in entry.name)
    assert fit_table.token_bytes(found) == pytest.approx(whole - experts * 120 / 128)
    counted = launches.count_larger("26B-A4B")
    assert counted["hlwq_gather_qmv"] == 2 * 30
    assert counted["Sort"] == counted["ArgPartition"] == 30
