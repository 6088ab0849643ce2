"""Measure what a user waits for before the first word, by the clock and in processor time.

    python scripts/benchmarks/start.py [--model MODEL] [--turns 7]

Each line is a process of its own, in turns, its modules compiled and its files read before: Python
itself, the libraries that an answer needs, the list of options, and the demo's first word. The last
line is what mlx-lm's own import takes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

from scripts.benchmarks import bench

LIBRARIES = "import numpy, mlx.core, mlx.nn, tokenizers, jinja2, safetensors, tqdm"
GENERATE = ("-m", "hlwq_mlx.generate")
_NO_CACHE = "PYTHONDONTWRITEBYTECODE"


class Waited(NamedTuple):
    """Seconds by the clock until something was printed, and those of processors until the end."""

    seconds: float
    core_seconds: float


def commands(model: str | None) -> dict[str, tuple[str, ...]]:
    """Return each line's name and arguments for Python, all of which print something."""
    named = ("--model", model) if model else ()
    return {
        "python": ("-c", "print(1)"),
        "its libraries": ("-c", f"{LIBRARIES}; print(1)"),
        "generate --help": (*GENERATE, "--help"),
        "first word": (*GENERATE, *named, "--prompt", "What is 2+2?", "--max-tokens", "1"),
        "import mlx_lm": ("-c", "import mlx_lm; print(1)"),
    }


def wait(arguments: Sequence[str], cache: str) -> Waited:
    """Run Python and return what it took."""
    variables = {name: value for name, value in os.environ.items() if name != _NO_CACHE}
    begun = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *arguments],
        env=variables | {"PYTHONPYCACHEPREFIX": cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None
    child.stdout.read(1)
    seconds = time.perf_counter() - begun
    child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {child.returncode}")
    return Waited(seconds, usage.ru_utime + usage.ru_stime)


def measure(model: str | None, turns: int) -> dict[str, Waited]:
    """Return the medians of each line; the first turn does not count."""
    found: dict[str, list[Waited]] = {name: [] for name in commands(model)}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(turns + 1):
            for name, arguments in commands(model).items():
                found[name].append(wait(arguments, cache))
    return {
        name: Waited(*(statistics.median(part) for part in zip(*each[1:], strict=True)))
        for name, each in found.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="the demo if none is named")
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args(argv)
    found = measure(arguments.model, arguments.turns)
    print(f"Medians of {arguments.turns} turns, on {bench.machine()}.\n")
    print("| | seconds | core seconds |\n|---|---|---|")
    for name, waited in found.items():
        print(f"| {name} | {waited.seconds:.2f} | {waited.core_seconds:.2f} |")
    print(json.dumps({"start": found}))


if __name__ == "__main__":
    main()
