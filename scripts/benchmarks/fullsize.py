"""Convert, load and run a Gemma 4 at full size on this machine, and print what it took.

    python scripts/benchmarks/fullsize.py           E4B's PQ5, then PQ2-Mixed: 24 GB of disk
    python scripts/benchmarks/fullsize.py --model 26B-A4B --bits experts=3,mlp=5 ...
    python scripts/benchmarks/fullsize.py --layers 2 --vocabulary 4096 --new 2    a rehearsal

For each variant a synthetic repository is written (make_fullsize), converted, loaded, given a
prompt and made to answer, each in a process of its own, and deleted. Memory is the process's own
(RssAnon, sampled): not the page cache, which the system takes back. It answers in every mode of the
native library (--modes); without that, coded weights are multiplied as an 8-bit image and all
others in float32, and a preloaded OpenBLAS (--openblas PATH) makes the prefill bearable. Prints a
table and a line of JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hlwq_mlx.quant.backends.native.library import EXACT, INTEGER, MODE
from hlwq_mlx.source import rules
from hlwq_mlx.write.leftovers import AUTO, CHOICES
from scripts.benchmarks import bench, make_fullsize
from scripts.benchmarks.row_reads import forget

VARIANTS = ("PQ5", "PQ2-Mixed")
CONVERT_LIMIT = 1.5 * 2**30
SAMPLE_S = 0.05
HERE = Path(__file__).parent


def anonymous_bytes(process_id: int) -> int:
    """Return a process's own memory, 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    sizes = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(sizes[0]) * 1024 if sizes else 0


def measured(command: Sequence[str], **variables: str) -> dict[str, Any]:
    """Run a command to its end: its output, its seconds and its largest own memory."""
    begun, peak = time.perf_counter(), 0
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=os.environ | variables
    ) as child:
        while child.poll() is None:
            peak = max(peak, anonymous_bytes(child.pid))
            time.sleep(SAMPLE_S)
        assert child.stdout is not None
        output = child.stdout.read()
    if child.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {child.returncode}")
    return {"seconds": time.perf_counter() - begun, "peak": peak, "output": output}


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class TimedRows:
    """A row store that notes how long each call took."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows
        self.seconds: list[float] = []

    def __call__(self, ids: Any) -> Any:
        begun = time.perf_counter()
        rows = self._rows(ids)
        self.seconds.append(time.perf_counter() - begun)
        return rows


def answer(folder: Path, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """Load a folder and answer a prompt of random ids; the row store is cold at first."""
    import mlx.core as mx
    import numpy as np

    from hlwq_mlx.engine.answer import generate_tokens
    from hlwq_mlx.engine.request import Prepared, Request
    from hlwq_mlx.folder import loading
    from hlwq_mlx.folder.rows import FILE_NAME
    from hlwq_mlx.memory import inventory
    from hlwq_mlx.memory.machine import Machine
    from hlwq_mlx.memory.need import Settings, need
    from hlwq_mlx.quant.backends.native.library import native_library

    mx.set_default_device(mx.cpu)
    begun = time.perf_counter()
    model = loading.load(folder)
    load_s = time.perf_counter() - begun
    if (folder / FILE_NAME).exists():
        forget(folder / FILE_NAME)
    rows = TimedRows(model.resources.rows)
    model.resources = model.resources._replace(rows=rows)
    vocabulary = model.args.text_config.vocab_size
    ids = np.random.default_rng(0).integers(2, vocabulary - 8, prompt_tokens).tolist()
    moments = [time.perf_counter()]
    is_finite = True
    for chosen in generate_tokens(model, Request(Prepared(ids), max_tokens=new_tokens)):
        moments.append(time.perf_counter())
        is_finite &= bool(mx.isfinite(chosen.scores).all())
    prefill_rows = -(-prompt_tokens // 512)
    later = rows.seconds[prefill_rows:] or [0.0]
    settings = Settings(prompt_tokens + new_tokens)
    has_library = native_library() is not None
    machine = Machine("this CPU", 0, 0, has_metal=False, has_library=has_library)
    needed = need(inventory.take(str(folder)), settings, machine)
    return {
        "load_s": load_s,
        "prefill_s": moments[1] - moments[0],
        "decode_s": moments[-1] - moments[1],
        "rows_prefill_ms": 1e3 * sum(rows.seconds[:prefill_rows]),
        "rows_token_ms": 1e3 * sum(later) / len(later),
        "mlx_peak": mx.get_peak_memory(),
        "computed": needed.total,
        "is_finite": is_finite,
    }


def run(variant: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Take one variant, or mixture of bits, through all steps, and delete it: a row a mode."""
    root, output = arguments.work / "source", arguments.work / "converted"
    size = ["--layers", str(arguments.layers), "--model", arguments.model]
    if arguments.vocabulary is not None:
        size += ["--vocabulary", str(arguments.vocabulary)]
    kind = "--variant" if variant in rules.VARIANTS else "--bits"
    maker = [str(HERE / "make_fullsize.py"), kind, variant, "--output", str(root), *size]
    made = measured(maker)
    source = Path(made["output"].splitlines()[-1])
    converter = ["-m", "hlwq_mlx.convert", "--leftovers", arguments.leftovers]
    converted = measured([*converter, "--model", str(source), "--output", str(output)])
    found = {
        "variant": variant,
        "source": folder_bytes(source),
        "converted": folder_bytes(output),
        "make_s": made["seconds"],
        "make_peak": made["peak"],
        "convert_s": converted["seconds"],
        "convert_peak": converted["peak"],
    }
    shutil.rmtree(root)
    preload = {"LD_PRELOAD": arguments.openblas} if arguments.openblas else {}
    command = [__file__, "--answer", str(output)]
    command += ["--prompt", str(arguments.prompt), "--new", str(arguments.new)]
    rows = []
    for mode in arguments.modes:
        answered = measured(command, **preload, **{MODE: mode})
        last = json.loads(answered["output"].splitlines()[-1])
        rows.append(found | {"mode": mode, "peak": answered["peak"]} | last)
    shutil.rmtree(output)
    return rows


def print_table(rows: list[dict[str, Any]], prompt: int, new: int) -> None:
    """Print a row for each measure and a column for each variant, as Markdown."""
    measures = {
        "source, GB": lambda row: f"{row['source'] / 1e9:.2f}",
        "converted, GB": lambda row: f"{row['converted'] / 1e9:.2f}",
        "conversion, s": lambda row: f"{row['convert_s']:.0f}",
        "its own memory at most, GiB": lambda row: f"{row['convert_peak'] / 2**30:.2f}",
        "loading, s": lambda row: f"{row['load_s']:.0f}",
        f"prefill of {prompt}, s": lambda row: f"{row['prefill_s']:.1f}",
        f"{new - 1} more tokens, s": lambda row: f"{row['decode_s']:.1f}",
        "tokens a second": lambda row: f"{(new - 1) / row['decode_s']:.1f}",
        "own memory at most, GB": lambda row: f"{row['peak'] / 1e9:.2f}",
        "MLX's arrays at most, GB": lambda row: f"{row['mlx_peak'] / 1e9:.2f}",
        "computed beforehand, GB": lambda row: f"{row['computed'] / 1e9:.2f}",
        f"rows of {prompt} tokens, cold, ms": lambda row: f"{row['rows_prefill_ms']:.1f}",
        "row of a token, cold, ms": lambda row: f"{row['rows_token_ms']:.2f}",
    }
    names = [f"{row['variant']}, {row['mode']}" for row in rows]
    print(f"| | {' | '.join(names)} |\n|{'---|' * (len(rows) + 1)}")
    for name, cell in measures.items():
        print(f"| {name} | {' | '.join(cell(row) for row in rows)} |")


def main(argv: Sequence[str] | None = None) -> None:
    """Run every variant in turn; fail when one takes too much or scores without end."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="in turn")
    parser.add_argument(
        "--bits", nargs="+", dest="variants", metavar="CLASS=N,...", help="mixtures, in turn"
    )
    parser.add_argument("--work", type=Path, default=Path("fullsize"), help="must not exist")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=16, help="tokens of the answer")
    parser.add_argument("--modes", nargs="+", choices=(EXACT, INTEGER), default=(EXACT, INTEGER))
    parser.add_argument("--openblas", metavar="PATH", help="library to preload while answering")
    parser.add_argument("--leftovers", choices=CHOICES, default=AUTO, help="as convert's")
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    make_fullsize.add_size_args(parser)
    arguments = parser.parse_args(argv)
    if arguments.answer:
        print(json.dumps(answer(arguments.answer, arguments.prompt, arguments.new)))
        return
    arguments.work.mkdir(parents=True)
    rows = [row for variant in arguments.variants for row in run(variant, arguments)]
    arguments.work.rmdir()
    print(f"{arguments.model}, {arguments.layers} layers at most, on {bench.machine()}.\n")
    print_table(rows, arguments.prompt, arguments.new)
    print(json.dumps({"fullsize": rows}))
    if not all(row["is_finite"] and row["convert_peak"] < CONVERT_LIMIT for row in rows):
        raise SystemExit("error: a conversion took more than 1.5 GiB, or scores are not finite")
    if any(row["mlx_peak"] > row["computed"] for row in rows):
        raise SystemExit("error: MLX's arrays took more than memory.need computes")


if __name__ == "__main__":
    main()
