"""The table of the larger models: what the README shows is what the script prints."""

import tempfile
from pathlib import Path

import pytest

from hlwq_mlx import cli
from scripts.benchmarks import fit_table, launches, mixtures
from scripts.benchmarks.fidelity import unseen_texts

README = Path(__file__).parents[2] / "scripts" / "README.md"


@pytest.mark.parametrize("name", ["26B-A4B"])
def test_the_table_is_what_it_prints(name):
    lines = [*fit_table.table(name, cli.CONTEXT), *fit_table.notes(name, cli.CONTEXT)]
    shown = README.read_text()
    assert [line for line in lines if line not in shown] == []
    assert len(lines) > 15


def test_a_context_that_fits_nowhere_is_a_line():
    *_, last = fit_table.notes("31B", 1 << 18)
    assert last == "31B: at a context of 262144 no width fits 32 GB."


def test_measuring_mixtures_leaves_nothing_in_the_way_of_the_next_run(
    tmp_path, monkeypatch, capsys
):
    """Of bf16 alone here, for it is the quickest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(mixtures, "UNIFORM", ())
    monkeypatch.setattr(mixtures, "unseen_texts", lambda tokenizer: unseen_texts(tokenizer)[:1])
    mixtures.main(["--demo", "--count", "1"])
    printed = capsys.readouterr().out
    assert printed.startswith("Coded by the table clip4_100, each block with its own norm.\n\n| va")
    assert "| bf16 |" in printed
    assert list(tmp_path.iterdir()) == []


def test_experts_are_counted_by_what_a_token_meets():
    found = fit_table.plain("26B-A4B")
    whole = sum(entry.stored_bytes for entry in found.live if not entry.is_tower)
    experts = sum(entry.stored_bytes for entry in found.live if ".experts." in entry.name)
    assert fit_table.token_bytes(found) == pytest.approx(whole - experts * 120 / 128)
    counted = launches.count_larger("26B-A4B")
    assert counted["hlwq_gather_qmv"] == 2 * 30
    assert counted["Sort"] == counted["ArgPartition"] == 30
    assert launches.count_experts_rest("26B-A4B") == 7 * 30
    assert launches.count_experts_rest("12B") == 0
