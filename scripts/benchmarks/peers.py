"""Time our decoder beside stock mlx-lm's and llama.cpp's, one shape, in one interleaved run.

    python scripts/benchmarks/peers.py --work DIR [--output FILE.json] [--picture FILE.png]
    python scripts/benchmarks/peers.py --work DIR --rehearse    two layers, few words, small widths

Decoders of E4B's shape with some of its 42 layers and its whole head, random weights, are written
to --work in the files of every runtime and loaded, each by a process of its own that lives to the
end. They take turns, a first one untimed: a prompt is read, then tokens are decoded one by one
behind a context. Our codes run in exact arithmetic and as integers, or as --modes says.
What is printed: medians of all turns and the middle half of them, in tokens a second; loading,
imports excluded, files cached; peak memory, mapped files included; whether the goals are met.
llama.cpp needs `pip install -e '.[peers]'`; without it its lines are left out. For one
that was built for another processor, --instructions limits ours.

Weights are resident in every process at once: six layers need about 20 GB. Nothing else should run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from hlwq_mlx.quant.backends.native import build
from hlwq_mlx.quant.backends.native.library import EXACT, INTEGER, MODE
from scripts.benchmarks import bench, peer_files
from scripts.benchmarks.formats import has_ggml

PROCESS = Path(__file__).with_name("peer_process.py")
WIDTHS = (2, 3, 4, 5, 6, 8)
MODES: dict[str, dict[str, str]] = {EXACT: {}, INTEGER: {MODE: INTEGER}}
GGUF = ("Q4_K_M", "Q5_K_M", "Q8_0")
EQUAL = {4: "Q4_K_M", 5: "Q5_K_M", 8: "Q8_0"}
STOCK_WIDTH = 4
PREFILL_GOALS = {"avx512": 0.9, "avx2": 0.75}
STOCK_GOAL = 20
LONG = 2048
SLOW_PROMPT = 16  # of stock MLX, which reads a token in the time others read a hundred


class Contender(NamedTuple):
    """Who takes turns: a runtime, what it loads, and the variables of its process."""

    label: str
    runtime: str
    name: str
    variables: dict[str, str]


@dataclass
class Measured:
    """What a contender took; rates are tokens a second, one of each turn or token."""

    contender: Contender
    load: float
    engine: str
    peak: int = 0
    rates: dict[str, list[float]] = field(default_factory=dict)

    def median(self, kind: str) -> float:
        return statistics.median(self.rates[kind])

    def spread(self, kind: str) -> tuple[float, float]:
        """Return the quartiles."""
        rates = self.rates[kind]
        if len(rates) < 2:
            return rates[0], rates[0]
        low, _, high = statistics.quantiles(rates, n=4, method="inclusive")
        return low, high


def ours(bits: int, mode: str) -> Contender:
    """Return our contender of a width in one of MODES."""
    return Contender(f"hlwq_mlx PQ{bits}, {mode}", "ours", str(bits), MODES[mode])


def contenders(modes: Sequence[str]) -> list[Contender]:
    """List who can run here, ours in these modes."""
    found = [ours(bits, mode) for bits in WIDTHS for mode in modes]
    found.append(Contender("mlx-lm float32", "mlx-lm", "float32", {}))
    found.append(Contender(f"mlx-lm affine {STOCK_WIDTH}", "mlx-lm", str(STOCK_WIDTH), {}))
    if has_ggml():
        found += [Contender(f"llama.cpp {name}", "llama.cpp", name, {}) for name in GGUF]
    return found


class Process:
    """A contender's process, idle until it is asked."""

    def __init__(self, contender: Contender, folder: Path, arguments: argparse.Namespace) -> None:
        words = str(arguments.vocabulary)
        command = [sys.executable, str(PROCESS), contender.runtime, str(folder), words]
        if contender.runtime == "ours" and arguments.instructions:
            command.append(arguments.instructions)
        paths = [str(PROCESS.parents[2]), os.environ.get("PYTHONPATH", "")]
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **contender.variables}
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | variables,
        )
        loaded = self._read()
        self.measured = Measured(contender, loaded["load"], loaded["engine"])

    def take_turn(self, kind: str, request: dict[str, int]) -> None:
        """Have a request done and keep its rates under `kind`."""
        assert self._child.stdin is not None
        print(json.dumps(request), file=self._child.stdin, flush=True)
        answered = self._read()
        tokens = request.get("prompt", 1)
        rates = self.measured.rates.setdefault(kind, [])
        rates += [tokens / seconds for seconds, _ in answered["steps"]]
        self.measured.peak = answered["peak"]

    def close(self) -> None:
        """End the process."""
        self._child.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line.startswith("{"):
            raise SystemExit(f"error: {' '.join(map(str, self._child.args))} ended")
        found: dict[str, Any] = json.loads(line)
        return found


def run(chosen: Sequence[Contender], arguments: argparse.Namespace) -> list[Measured]:
    """Make what is loaded, then let everyone take turns."""
    settings = peer_files.config(arguments.layers, arguments.vocabulary, arguments.rehearse)
    arguments.work.mkdir(parents=True, exist_ok=True)
    folders = [
        peer_files.make(each.runtime, each.name, settings, arguments.work)
        for each in tqdm(chosen, desc="files")
    ]
    processes = []
    try:
        for contender, folder in zip(tqdm(chosen, desc="load"), folders, strict=True):
            processes.append(Process(contender, folder, arguments))
        for kind in tqdm(("prefill", "decode"), desc="warm"):
            take_turns(processes, kind, arguments)
        for process in processes:
            process.measured.rates.clear()
        for _ in tqdm(range(arguments.rounds), desc="turns"):
            take_turns(processes, "prefill", arguments)
            take_turns(processes, "decode", arguments)
        for _ in tqdm(range(arguments.long_rounds), desc=f"behind {LONG:,} tokens"):
            take_turns(processes, "long", arguments)
    finally:
        for process in processes:
            process.close()
    return [process.measured for process in processes]


def take_turns(processes: Iterable[Process], kind: str, arguments: argparse.Namespace) -> None:
    """Let each contender do one request of this kind."""
    for process in processes:
        prompt = prompt_of(process.measured.contender, arguments.prompt)
        requests = {
            "prefill": {"prompt": prompt},
            "decode": {"context": arguments.prompt, "tokens": arguments.tokens},
            "long": {"context": LONG, "tokens": arguments.tokens},
        }
        process.take_turn(kind, requests[kind])


def prompt_of(contender: Contender, prompt: int) -> int:
    """Return how many tokens of a prompt a contender reads."""
    return min(prompt, SLOW_PROMPT) if contender.runtime == "mlx-lm" else prompt


def print_table(rows: Sequence[Measured], arguments: argparse.Namespace) -> None:
    """Print a row for each contender as Markdown."""
    kinds = {
        f"decode behind {arguments.prompt}": "decode",
        "middle half": "decode",
        f"decode behind {LONG:,}": "long",
        f"prefill of {arguments.prompt}": "prefill",
        "middle half ": "prefill",
    }
    head = ["tokens a second", *kinds, "load, s", "peak memory, GB"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        cells = [row.contender.label]
        for title, kind in kinds.items():
            if kind not in row.rates:
                cells.append("–")
            elif title.startswith("middle"):
                cells.append(" to ".join(rate(each) for each in row.spread(kind)))
            else:
                cells.append(rate(row.median(kind)))
            if title.startswith("prefill") and kind in row.rates:
                read = prompt_of(row.contender, arguments.prompt)
                cells[-1] += f" (of {read})" if read != arguments.prompt else ""
        print(f"| {' | '.join(cells)} | {row.load:.1f} | {row.peak / 1e9:.2f} |")


def rate(value: float) -> str:
    """Write tokens a second."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


class Goal(NamedTuple):
    """A ratio of two contenders, and what it should be at least."""

    what: str
    ratio: float
    least: float

    @property
    def is_met(self) -> bool:
        return self.ratio >= self.least


def goals(rows: Sequence[Measured]) -> list[Goal]:
    """Compare what ran with the goals."""
    named = {row.contender.label: row for row in rows}
    found = []

    def compare(what: str, mine: str, theirs: str, kind: str, least: float) -> None:
        if {mine, theirs} <= named.keys():
            ratio = named[mine].median(kind) / named[theirs].median(kind)
            found.append(Goal(f"{what}: {mine} / {theirs}", ratio, least))

    for bits, gguf in EQUAL.items():
        for mode in MODES:
            mine, theirs = ours(bits, mode).label, f"llama.cpp {gguf}"
            compare("decode", mine, theirs, "decode", 1.0)
            if mine in named and named[mine].engine in PREFILL_GOALS:
                compare("prefill", mine, theirs, "prefill", PREFILL_GOALS[named[mine].engine])
    for stock in ("mlx-lm float32", f"mlx-lm affine {STOCK_WIDTH}"):
        for mode in MODES:
            for kind in ("decode", "prefill"):
                compare(kind, ours(STOCK_WIDTH, mode).label, stock, kind, STOCK_GOAL)
    return found


def print_goals(found: Sequence[Goal]) -> None:
    """Print which goals are met; one of our two modes has to."""
    if not found:
        return
    print("\n| goal: ratio of medians | found | at least | |\n|---|---|---|---|")
    for goal in found:
        said = "met" if goal.is_met else "missed"
        print(f"| {goal.what} | {goal.ratio:.2f} | {goal.least:g} | {said} |")


def draw(rows: Sequence[Measured], path: Path) -> None:
    """Draw bars of decoding and prefill."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colors = {"ours": "#0969da", "mlx-lm": "#8c959f", "llama.cpp": "#bc4c00"}
    figure = pyplot.figure(figsize=(9, 0.6 + 0.28 * len(rows)), dpi=120, layout="constrained")
    titles = {"decode": "decode, tokens a second", "prefill": "prefill, tokens a second"}
    for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        medians = [row.median(kind) for row in rows]
        errors = [
            [abs(row.spread(kind)[side] - row.median(kind)) for row in rows] for side in (0, 1)
        ]
        shades = [colors[row.contender.runtime] for row in rows]
        axes.barh(range(len(rows)), medians, color=shades, xerr=errors)
        axes.set_yticks(range(len(rows)), [row.contender.label for row in rows])
        axes.set_title(title)
    axes.invert_yaxis()
    figure.savefig(path)


def plain(row: Measured) -> dict[str, Any]:
    """Return a row for JSON."""
    return {
        "contender": row.contender.label,
        "engine": row.engine,
        "load_s": row.load,
        "peak_bytes": row.peak,
        "tokens_per_s": row.rates,
    }


def make_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole: Callable[[str], int] = int
    parser.add_argument(
        "--work",
        type=Path,
        required=True,
        metavar="DIR",
        help="the files to load; kept, used again",
    )
    parser.add_argument("--layers", type=whole, default=6, help="of E4B's 42 (default: 6)")
    parser.add_argument("--vocabulary", type=whole, default=262144, help="words (default: 262144)")
    parser.add_argument("--rounds", type=whole, default=5, help="turns of everyone (default: 5)")
    parser.add_argument(
        "--long-rounds", type=whole, default=1, help=f"turns behind {LONG:,} tokens (default: 1)"
    )
    parser.add_argument("--prompt", type=whole, default=128, help="tokens of it (default: 128)")
    parser.add_argument("--tokens", type=whole, default=8, help="decoded in a turn (default: 8)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="contenders whose labels contain one of these"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=tuple(MODES),
        default=tuple(MODES),
        help="in which our codes are multiplied (default: all)",
    )
    parser.add_argument(
        "--instructions",
        choices=tuple(build.INSTRUCTIONS.get(build.machine(), ())),
        help="by which ours multiply (default: the best that are here)",
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="two layers, few words, small widths"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all rates as JSON")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw them (needs the extra `pictures`)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run, print."""
    arguments = make_parser().parse_args(argv)
    if arguments.rehearse:
        arguments.layers, arguments.vocabulary = 2, 512
    if not has_ggml():
        print(
            "llama.cpp is not installed, so it is left out: pip install -e '.[peers]'",
            file=sys.stderr,
        )
    wanted = arguments.only or [""]
    chosen = [
        each for each in contenders(arguments.modes) if any(part in each.label for part in wanted)
    ]
    if not chosen:
        raise SystemExit(f"error: no contender's label contains {' or '.join(wanted)}")
    build.build()
    load = os.getloadavg()[0]
    rows = run(chosen, arguments)
    engines = dict.fromkeys(f"{row.contender.runtime}: {row.engine}" for row in rows)
    print(
        f"E4B's decoder, {arguments.layers} of 42 layers, {arguments.vocabulary:,} words; ", end=""
    )
    print(f"{arguments.rounds} turns of {arguments.tokens} tokens, on {bench.machine()}, ", end="")
    print(f"load {load:.1f} at first. {'; '.join(engines)}.\n")
    print_table(rows, arguments)
    found = goals(rows)
    print_goals(found)
    if arguments.picture:
        draw(rows, arguments.picture)
    if arguments.output:
        report = {"machine": bench.machine(), "load": load, "layers": arguments.layers}
        content = report | {"rows": [plain(row) for row in rows]}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
