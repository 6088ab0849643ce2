"""Reading a prompt with this code and with older code, in turns: processor time and peak memory.

    python scripts/benchmarks/prefill.py --before DIR

DIR is a checkout of the older code, as `git worktree add DIR COMMIT` makes it. The model is random,
of four layers of E4B's kinds, with its window and counts of heads at a fifth to a quarter of its
widths, which keeps what is compared: the keys that are scored for each that is seen, and what is
run for one position alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from hlwq_mlx.engine.answer import prefill
from hlwq_mlx.engine.request import Prepared, Request
from scripts.benchmarks import launches
from scripts.benchmarks.bench import machine
from scripts.benchmarks.shapes import e4b_config

ROOT = Path(__file__).parents[2]
CASES = ((512, 512), (2048, 512), (2048, 2048))  # tokens of a prompt and of a chunk
SLIDING, FULL = "sliding_attention", "full_attention"
WIDTHS = {
    **{"vocab_size": 256, "vocab_size_per_layer_input": 256, "hidden_size": 512},
    **{"hidden_size_per_layer_input": 64, "intermediate_size": 2048},
    **{"head_dim": 64, "global_head_dim": 128},
    **{"num_hidden_layers": 4, "num_kv_shared_layers": 2},
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
}


def serve_turns() -> None:
    """Read a prompt for each line on stdin, which names a case; answer by a line of JSON."""
    mx.set_default_device(mx.cpu)
    model = launches.coded_model(e4b_config(**WIDTHS), lambda name, shape: None, mx.float32)
    for line in sys.stdin:
        length, step = CASES[int(line)]
        request = Request(Prepared([7] * length), prefill_step=step)
        caches = model.make_cache()
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        begun = time.process_time()
        prefill(model, request, caches)
        taken = {"s": time.process_time() - begun, "bytes": mx.get_peak_memory() - held}
        print(json.dumps(taken), flush=True)


def start(tree: Path) -> "subprocess.Popen[str]":
    """Start a process that takes turns with the code of a checkout."""
    command = [sys.executable, str(Path(__file__).resolve()), "--turns"]
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve())}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=tree, env=environment, **pipes)  # type: ignore[call-overload, no-any-return]


def turn(process: "subprocess.Popen[str]", case: int) -> dict[str, float]:
    """Have a process read the prompt of a case once."""
    assert process.stdin is not None and process.stdout is not None
    print(case, file=process.stdin, flush=True)
    line = process.stdout.readline()
    if not line:
        raise SystemExit("error: [prefill] needed an answer, got none: its error is above")
    taken: dict[str, float] = json.loads(line)
    return taken


def compare(before: Path, rounds: int) -> list[dict[str, Any]]:
    """Let both read every prompt in turns."""
    trees = {"before": before, "now": ROOT}
    processes = {name: start(tree) for name, tree in trees.items()}
    found = []
    try:
        for case, (length, step) in enumerate(CASES):
            taken: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
            for _ in range(rounds):
                for name, process in processes.items():
                    taken[name].append(turn(process, case))
            medians = {
                f"{name} {what}": statistics.median(each[what] for each in turns)
                for name, turns in taken.items()
                for what in ("s", "bytes")
            }
            found.append({"tokens": length, "chunk": step, **medians})
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, metavar="DIR", help="a checkout of older code")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.turns:
        serve_turns()
        return
    if arguments.before is None:
        parser.error("--before needed a checkout of older code; `git worktree add` makes one")
    found = compare(arguments.before, arguments.rounds)
    print(f"Medians of {arguments.rounds} turns, on {machine()}.\n")
    print("| tokens | a chunk | before, CPU s | now | ratio | before, peak MB | now |")
    print("|---|---|---|---|---|---|---|")
    for row in found:
        seconds = (
            f"{row['before s']:.2f} | {row['now s']:.2f} | {row['now s'] / row['before s']:.2f}"
        )
        peaks = f"{row['before bytes'] / 1e6:.0f} | {row['now bytes'] / 1e6:.0f}"
        print(f"| {row['tokens']:,} | {row['chunk']:,} | {seconds} | {peaks} |")
    print(json.dumps({"prefill": found}))


if __name__ == "__main__":
    main()
