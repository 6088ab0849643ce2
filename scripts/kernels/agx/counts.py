"""Count what the kernels cost in an M1's own instructions, by Mesa's compiler in Apple's place.

    python scripts/kernels/agx/counts.py                 qmv at every tile that it can be given, the
                                                         other kernels, MLX's product of a row
    python scripts/kernels/agx/counts.py 'qmv 5' MLX     those whose names begin so
    python scripts/kernels/agx/counts.py --bits 4 5 --rows 2 4 --tokens 1 5      tiles of one's own
        --save FILE       keep the counts
        --compare FILE    print before and after side by side; before is counts.json without FILE
        --listing         print the instructions
        --goals           say which goals hold
        --variant NAME    count the kernels as a variant of scripts/kernels/variants.toml has them

Without the compiler (setup_compiler) it says so in one line and ends with 0.

Counts are not times: latency, caches and the memory of threadgroups are not in them; registers are
those that Mesa's compiler needs, and Apple's may need more; where qmm multiplies matrices of a
simdgroup, which Mesa cannot, the FMAs that this takes are counted. Instructions and ratios between
programs are what they are good for.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from fnmatch import fnmatch
from itertools import product
from pathlib import Path

from tqdm import tqdm

from hlwq_mlx.quant.chips import Tile
from scripts.kernels import variants
from scripts.kernels.agx import compiler, goals, programs
from scripts.kernels.agx.chips import CHIPS, M1
from scripts.kernels.agx.listing import Counts
from scripts.kernels.agx.programs import Program

KEPT = Path(__file__).with_name("counts.json")
JOBS = 2
LIMITS = """
Counts, not times, of Mesa 25.0's compiler: no latency, no caches, no traffic of threadgroup memory;
its registers, not Apple's; 16 FMAs a lane for a product of matrices of a simdgroup. Cycles: of the
complex pipe. The budget is that of an M1 with 8 cores; qmm multiplies each weight by 32 rows of x.
"""


def all_programs() -> list[Program]:
    return [*programs.products(programs.WIDTHS), *programs.others(), *programs.controls()]


def chosen(arguments: argparse.Namespace) -> list[Program]:
    """Return the programs that the arguments ask for."""
    if arguments.rows or arguments.tokens or arguments.lanes:
        sizes = product(arguments.rows or [4], arguments.lanes or [16], arguments.tokens or [1])
        tiles = [Tile(rows, lanes, 4, tokens) for rows, lanes, tokens in sizes]
        return list(programs.products(arguments.bits, tiles))
    patterns = arguments.programs or ["*"]
    return [p for p in all_programs() if any(fnmatch(p.name, f"{each}*") for each in patterns)]


def count_all(folder: Path, asked: Sequence[Program]) -> dict[str, Counts]:
    """Compile and count programs, two at a time."""
    with compiler.workplace(folder) as work, ThreadPoolExecutor(JOBS) as pool:
        for program in asked:
            program.text()  # what they share is made once, and not by two threads
        found = pool.map(lambda program: compiler.count(folder, work, program), asked)
        counted = tqdm(found, total=len(asked), desc="counts", disable=not sys.stderr.isatty())
        return {program.name: counts for program, counts in zip(asked, counted, strict=True)}


def load(path: Path = KEPT) -> dict[str, Counts]:
    return {name: Counts(**counts) for name, counts in json.loads(path.read_text()).items()}


def save(path: Path, counted: dict[str, Counts]) -> None:
    partial = path.with_suffix(".partial")
    lines = (f"{json.dumps(name)}: {json.dumps(c.plain())}" for name, c in counted.items())
    partial.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    partial.replace(path)


def row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def head(*names: str) -> str:
    return f"{row(names)}\n{'|---' * len(names)}|"


def figures(counts: Counts) -> list[str]:
    """Return a program's numbers, the last ones a weight where there are weights."""
    digits = 2 if counts.weights else 0
    costs = [f"{value:.{digits}f}" for value in (counts.slots, counts.complex_cycles)]
    sizes = (counts.instructions, counts.bytes, counts.registers, counts.simdgroups, counts.spills)
    return [*map(str, sizes), *costs]


def shares(counts: Counts) -> str:
    """Return the instructions that are most of the loop, a weight where there are weights."""
    of = max(1, counts.weights)
    most = sorted(counts.mix.items(), key=lambda item: -item[1])
    shown = [f"{name} {number / of:.2f}" for name, number in most if number / of >= 0.05]
    return ", ".join(shown) if counts.weights else ""


FIGURES = ("instructions", "bytes", "registers of 16 bits", "simdgroups a core", "spills")
COSTS = ("slots a weight", "cycles a weight")


def share(program: Program, counts: Counts) -> str:
    """Return what a weight takes of the M1's budget, "" where there are no weights."""
    bits = program.options.get("B", program.options.get("bits"))
    is_product = program.is_loop and isinstance(bits, int)
    return f"{counts.cost / M1.budget(bits):.0%}" if is_product else ""


def print_table(asked: Iterable[Program], counted: dict[str, Counts]) -> None:
    print(head("program", *FIGURES, *COSTS, "of the budget", "the loop, a weight"))
    for program in asked:
        counts = counted[program.name]
        print(row([program.name, *figures(counts), share(program, counts), shares(counts)]))


def print_comparison(before: dict[str, Counts], after: dict[str, Counts]) -> None:
    """Print what both have; a number that is the same stands alone."""
    print(head("program", *FIGURES, *COSTS))
    for name in after:
        if name in before:
            pairs = zip(figures(before[name]), figures(after[name]), strict=True)
            print(row([name, *(a if a == b else f"{a} → {b}" for a, b in pairs)]))


def print_budgets(counted: dict[str, Counts]) -> None:
    """Print how much of each chip's budget a product takes, at one token and at most."""
    for tokens in (1, *goals.MOST_TOKENS_SHOWN):
        cells = {
            bits: counted.get(programs.qmv(bits, programs.usual_tile(bits, tokens)).name)
            for bits in programs.WIDTHS
        }
        if not all(cells.values()):
            continue
        print(f"\nShare of a chip's issue budget, {tokens} token{'s' * (tokens > 1)} a pass:\n")
        print(head("chip", *(f"{bits}-bit" for bits in cells)))
        for chip in CHIPS:
            used = [c.cost / chip.budget(bits) for bits, c in cells.items() if c]
            print(row([f"{chip.name}, {chip.cores} cores", *(f"{share:.0%}" for share in used)]))
    print(f"\nBudget of {M1.name} with {M1.cores} cores, slots a weight: ", end="")
    print(", ".join(f"{bits}-bit {M1.budget(bits):.1f}" for bits in programs.WIDTHS))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("programs", nargs="*", help="beginnings or patterns of names")
    parser.add_argument("--folder", type=Path, default=compiler.default_folder())
    parser.add_argument("--bits", type=int, nargs="+", default=list(programs.WIDTHS))
    for name in ("rows", "lanes", "tokens"):
        parser.add_argument(f"--{name}", type=int, nargs="+")
    parser.add_argument("--save", type=Path, metavar="FILE")
    parser.add_argument("--compare", type=Path, metavar="FILE", nargs="?", const=KEPT)
    parser.add_argument("--listing", action="store_true", help="print the instructions as well")
    parser.add_argument("--goals", action="store_true", help="say which goals hold")
    parser.add_argument("--variant", type=variants.named, metavar="NAME")
    arguments = parser.parse_args()
    if reason := compiler.missing(arguments.folder):
        print(f"counts: skipped, {reason}")
        return 0
    with variants.texts_of(arguments.variant) if arguments.variant else nullcontext():
        return run(arguments)


def run(arguments: argparse.Namespace) -> int:
    """Count what is asked for and print it."""
    asked = chosen(arguments)
    if arguments.listing:
        with compiler.workplace(arguments.folder) as work:
            for program in asked:
                print(compiler.compile_program(arguments.folder, work, program)[0])
        return 0
    counted = count_all(arguments.folder, asked)
    if arguments.save:
        save(arguments.save, counted)
    if arguments.compare:
        print_comparison(load(arguments.compare), counted)
    else:
        print_table(asked, counted)
        print_budgets(counted)
    print(LIMITS)
    return goals.report(counted) if arguments.goals else 0


if __name__ == "__main__":
    sys.exit(main())
