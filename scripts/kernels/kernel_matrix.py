"""Run the Metal kernels on the Metal host at length: what no test run has the time for.

    python scripts/kernels/kernel_matrix.py             a sample of what test_kernels.py could be
    python scripts/kernels/kernel_matrix.py --full      every product of the factors there
    python scripts/kernels/kernel_matrix.py --shapes    E4B's layers, unwatched; --full: every width
    python scripts/kernels/kernel_matrix.py --mutations damaged kernels; writes MUTATIONS.md

Resumable: what a run has found is in build/, and is not run again while kernels, tests and host are
the same; a mutant not while its text and its cases are. Exits with 1 if anything is wrong, or a
mutant survives that nobody has explained.
"""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import random
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from scripts.kernels import kernel_mutants
from scripts.kernels.kernel_mutants import METAL, ROOT, Case, Mutant

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "support"))
sys.path.insert(0, str(ROOT / "tests" / "quant"))
sys.path.insert(0, str(ROOT))

import mlx.core as mx
import numpy as np
import test_kernels
from metal_host import Checks, device, missing

from hlwq_mlx.quant import kernels

SAMPLE = 24
CHECKED_ROWS = 64
EXPLANATIONS = ROOT / "scripts" / "kernels" / "kernel_survivors.toml"
SOURCES = [METAL, ROOT / "hlwq_mlx" / "quant", ROOT / "tests" / "metal_host"]

# Rows and columns of every coded matrix of E4B, padded to whole blocks; of the head, a slice.
SHAPES = {
    "q_proj sliding": (2048, 2560),
    "q_proj full": (4096, 2560),
    "k_proj, v_proj sliding": (512, 2560),
    "k_proj, v_proj full": (1024, 2560),
    "o_proj sliding": (2560, 2048),
    "o_proj full": (2560, 4096),
    "gate_proj, up_proj": (10240, 2560),
    "down_proj": (2560, 10240),
    "per_layer_input_gate": (256, 2560),
    "per_layer_projection": (2560, 256),
    "per_layer_model_projection": (10752, 2560),
    "head, a slice": (16384, 2560),
}
PRODUCTS = {"qmv": (1, 8), "geglu": (1,), "qmm": (33,)}  # rows of x

INTRODUCTION = """# Mutations

Written by `python scripts/kernels/kernel_matrix.py --mutations`: every small damage to the kernels
that the rules in `kernel_mutants.py` can make, and what noticed it: a finding of the Metal host,
wrong numbers, the compiler. Barriers are dropped, conditions removed, inverted and loosened, bit
masks removed, bounds and indices shifted, all one by one. Each is run against a few cases of
`tests/quant/test_kernels.py` until one fails."""

Record = dict[str, Any]
T = TypeVar("T")
NOT_RUN = ("not run", "", "")


class Layer(NamedTuple):
    """One product with a matrix of the size of a layer."""

    shape: str
    kernel: str
    M: int
    bits: int

    @property
    def name(self) -> str:
        return f"{self.shape}: {self.kernel} M={self.M} bits={self.bits}"


def plain(value: Any) -> Any:
    """Convert dtypes to text, so that a case can be written down and sent to another process."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return str(value).removeprefix("mlx.core.") if isinstance(value, mx.Dtype) else value


def all_cases() -> list[Case]:
    """Make the full product for every kernel."""
    return [
        (kernel, dict(zip(factors, map(plain, values), strict=True)))
        for kernel, factors in test_kernels.FACTORS.items()
        for values in itertools.product(*factors.values())
    ]


def all_layers(*, is_full: bool) -> list[Layer]:
    """Every shape with every kernel; the widths in turn, unless all of them are asked for."""
    pairs = [
        (shape, kernel, M) for shape in SHAPES for kernel, rows in PRODUCTS.items() for M in rows
    ]
    if is_full:
        return [Layer(*pair, bits) for pair in pairs for bits in test_kernels.WIDTHS]
    return [Layer(*pair, 1 + (index + index // 8) % 8) for index, pair in enumerate(pairs)]


def case_name(case: Case) -> str:
    return f"{case[0]} {case[1]}"


def run_case(case: Case) -> Record:
    return {"name": case_name(case), "fault": kernel_mutants.run_case(case)}


def run_layer(layer: Layer) -> Record:
    """Multiply as a layer does, and compare rows picked at random with float64."""
    N, K = SHAPES[layer.shape]
    (codes, norms, levels), matrix = test_kernels.coded(layer.bits, N, K)
    x = test_kernels.random(layer.M, K)
    with device(Checks(is_watched=False)):
        y = getattr(kernels, layer.kernel)(x, matrix)
    outputs = y.shape[1]
    rng = np.random.default_rng(0)
    rows = np.unique([0, outputs - 1, *rng.integers(0, outputs, CHECKED_ROWS)])
    entries = levels if layer.bits == 1 else levels.astype(np.float16)
    if layer.kernel == "qmm":
        wide_x = test_kernels.rounded_tile(test_kernels.wide(x))
        expected = wide_x @ test_kernels.half_weight(codes[rows], norms[rows], levels).T
    else:
        wide_x = test_kernels.wide(x)
        halves = [
            wide_x @ test_kernels.rotated_weight(codes[part], norms[part], entries).T
            for part in ((rows, rows + outputs) if layer.kernel == "geglu" else (rows,))
        ]
        gate = test_kernels.gelu(halves[0]) if layer.kernel == "geglu" else halves[0]
        expected = gate * halves[1] if layer.kernel == "geglu" else gate
    # Errors of float32 sums grow with the root of their length; TOL is for 1024.
    tolerance = test_kernels.TOL[layer.kernel] * max(1, K / 1024) ** 0.5
    got = test_kernels.wide(y)[:, rows]
    error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    fault = "" if error <= tolerance else f"relative error {error:.3g} above {tolerance:.3g}"
    return {"name": layer.name, "error": error, "fault": fault}


def sources_digest() -> str:
    """Return a digest of the kernels, their tests and the host."""
    paths = [path for folder in SOURCES for path in sorted(folder.rglob("*")) if path.is_file()]
    paths = [path for path in paths if path.suffix in {".metal", ".py", ".h", ".c"}]
    total = hashlib.sha256(b"".join(path.read_bytes() for path in paths))
    total.update((ROOT / "tests" / "quant" / "test_kernels.py").read_bytes())
    return total.hexdigest()[:16]


def read_records(path: Path) -> list[Record]:
    """Read what earlier runs have found; a line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def run_new(
    items: Sequence[T],
    name: Callable[[T], str],
    run: Callable[[T], Record],
    path: Path,
    digest: Callable[[T], str],
    pool: Executor,
    limit: int | None = None,
) -> list[Record]:
    """Run what `path` has no record of and append it; return the records that there are of items.

    Not more than `limit` are run.
    """
    keys = {(name(item), digest(item)): item for item in items}
    known = {(record["name"], record["digest"]): record for record in read_records(path)}
    todo = [key for key in keys if key not in known][:limit]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(record) + "\n" for record in known.values()))
    partial.replace(path)
    with path.open("a") as file:
        futures = {pool.submit(run, keys[key]): key for key in todo}
        for future in tqdm(as_completed(futures), total=len(todo), desc=path.stem):
            key = futures[future]
            known[key] = {**future.result(), "digest": key[1]}
            file.write(json.dumps(known[key]) + "\n")
            file.flush()
    return [known[key] for key in keys if key in known]


def report(records: Iterable[Record]) -> bool:
    """Print every fault and a count; return whether there is none."""
    records = list(records)
    faults = [record for record in records if record["fault"]]
    for record in faults:
        print(f"{record['name']}: {record['fault']}")
    print(f"{len(records)} cases, {len(faults)} faults")
    return not faults


def explanations() -> dict[tuple[str, str], str]:
    """Read why nothing notices a survivor, by file and change."""
    entries = tomllib.loads(EXPLANATIONS.read_text())["survivor"]
    return {
        (entry["file"], change): entry["why"] for entry in entries for change in entry["changes"]
    }


def kill_table(mutants: Sequence[Mutant], records: Sequence[Record]) -> tuple[str, list[str]]:
    """Return the table in Markdown, and the survivors that nobody has explained."""
    why, found = explanations(), {record["name"]: record for record in records}
    totals: Counter[tuple[str, str]] = Counter()
    killed, survived, unexplained = [], [], []
    for mutant in mutants:
        change = f"| {mutant.file}:{mutant.line} | {mutant.rule} | {quoted(mutant.after)} |"
        fate, _, detail = (
            found[mutant.name]["by"].partition(": ") if mutant.name in found else NOT_RUN
        )
        totals[mutant.rule, fate or "survived"] += 1
        if fate:
            killed.append(
                f"{change} {fate}: {escaped(detail)} |" if detail else f"{change} {fate} |"
            )
            continue
        reason = why.get((mutant.file, mutant.change), "")
        survived.append(f"{change} {reason or '**unexplained**'} |")
        if not reason:
            unexplained.append(f"{mutant.file}:{mutant.line}: {mutant.change}")
    fates = ["finding", "numbers", "compiler", "crash", "time", "survived", NOT_RUN[0]]
    summary = [
        f"| {rule} | " + " | ".join(str(totals[rule, fate]) for fate in fates) + " |"
        for rule in dict.fromkeys(mutant.rule for mutant in mutants)
    ]
    head = "| where | rule | damaged line |"
    lines = [
        *INTRODUCTION.splitlines(),
        "",
        "| rule | " + " | ".join(fates) + " |",
        "|---" * (len(fates) + 1) + "|",
        *summary,
        "",
        "## Survivors",
        "",
        f"{head} why nothing notices |",
        "|---|---|---|---|",
        *survived,
        "",
        "## The others",
        "",
        f"{head} by |",
        "|---|---|---|---|",
        *killed,
    ]
    return "\n".join(lines) + "\n", unexplained


def quoted(line: str) -> str:
    return f"`{escaped(line.strip())}`" if line.strip() else "(removed)"


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def judge_mutants(arguments: argparse.Namespace) -> bool:
    """Run all mutants and write the table; return whether every survivor is explained."""
    path = arguments.out.with_name("kernel_mutants.jsonl")
    work = path.parent / "mutants"
    mutants = kernel_mutants.mutants()
    work.mkdir(parents=True, exist_ok=True)
    judges = kernel_mutants.Judges(work)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        records = run_new(
            mutants,
            lambda mutant: mutant.name,
            judges,
            path,
            lambda mutant: mutant.digest(kernel_mutants.cases_for(mutant.file)),
            pool,
            arguments.limit,
        )
    judges.close()
    table, unexplained = kill_table(mutants, records)
    Path(__file__).with_name("MUTATIONS.md").write_text(table)
    for line in unexplained:
        print(f"survived, and nobody has said why: {line}")
    survived = sum(record["verdict"] == "survived" for record in records)
    print(
        f"{len(mutants)} mutants, {len(records)} of them run, {survived} survived, "
        f"{len(unexplained)} of those unexplained"
    )
    return not unexplained and len(records) == len(mutants)


def run_cases(arguments: argparse.Namespace) -> bool:
    """Run the product, or a part of it."""
    cases = all_cases()
    # In any order but the product's, so that a part of it has something of everything.
    random.Random(0).shuffle(cases)
    if not arguments.full:
        cases = cases[:SAMPLE]
    digest = sources_digest()
    with spawned(arguments.jobs) as pool:
        found = run_new(
            cases, case_name, run_case, arguments.out, lambda _: digest, pool, arguments.limit
        )
    return report(found)


def run_layers(arguments: argparse.Namespace) -> bool:
    layers = all_layers(is_full=arguments.full)
    digest = sources_digest()
    with spawned(arguments.jobs) as pool:
        found = run_new(
            layers,
            lambda layer: layer.name,
            run_layer,
            arguments.out,
            lambda _: digest,
            pool,
            arguments.limit,
        )
    return report(found)


def spawned(jobs: int) -> Executor:
    """Make processes that do not inherit MLX's threads; the host runs one kernel in each."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="all of it, not a sample")
    parser.add_argument("--shapes", action="store_true", help="the layers of E4B")
    parser.add_argument("--mutations", action="store_true", help="damaged kernels")
    parser.add_argument("--limit", type=int, help="at most so many new ones in this run")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "kernel_matrix.jsonl", help="file of records"
    )
    arguments = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    if arguments.mutations:
        is_fine = judge_mutants(arguments)
    else:
        is_fine = (run_layers if arguments.shapes else run_cases)(arguments)
    sys.exit(0 if is_fine else 1)


if __name__ == "__main__":
    main()
