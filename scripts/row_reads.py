"""What reading per-layer-embedding rows from disk costs beside a table in memory.

E4B's rows, fewer of them: a table of random ones is written, then read for one token and for a
prompt of 512, warm (in the page cache) and cold (dropped from it). Contenders: the row store; the
same after telling the system which rows will be wanted; one `pread` a row; a resident table. Ids
are random, which is the worst case: text repeats its common tokens.
"""

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from hlwq_mlx.store.ple import FILE_NAME, RowStore
from hlwq_mlx.store.tensorfile import TensorSpec, TensorWriter

WIDTH = 42 * 256
ROW_BYTES = 2 * WIDTH
CASES = {"a token": 1, "a prompt of 512": 512}
Reader = Callable[[NDArray[np.int64]], mx.array]


def write_table(path: Path, count: int) -> None:
    """Write a table of random rows, some megabytes at a time."""
    rng = np.random.default_rng(0)
    with TensorWriter(path, {"rows": TensorSpec("BF16", (count, WIDTH))}) as writer:
        for start in range(0, count, 1024):
            piece = rng.integers(0, 1 << 15, (min(1024, count - start), WIDTH), dtype=np.uint16)
            writer.write("rows", piece, start * ROW_BYTES)


def told(path: Path, store: RowStore) -> Reader:
    """The row store, with the system told which rows will be wanted."""
    size = path.stat().st_size
    handle = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(handle, size, prot=mmap.PROT_READ)
    os.close(handle)
    data_start = size - store.shape[0] * ROW_BYTES

    def read(ids: NDArray[np.int64]) -> mx.array:
        for row in ids.tolist():
            start = data_start + row * ROW_BYTES
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, page, start + ROW_BYTES - page)
        return store(ids)

    return read


def preading(path: Path, count: int) -> Reader:
    """One pread for each row, into one array."""
    handle = os.open(path, os.O_RDONLY)
    data_start = path.stat().st_size - count * ROW_BYTES

    def read(ids: NDArray[np.int64]) -> mx.array:
        rows = np.empty((ids.size, WIDTH), dtype=np.uint16)
        for at, row in enumerate(ids.tolist()):
            os.preadv(handle, [memoryview(rows[at]).cast("B")], data_start + row * ROW_BYTES)
        return mx.array(rows).view(mx.bfloat16)

    return read


def resident(store: RowStore) -> Reader:
    """A table in memory, as a model that holds all weights would have."""
    table = store(np.arange(store.shape[0]))
    mx.eval(table)
    return lambda ids: table[mx.array(ids)]


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


def bench_rows(count: int, rounds: int) -> dict[str, Any]:
    """Time every contender in turns, and print medians in milliseconds."""
    rng = np.random.default_rng(1)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE_NAME
        write_table(path, count)
        store = RowStore(path)
        readers = {
            "row store": store,
            "row store, told ahead": told(path, store),
            "pread": preading(path, count),
            "resident table": resident(store),
        }
        for case, size in CASES.items():
            times: dict[tuple[str, str], list[float]] = {}
            for _ in range(rounds):
                ids = rng.integers(0, count, size)
                for name, read in readers.items():
                    forget(path)
                    times.setdefault((name, "cold"), []).append(timed(read, ids))
                    times.setdefault((name, "warm"), []).append(timed(read, ids))
            found += [
                {"case": f"{case}, {state}", "rows": name, "ms": 1e3 * statistics.median(seconds)}
                for (name, state), seconds in times.items()
            ]
    print_rows(found, list(readers))
    return {"table_rows": count, "rows": found}


def print_rows(found: list[dict[str, Any]], names: list[str]) -> None:
    """Print a row for each contender and a column for each case, in milliseconds."""
    cases = list(dict.fromkeys(row["case"] for row in found))
    print(f"| ms | {' | '.join(cases)} |\n|{'---|' * (len(cases) + 1)}")
    for name in names:
        cells = [f"{row['ms']:.3g}" for row in found if row["rows"] == name]
        print(f"| {name} | {' | '.join(cells)} |")
