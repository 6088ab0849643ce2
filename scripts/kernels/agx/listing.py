"""Read what the compiler prints of a program, and sum what it costs.

An instruction is an issue slot. Some go through a pipe of their own that takes one of a simdgroup
only every few cycles; both pipes run at once, so the larger sum counts. Cycles are those that
metal-benchmarks measured on M1 (see chips), in `COMPLEX`.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

COMPLEX = {
    **dict.fromkeys(("bfi", "bfeil", "extr", "asr", "imad", "convert", "bitrev", "popcount"), 4),
    **dict.fromkeys(("floor", "ceil", "trunc", "roundeven", "log2", "exp2", "ffs", "intl"), 4),
    **{"sin_pt_1": 4, "sin_pt_2": 4, "rcp": 6, "rsqrt": 8, "srsqrt": 8},
}
REGISTER_BYTES = 208 * 1024  # of a core
MOST_SIMDGROUPS = 96  # of a core
SIMDGROUP = 32  # lanes

STATS = re.compile(
    r"(\d+) inst, .*?(\d+) bytes, (\d+) regs, .*?(\d+) threads, .*?(\d+):(\d+) spills"
)
BLOCK = re.compile(r"^block(\d+) \{\n(.*?)^\}(?: -> ([^\n]*?))?(?: from[^\n]*)?\n", re.M | re.S)

Blocks = dict[int, tuple[list[str], list[int]]]
"""The instructions of every block of a program, and the blocks it goes on to."""


@dataclass(frozen=True)
class Counts:
    """A program's instructions, bytes, registers of 16 bits and accesses of registers spilled.

    mix: how often each instruction stands in the loop over weights, or in a program without one.
    weights: how many a lane takes in a turn of that loop, or in all; 0 where there are none.
    """

    instructions: int
    bytes: int
    registers: int
    spills: int
    weights: int
    mix: dict[str, int]

    @property
    def simdgroups(self) -> int:
        """How many a core's registers hold."""
        return min(MOST_SIMDGROUPS, REGISTER_BYTES // (2 * SIMDGROUP * max(1, self.registers)))

    @property
    def slots(self) -> float:
        """Issue slots a weight; of the whole where there are none."""
        return sum(self.mix.values()) / max(1, self.weights)

    @property
    def complex_cycles(self) -> float:
        """Cycles of the complex pipe a weight; of the whole where there are none."""
        cycles = sum(COMPLEX.get(name, 0) * count for name, count in self.mix.items())
        return cycles / max(1, self.weights)

    @property
    def cost(self) -> float:
        """The longer of both."""
        return max(self.slots, self.complex_cycles)

    def plain(self) -> dict[str, Any]:
        """Return what `Counts(**...)` takes."""
        return {**vars(self), "mix": dict(sorted(self.mix.items()))}


def read(listing: str, stats: str, weights: int, *, is_loop: bool) -> Counts:
    """Read the compiler's listing and its line of statistics; `is_loop`: of the loop over weights.

    Raises: ValueError where either is not of the form of Mesa 25.0.
    """
    found = STATS.search(stats)
    programs = split(listing)
    if not found or not programs:
        raise ValueError(
            "[agx] needed a listing and statistics as Mesa 25.0 prints them, got "
            f"{(stats or listing)[-500:]!r}. Set up that version."
        )
    instructions, size, registers, _, spills, fills = map(int, found.groups())
    program = programs[-1]
    mix = innermost(program) if is_loop else count(program, list(program))
    return Counts(instructions, size, registers, spills + fills, weights, dict(mix))


def split(listing: str) -> list[Blocks]:
    """Split a listing into programs, preambles left out: they run once, on no lane's behalf."""
    programs: list[Blocks] = []
    for number, body, successors in BLOCK.findall(listing):
        if number == "0":
            programs.append({})
        lines = [line.strip() for line in body.splitlines() if line.strip()]
        programs[-1][int(number)] = lines, [int(n) for n in re.findall(r"block(\d+)", successors)]
    return [program for program in programs if not is_preamble(program)]


def is_preamble(program: Blocks) -> bool:
    return any("uniform_store" in line for lines, _ in program.values() for line in lines)


def opcode(line: str) -> str:
    """Return the instruction's name without its variants: `iadd` of `r1 = iadd.sat r2, r3`."""
    return line.split(" = ", 1)[-1].split()[0].split(".")[0]


def innermost(program: Blocks) -> Counter[str]:
    """Count the instructions of the loop that multiplies most: a table is filled by one as well.

    A loop is what lies between a block and one that goes back to it.
    """
    order = list(program)
    loops = [
        (order.index(to), at)
        for at, name in enumerate(order)
        for to in program[name][1]
        if to in program and order.index(to) <= at
    ]
    mixes = [count(program, order[first : last + 1]) for first, last in loops]
    return max(mixes, key=lambda mix: mix["ffma"], default=count(program, order))


def count(program: Blocks, names: list[int]) -> Counter[str]:
    return Counter(opcode(line) for name in names for line in program[name][0])
