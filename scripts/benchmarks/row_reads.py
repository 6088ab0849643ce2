"""What reading per-layer-embedding rows from disk costs beside a table in memory.

E4B's rows, fewer of them: a table of random ones is written, then read for one token and for a
prompt of 512: cold (dropped from the page cache), warm (in it, by a reader that has read nothing)
and again (by the same reader). Contenders: the row store; a memory map; the same after telling the
system which rows will be wanted; the row store of 8-bit rows; resident tables. Ids are random,
which is the worst case: text repeats its common tokens.

Ids are needed on the host before the graph of a step is built, so that building it no longer
overlaps with the GPU's work on the step before: that time is measured too, for a token.
"""

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from hlwq_mlx.disk.tensorfile import TensorFile, TensorSpec, TensorWriter
from hlwq_mlx.folder import rows as ple
from hlwq_mlx.folder.rows import RowStore
from hlwq_mlx.source import rules
from scripts.benchmarks import launches

WIDTH = 42 * 256
ROW_BYTES = 2 * WIDTH
CASES = {"a token": 1, "a prompt of 512": 512}
PIECE = 1024  # rows written at a time
Reader = Callable[[NDArray[np.int64]], mx.array]


def write_table(path: Path, count: int) -> None:
    """Write a table of random rows in 16 bits."""
    rng = np.random.default_rng(0)
    with TensorWriter(path, {"rows": TensorSpec("BF16", (count, WIDTH))}) as writer:
        for start in range(0, count, PIECE):
            piece = rng.integers(0, 1 << 14, (min(PIECE, count - start), WIDTH), dtype=np.uint16)
            writer.write("rows", piece, start * ROW_BYTES)


def write_coded_table(path: Path, count: int) -> None:
    """Write a table of random rows in 8 bits."""
    rng = np.random.default_rng(0)
    specs = dict(zip(("codes", "scales"), ple.coded_specs((count, WIDTH)), strict=True))
    groups = specs["scales"].shape[1]
    with TensorWriter(path, specs, {ple.VERSION_KEY: ple.CODED}) as writer:
        for start in range(0, count, PIECE):
            size = min(PIECE, count - start)
            codes = rng.integers(-127, 128, (size, WIDTH), dtype=np.int8)
            writer.write("codes", codes, start * WIDTH)
            scales = rng.uniform(0.01, 0.02, (size, groups)).astype(np.float16)
            writer.write("scales", scales, start * groups * 2)


def mapped(path: Path) -> Reader:
    """A memory map of the file."""
    file = TensorFile(path)
    (name,) = file.specs
    table = file.view(name)
    return lambda ids: mx.array(table[ids]).view(mx.bfloat16)


def told(path: Path) -> Reader:
    """A memory map, with the system told which rows will be wanted."""
    file, read_mapped = TensorFile(path), mapped(path)
    data_start = file.start(next(iter(file.specs)))
    with path.open("rb") as opened:
        pages = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)

    def read(ids: NDArray[np.int64]) -> mx.array:
        for row in ids.tolist():
            start = data_start + row * ROW_BYTES
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            pages.madvise(mmap.MADV_WILLNEED, page, start + ROW_BYTES - page)
        return read_mapped(ids)

    return read


def resident(table: mx.array) -> Reader:
    """A table in memory, as a model that holds all weights would have."""
    return lambda ids: table[mx.array(ids)]


def resident_coded(rows: mx.array) -> Reader:
    """A table in memory in MLX's own 8 bits."""
    words, scales, biases = mx.quantize(rows, group_size=64, bits=8)
    mx.eval(words, scales, biases)

    def read(ids: NDArray[np.int64]) -> mx.array:
        at = mx.array(ids)
        return mx.dequantize(words[at], scales[at], biases[at], group_size=64, bits=8)

    return read


def forget(path: Path) -> None:
    """Drop a file from the page cache; where that cannot be asked, cold is warm."""
    if hasattr(os, "posix_fadvise"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def timed(read: Reader, ids: NDArray[np.int64]) -> float:
    begun = time.perf_counter()
    mx.eval(read(ids))
    return time.perf_counter() - begun


def contenders(folder: Path, count: int) -> dict[str, tuple[Path, Callable[[], Reader]]]:
    """Write the tables; name each contender's file and how to make one that has read nothing."""
    plain, coded = folder / ple.FILE_NAME, folder / f"coded-{ple.FILE_NAME}"
    write_table(plain, count)
    write_coded_table(coded, count)
    table = RowStore(plain)(np.arange(count))
    mx.eval(table)
    held, held_coded = resident(table), resident_coded(table.astype(mx.float32))
    return {
        "row store, 16 bits": (plain, lambda: RowStore(plain)),
        "memory map, 16 bits": (plain, lambda: mapped(plain)),
        "the same, told ahead": (plain, lambda: told(plain)),
        "row store, 8 bits": (coded, lambda: RowStore(coded)),
        "resident, 16 bits": (plain, lambda: held),
        "resident, 8 bits": (plain, lambda: held_coded),
    }


def time_states(
    path: Path, make: Callable[[], Reader], ids: NDArray[np.int64]
) -> Iterator[tuple[str, float]]:
    """Time a contender cold, warm and again.

    Its readers end with the call: pages that one has mapped would not be dropped for the next.
    """
    forget(path)
    yield "cold", timed(make(), ids)
    read = make()
    yield "warm", timed(read, ids)
    yield "again", timed(read, ids)


def time_rows(count: int, rounds: int) -> list[dict[str, Any]]:
    """Time every contender in turns: medians in milliseconds."""
    rng = np.random.default_rng(1)
    times: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        readers = contenders(Path(folder), count)
        for case, size in CASES.items():
            for _ in range(rounds):
                ids = rng.integers(0, count, size)
                for name, (path, make) in readers.items():
                    for state, seconds in time_states(path, make, ids):
                        times.setdefault((f"{case}, {state}", name), []).append(seconds)
    return [
        {"case": case, "rows": name, "ms": 1e3 * statistics.median(turns)}
        for (case, name), turns in times.items()
    ]


def time_graph(rounds: int) -> float:
    """Time building the graph of one token: E4B's 42 layers; widths do not change it."""
    rule = rules.variant_rule("PQ5")[1]
    model = launches.coded_model(launches.e4b_config(**launches.SMALL), rule, mx.float32)
    cache = model.make_cache()
    mx.eval(model(mx.array([[1, 2]]), cache=cache))  # it makes constants at its first call
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        logits = model(mx.array([[1]]), cache=cache)
        seconds.append(time.perf_counter() - begun)
        mx.eval(logits)
    return 1e3 * statistics.median(seconds)


def bench_rows(count: int, rounds: int) -> dict[str, Any]:
    """Time rows and graph, and print both."""
    found, graph = time_rows(count, rounds), time_graph(rounds)
    print_rows(found)
    print(f"\nBuilding the graph of a token: {graph:.1f} ms.")
    return {"table_rows": count, "rows": found, "graph_ms": graph}


def print_rows(found: list[dict[str, Any]]) -> None:
    """Print a row for each contender and a column for each case, in milliseconds."""
    cases = list(dict.fromkeys(row["case"] for row in found))
    print(f"| ms | {' | '.join(cases)} |\n|{'---|' * (len(cases) + 1)}")
    for name in dict.fromkeys(row["rows"] for row in found):
        cells = [f"{row['ms']:.3g}" for row in found if row["rows"] == name]
        print(f"| {name} | {' | '.join(cells)} |")
