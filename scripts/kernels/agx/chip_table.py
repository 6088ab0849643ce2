"""Write what hlwq_mlx/quant/chips.json says by counts: how many tokens a pass each chip multiplies.

    python scripts/kernels/agx/chip_table.py

A pass of several tokens costs what one does as long as its instructions are issued while memory
delivers the weights: those of counts.json against the budgets of chips.py. Lines whose `found` is
"measured" stay as they are. A line serves all numbers of cores that a chip is sold with, so the
fewest count; one that chips.py does not know gets the least of all.
"""

import json
from itertools import chain
from typing import Any

from hlwq_mlx.quant.chips import MOST_TOKENS, PATH, WIDTHS, read
from scripts.kernels.agx import counts, programs
from scripts.kernels.agx.chips import CHIPS, Chip
from scripts.kernels.agx.listing import Counts

LARGEST_SHARE = 0.9  # of the budget that instructions may take

Line = dict[str, Any]


def share(counted: dict[str, Counts], chip: Chip, bits: int, tokens: int) -> float:
    """Return what a pass takes to issue, of the time that memory takes to deliver the weights."""
    program = programs.qmv(bits, programs.usual_tile(bits, tokens))
    return counted[program.name].cost / chip.budget(bits)


def tokens_a_pass(counted: dict[str, Counts], chip: Chip) -> list[int]:
    """Return, for each width, the most tokens whose instructions memory's time hides."""
    fitting = (
        [n for n in range(1, MOST_TOKENS + 1) if share(counted, chip, bits, n) <= LARGEST_SHARE]
        for bits in WIDTHS
    )
    return [max(numbers, default=1) for numbers in fitting]


def refreshed(table: dict[str, Line], counted: dict[str, Counts]) -> dict[str, Line]:
    """Return a table whose lines found by counts have those of now."""
    found: dict[str, list[list[int]]] = {}
    for chip in CHIPS:
        found.setdefault(chip.name, []).append(tokens_a_pass(counted, chip))
    of_all = [*chain(*found.values())]
    return {
        name: line if line["found"] != "counts" else {**line, "tokens_a_pass": least}
        for name, line in table.items()
        for least in [[min(numbers) for numbers in zip(*found.get(name, of_all), strict=True)]]
    }


def text(table: dict[str, Line]) -> str:
    """Return a table as it is kept: a line for each chip."""
    lines = (f"{json.dumps(name)}: {json.dumps(line)}" for name, line in table.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    partial = PATH.with_suffix(".partial")
    partial.write_text(text(refreshed(json.loads(PATH.read_text()), counts.load())))
    read(partial)
    partial.replace(PATH)


if __name__ == "__main__":
    main()
