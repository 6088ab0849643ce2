"""Benchmarks: ratios measured in one run, and a model of what a Mac would do.

    python scripts/benchmarks/bench.py ops      our CPU paths beside stock MLX, E4B's shapes
    python scripts/benchmarks/bench.py model    E4B's decoder, few layers, beside stock mlx-lm's
    python scripts/benchmarks/bench.py rows     per-layer rows from disk beside a resident table
    python scripts/benchmarks/bench.py m1       bytes, launches and time on Apple's chips: a model

Codes are random. Contenders take turns within a run and are compared by their medians, because a
shared machine drifts. Each command prints Markdown and ends with one line of JSON. On a Mac,
scripts/first_mac_run times the kernels.

M rows of x, N rows and K columns of a matrix.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from hlwq_mlx.quant.activation import Activation
from hlwq_mlx.quant.backends.affine import IMAGE_ERROR, Affine
from hlwq_mlx.quant.backends.base import Product, reference
from hlwq_mlx.quant.backends.dense import Dense
from hlwq_mlx.quant.layers import pad_table
from hlwq_mlx.quant.matrix import CodedMatrix
from hlwq_mlx.quant.packing import BLOCK, UNIT
from hlwq_mlx.quant.tables import centroids
from hlwq_mlx.source import rules
from scripts.benchmarks import launches, m1, pass_tables, row_reads

Contender = Callable[[], Any]
Clock = Callable[[], float]
SHAPES = {  # (K, N) of E4B's matrices
    "gate, up": (2560, 10240),
    "down": (10240, 2560),
    "q (sliding)": (2560, 2048),
    "k, v (sliding)": (2560, 512),
}
BITS = (2, 4, 5, 6, 8)
ROWS = (1, 16)
AFFINE = (4, 8)
VOCABULARY = 1024  # E4B's head would cost as much as eight layers, in every contender
WIDTHS = (4, 5)


def machine() -> str:
    """Return the names of the processor and the libraries."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    chip = f"{names[0]}, {len(names)} cores" if names else platform.processor()
    return f"{chip}; {platform.system()}; MLX {mx.__version__}, {mx.default_device()}"


def medians(
    contenders: dict[str, Contender], rounds: int, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Run contenders in turns, once untimed, and return the median seconds of each."""
    for run in contenders.values():
        mx.eval(run())
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            begun = clock()
            mx.eval(run())
            times[name].append(clock() - begun)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def measured(case: str, contenders: dict[str, Contender], rounds: int) -> list[dict[str, Any]]:
    """Take contenders' processor time, which other jobs do not add to, and compare with the first.

    MLX computes in one thread on a CPU, so that on an idle machine it is the time that passes.
    """
    times = medians(contenders, rounds, time.process_time)
    base = next(iter(times.values()))
    return [
        {"case": case, "contender": name, "ms": 1e3 * seconds, "ratio": seconds / base}
        for name, seconds in times.items()
    ]


def random_matrix(N: int, K: int, bits: int) -> CodedMatrix:
    """Draw codes, norms and a table as an encoder would leave them; any words are codes."""
    matrix = CodedMatrix(
        mx.random.randint(0, 1 << 16, (N, K * bits // UNIT), mx.uint32) * 65521,
        mx.random.uniform(0.2, 0.4, (N, K // BLOCK), mx.float16),
        mx.array(pad_table(centroids("clip4_100", bits))),
        bits,
    )
    mx.eval(*matrix.arrays)
    return matrix


def stock_product(weight: mx.array, bits: int) -> Callable[[mx.array], mx.array]:
    """Return stock MLX's product with a weight, affine in groups of 64."""
    quantized = mx.quantize(weight, group_size=64, bits=bits)
    mx.eval(quantized)
    return lambda x: mx.quantized_matmul(x, *quantized, group_size=64, bits=bits)


def coded_product(product: Product) -> Callable[[mx.array], mx.array]:
    """Return a product of ours that rotates its input at each call."""
    return lambda x: product(Activation(x))


def products(N: int, K: int) -> dict[str, Callable[[mx.array], mx.array]]:
    """Make the contenders of one shape; the first is what the others are compared with."""
    weight = mx.random.normal((N, K)) * 0.02
    mx.eval(weight)
    found: dict[str, Callable[[mx.array], mx.array]] = {"mx.matmul float32": lambda x: x @ weight.T}
    for bits in AFFINE:
        found[f"MLX affine {bits}"] = stock_product(weight, bits)
    for bits in BITS:
        matrix = random_matrix(N, K, bits)
        for path in (Dense, Affine):
            found[f"HLWQ {bits}, {path.__name__}"] = coded_product(path(matrix))
    return found


def bench_ops(
    shapes: dict[str, tuple[int, int]], rounds: int, row_counts: Sequence[int] = ROWS
) -> dict[str, Any]:
    """Time one product of every shape, for one row and for several."""
    rows = []
    for matrix, (K, N) in shapes.items():
        contenders = products(N, K)
        for M in row_counts:
            print(f"{matrix}, {M} rows ...", file=sys.stderr)
            x = mx.random.normal((M, K))
            mx.eval(x)
            turns = {
                name: lambda product=product, x=x: product(x)
                for name, product in contenders.items()
            }
            rows += measured(f"{matrix} {K} x {N}, {M} row{'s' * (M > 1)}", turns, rounds)
    print_cases(rows)
    return {"rows": rows}


def print_cases(rows: list[dict[str, Any]]) -> None:
    """Print a row for each contender and a column for each case: ms, and the ratio to the first."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    print(f"| CPU ms (ratio) | {' | '.join(cases)} |\n|{'---|' * (len(cases) + 1)}")
    for contender in dict.fromkeys(row["contender"] for row in rows):
        cells = [
            f"{row['ms']:.{0 if row['ms'] > 99 else 1}f} ({row['ratio']:.2f})"
            for row in rows
            if row["contender"] == contender
        ]
        print(f"| {contender} | {' | '.join(cells)} |")


def decoder_config(layers: int, **text: Any) -> dict[str, Any]:
    """Return E4B's config with few layers and a small vocabulary; the last layer is a full one."""
    types = ["sliding_attention"] * (layers - 1) + ["full_attention"]
    return launches.e4b_config(
        num_hidden_layers=layers,
        num_kv_shared_layers=0,
        layer_types=types,
        vocab_size=VOCABULARY,
        vocab_size_per_layer_input=VOCABULARY,
        **text,
    )


def decoders(config: dict[str, Any]) -> dict[str, Any]:
    """Make the contenders: the same decoder in float32, all its matrices in one format."""
    dtype = mx.float32
    models = {"mlx-lm float32": launches.stock_model(config, None, dtype)}
    for bits in AFFINE:
        models[f"mlx-lm affine {bits}"] = launches.stock_model(config, bits, dtype)
    for bits in WIDTHS:
        rule = rules.class_rule(dict.fromkeys(("mlp", "attention", "ple", "embedding"), bits))
        models[f"hlwq_mlx, {bits} bits"] = launches.coded_model(config, rule, dtype)
    return models


def bench_model(
    config: dict[str, Any], rounds: int, row_counts: Sequence[int] = ROWS
) -> dict[str, Any]:
    """Time a decoder on one token and on several, with an empty cache."""
    layers = config["text_config"]["num_hidden_layers"]
    models = decoders(config)
    rows = []
    print(f"E4B's decoder with {layers} of 42 layers and {VOCABULARY} of 262144 words, float32.\n")
    for M in row_counts:
        ids = mx.arange(M)[None]
        turns = {
            name: lambda model=model, ids=ids: model(ids, cache=model.make_cache())
            for name, model in models.items()
        }
        rows += measured(f"{M} token{'s at once' * (M > 1)}", turns, rounds)
    print_cases(rows)
    return {"layers": layers, "rows": rows}


def check_paths() -> None:
    """Fail before timing anything that computes something else."""
    matrix = random_matrix(64, 256, 5)
    x = mx.random.normal((3, 256))
    wanted = reference(x, matrix)
    for path in (Dense, Affine):
        error = mx.linalg.norm(path(matrix)(Activation(x)) - wanted) / mx.linalg.norm(wanted)
        if error.item() > 2 * IMAGE_ERROR["clip4_100"][4]:
            raise SystemExit(f"error: {path.__name__} is {error.item():.2e} off its twin")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("ops", "model", "rows", "m1"))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=ROWS, help="rows or tokens at once (default: 1 16)"
    )
    parser.add_argument("--layers", type=int, default=2, help="layers of `model`")
    parser.add_argument("--table-rows", type=int, default=1 << 15, help="rows of `rows`")
    parser.add_argument(
        "--host-ms",
        type=float,
        default=pass_tables.HOST_MS,
        help="of `m1`: the host's work between two tokens, where it is not done meanwhile",
    )
    arguments = parser.parse_args(argv)
    mx.set_default_device(mx.cpu)
    if arguments.what == "m1":
        found = m1.print_tables() | pass_tables.print_tables(arguments.host_ms)
    elif arguments.what == "rows":
        print(f"Medians of {arguments.rounds} turns, on {machine()}.\n")
        found = row_reads.bench_rows(arguments.table_rows, arguments.rounds)
    else:
        check_paths()
        load = os.getloadavg()[0]
        print(f"Medians of {arguments.rounds} turns, processor time, on {machine()}, ", end="")
        print(f"load {load:.1f} at the start.\n")
        if arguments.what == "ops":
            found = bench_ops(SHAPES, arguments.rounds, arguments.rows)
        else:
            found = bench_model(decoder_config(arguments.layers), arguments.rounds, arguments.rows)
        found |= {"machine": machine(), "load": [load, os.getloadavg()[0]]}
    print(json.dumps({"bench": arguments.what, **found}))


if __name__ == "__main__":
    main()
