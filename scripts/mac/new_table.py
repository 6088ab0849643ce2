"""The line of hlwq_mlx/quant/chips.json that a run on a Mac found best for its chip.

What was not measured, or is not faster by MARGIN, stays as it is. The file that is written is the
package's table with this chip's line in it, and may take its place unchanged.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hlwq_mlx.quant.chips import LEAST_LANES, PATH, Chip, read
from hlwq_mlx.quant.kernels import QMV_ROWS
from scripts.kernels.agx import chip_table

Row = dict[str, Any]
Line = dict[str, Any]

MARGIN = 0.97  # of the time that the present choice takes
HIDDEN = 1.1  # of one token's time: so much may several take, to count as one pass


def table_step(name: str, chip: Chip, steps: dict[str, list[Row]], path: Path) -> Iterator[Row]:
    """Write the table with this chip's line to `path`, and yield what is in the line."""
    kept = json.loads(PATH.read_text())
    old = kept.get(name) or like(chip, kept)
    new = {**old, "found": "measured", **found(old, steps)}
    partial = path.with_suffix(".partial")
    partial.write_text(chip_table.text({**kept, name: new}))
    read(partial)
    partial.replace(path)
    for key in old:
        yield {"key": key, "before": str(old[key]), "now": str(new[key])}


def like(chip: Chip, table: dict[str, Line]) -> Line:
    """Return the line that a chip without one has been using."""
    known = read(PATH)
    return next(line for name, line in table.items() if known[name] == chip)


def found(old: Line, steps: dict[str, list[Row]]) -> Line:
    """Return the keys that steps, by their keys here, have an answer for."""
    tiles = [row["all"] for row in steps.get("tiles", []) if row.get("all")]
    several = [row for row in steps.get("rows", []) if row.get("ms")]
    many = [row for row in steps.get("many", []) if "qmm, ms" in row]
    return {
        "rows": rows(old["rows"], several),
        "tokens_a_pass": tokens_a_pass(old["tokens_a_pass"], several),
        "simdgroups": best_part(old["simdgroups"], tiles, 2),
        "lanes": lanes(best_part(old["lanes"][0], tiles, 1)),
        "qmm_rows": qmm_rows(old["qmm_rows"], many),
    }


def rows(old: list[list[int]], several: Sequence[Row]) -> list[list[int]]:
    """Return the rows a lane by tokens and bits."""
    new = [list(line) for line in old]
    for row in several:
        if row["its ms"] < MARGIN * row["ms"]:
            new[row["tokens"] - 1][row["bits"] - 1] = row["fastest"]
    return new


def tokens_a_pass(old: list[int], several: Sequence[Row]) -> list[int]:
    """Return, by bits, up to how many tokens a product takes about as long as for one."""
    times: dict[int, dict[int, float]] = defaultdict(dict)
    for row in several:
        times[row["bits"]][row["tokens"]] = row["its ms"]
    new = list(old)
    for bits, by_tokens in times.items():
        if 1 in by_tokens and len(by_tokens) > 1:
            hidden = [n for n, ms in by_tokens.items() if ms <= HIDDEN * by_tokens[1]]
            new[bits - 1] = max(hidden)
    return new


def best_part(old: int, tiles: Sequence[dict[str, float]], part: int) -> int:
    """Return the best of one part of the tiles (1: lanes, 2: simdgroups), the others at their best.

    Each table of times counts alike: times are those of its fastest.
    """
    totals: dict[int, float] = defaultdict(float)
    seen: dict[int, int] = defaultdict(int)
    for times in tiles:
        best: dict[int, float] = {}
        for name, ms in times.items():
            value = int(name.split(", ")[part])
            best[value] = min(ms, best.get(value, ms))
        for value, ms in best.items():
            totals[value] += ms / min(times.values())
            seen[value] += 1
    # Only what every table has can be compared.
    sums = {value: total for value, total in totals.items() if seen[value] == len(tiles)}
    fastest = min(sums, key=lambda value: sums[value], default=old)
    return fastest if old in sums and sums[fastest] < MARGIN * sums[old] else old


def lanes(first: int) -> list[int]:
    """Return the lanes to be tried one after another, from the best down to what fits any row."""
    return [n for n in (32, 16, 8, LEAST_LANES) if n <= first]


def qmm_rows(old: int, many: Sequence[Row]) -> int:
    """Return up to how many rows qmm was the faster way in sum; 8 where it never was."""
    sums: dict[int, list[float]] = {}
    for row in many:
        of_rows = sums.setdefault(row["rows"], [0.0, 0.0])
        of_rows[0] += row["qmm, ms"]
        of_rows[1] += row["decoded, ms"]
    best = QMV_ROWS
    for M in sorted(sums):
        if sums[M][0] > sums[M][1]:
            return best
        best = M
    return max(best, old) if sums else old
