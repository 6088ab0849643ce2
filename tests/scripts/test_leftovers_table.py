"""The table of leftovers in scripts/README.md is what its script prints."""

from pathlib import Path

from scripts.benchmarks import leftovers_table

README = (Path(__file__).parents[2] / "scripts" / "README.md").read_text()


def test_the_readme_has_the_table():
    rows = leftovers_table.rows()
    assert len(rows) == 8
    for row in [list(leftovers_table.HEAD), *rows]:
        assert f"| {' | '.join(row)} |" in README
