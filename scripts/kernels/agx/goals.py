"""What the kernels are to cost at most, and whether they do."""

from collections.abc import Iterator

from hlwq_mlx.quant.backends.choose import PASS_ROWS
from scripts.kernels.agx import programs
from scripts.kernels.agx.chips import M1
from scripts.kernels.agx.listing import Counts

MOST_TOKENS_SHOWN = (2, 3, 4, 5)
FULL_TOKENS = 5
LARGEST_SHARE = {True: 0.85, False: 0.90}  # of the budget, by whether five tokens fit a pass
LEAST_SIMDGROUPS = 24
LARGEST_RATIO = {2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0, 6: 1.0, 8: 1.15}  # to MLX's affine product


Finding = tuple[str, str, bool]
"""A goal, what was counted and whether the goal holds."""


def findings(counted: dict[str, Counts]) -> Iterator[Finding]:
    yield from against_mlx(counted)
    yield from within_budget(counted)
    yield from unspilled(counted)


def against_mlx(counted: dict[str, Counts]) -> Iterator[Finding]:
    """Fewer slots and complex cycles a weight than MLX's affine product of the same width."""
    for bits, limit in LARGEST_RATIO.items():
        ours = counted[programs.qmv(bits, programs.usual_tile(bits, 1)).name]
        theirs = counted[programs.affine(bits).name]
        for what in ("slots", "complex_cycles"):
            got, given = getattr(ours, what), getattr(theirs, what)
            bound = f"at most {limit:g} of MLX's" if limit > 1 else "below MLX's"
            holds = got <= limit * given if limit > 1 else got < given
            yield f"{bits}-bit, {what}: {bound}", f"{got:.2f} to {given:.2f}", holds


def within_budget(counted: dict[str, Counts]) -> Iterator[Finding]:
    """Memory, not arithmetic, is what a pass of the most tokens waits for."""
    for bits, tokens in PASS_ROWS.items():
        share = counted[programs.qmv(bits, programs.usual_tile(bits, tokens)).name].cost
        share /= M1.budget(bits)
        limit = LARGEST_SHARE[tokens == FULL_TOKENS]
        goal = f"{bits}-bit, {tokens} tokens: at most {limit:.0%} of the budget"
        yield goal, f"{share:.0%}", share <= limit


def unspilled(counted: dict[str, Counts]) -> Iterator[Finding]:
    """Registers hold what the tiles need, of enough simdgroups to hide what one waits for."""
    for bits in programs.WIDTHS:
        tiles = [
            programs.qmv(bits, tile, is_geglu=is_geglu).name
            for tile in programs.chosen_tiles(bits)
            for is_geglu in (False, True)
        ]
        spills = max(counted[name].spills for name in tiles)
        resident = min(counted[name].simdgroups for name in tiles)
        yield f"{bits}-bit: no spill at any tile", f"{spills} at most", spills == 0
        goal = f"{bits}-bit: {LEAST_SIMDGROUPS} simdgroups a core at any tile"
        yield goal, f"{resident} at least", resident >= LEAST_SIMDGROUPS


def report(counted: dict[str, Counts]) -> int:
    """Print every goal; return 1 unless all hold."""
    found = list(findings(counted))
    for goal, got, holds in found:
        print(f"{'holds' if holds else 'FAILS'}  {goal}: {got}")
    print(f"{sum(holds for *_, holds in found)} of {len(found)} goals hold")
    return 0 if all(holds for *_, holds in found) else 1
