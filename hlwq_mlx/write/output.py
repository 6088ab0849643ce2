"""A folder being written: tensors in pieces, shards, their index and JSON.

Knows nothing of what a tensor means; `convert` and `export` say what there is to write. Nothing
here is whole before the folder gets its name (atomic). Slices are made on threads, a few ahead of
what is written, and written in order.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..disk.runs import Run
from ..disk.tensorfile import TensorSpec, TensorWriter
from ..folder.names import INDEX_NAME
from ..quant import codec
from ..source.coded import CodedTensor
from ..source.detect import Reading
from ..source.repository import PlainTensor

SHARD_BYTES = 5 * 10**9
_SLICE_BYTES = 1 << 24
_MOST_THREADS = 4  # each holds a slice
_Result = TypeVar("_Result")

_HEADER_BYTES = 256  # of a tensor in a file's header, at most

Piece = tuple[str, int, NDArray[Any]]
"""A part of a tensor: its name, the offset in bytes, what to put there."""

Slice = Callable[[], Iterable[Piece]]
"""Makes the pieces of some rows, on whatever thread."""


@dataclass(frozen=True)
class Output:
    """Tensors that are made together, and lie in one file: headers, and slices when asked."""

    specs: Mapping[str, TensorSpec]
    slices: Callable[[], Iterator[Slice]]

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs.values())


def row_slices(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut rows into slices of so many bytes that they never fill memory."""
    step = max(1, _SLICE_BYTES // max(1, row_bytes))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def whole(name: str, spec: TensorSpec, array: NDArray[Any]) -> Output:
    """Plan a small tensor that is in memory."""
    return Output({name: spec}, lambda: iter([lambda: [(name, 0, array)]]))


def copy_of(name: str, tensor: PlainTensor) -> Output:
    """Plan a copy of a tensor, bit by bit."""

    def pieces() -> Iterator[Piece]:
        rows = tensor.matrix[0]
        row_bytes = tensor.spec.nbytes // max(1, rows)
        for start, stop in row_slices(rows, row_bytes):
            yield name, start * row_bytes, tensor.rows(start, stop)

    return one_by_one({name: tensor.spec}, pieces)


def one_by_one(specs: Mapping[str, TensorSpec], pieces: Callable[[], Iterator[Piece]]) -> Output:
    """Plan tensors whose pieces are made in the thread that writes, as MLX's have to be."""
    return Output(specs, lambda: (partial(list, [piece]) for piece in pieces()))


def float_slices(
    tensor: CodedTensor | PlainTensor, readings: Mapping[str, Reading], columns: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield a table some rows at a time, each slice with its first row's number."""
    rows = tensor.matrix[0] if isinstance(tensor, PlainTensor) else tensor.shape[0]
    for start, stop in row_slices(rows, 16 * columns):
        yield start, float_rows(tensor, readings, columns, start, stop)


def float_rows(
    tensor: CodedTensor | PlainTensor,
    readings: Mapping[str, Reading],
    columns: int,
    start: int,
    stop: int,
) -> NDArray[np.float32]:
    """Return some rows of a table, decoded if they are coded."""
    if isinstance(tensor, PlainTensor):
        return tensor.float_rows(start, stop)
    reading = readings[tensor.name]
    codes = tensor.rows(start, stop, reading.order)
    return codec.decode(codes, tensor.norms[start:stop], reading.centroids)[:, :columns]


def shards(outputs: list[Output]) -> list[list[Output]]:
    """Split outputs, in order, into shards that stay below the limit where an output allows it."""
    cut: list[list[Output]] = [[]]
    size = 0
    for output in outputs:
        file_bytes = output.nbytes + _HEADER_BYTES * len(output.specs)
        if cut[-1] and size + file_bytes > SHARD_BYTES:
            cut.append([])
            size = 0
        cut[-1].append(output)
        size += file_bytes
    return cut


def write_shards(
    folder: Path,
    outputs: list[Output],
    progress: "tqdm[Any]",
    metadata: Mapping[str, str] | None = None,
) -> dict[str, list[Run]]:
    """Write the shards and their index; return the checksums of the shards."""
    written: dict[str, list[Run]] = {}
    files = shards(outputs)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(files, start=1):
        file_name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        written[file_name] = write_file(folder / file_name, shard, progress, metadata)
        weight_map |= {name: file_name for output in shard for name in output.specs}
    index = {"metadata": {"total_size": total_bytes(outputs)}, "weight_map": weight_map}
    write_json(folder / INDEX_NAME, index)
    return written


def write_file(
    path: Path,
    outputs: list[Output],
    progress: "tqdm[Any]",
    metadata: Mapping[str, str] | None = None,
) -> list[Run]:
    """Write one file, as its pieces come, and return its checksums."""
    specs = {name: spec for output in outputs for name, spec in output.specs.items()}
    slices = (each for output in outputs for each in output.slices())
    with TensorWriter(path, specs, metadata) as writer:
        for pieces in ahead(slices):
            for name, at, piece in pieces:
                progress.update(writer.write(name, piece, at))
    return writer.digests()


def ahead(calls: Iterable[Callable[[], _Result]]) -> Iterator[_Result]:
    """Yield what calls return, in their order; a few of them run on threads meanwhile."""
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    under_way: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads, "slice") as pool:
        try:
            for call in calls:
                under_way.append(pool.submit(call))
                if len(under_way) > threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def total_bytes(outputs: list[Output]) -> int:
    """Sum the bytes of all tensors."""
    return sum(output.nbytes for output in outputs)


def bytes_bar(outputs: list[Output], what: str) -> "tqdm[Any]":
    """Show a bar of the bytes written."""
    total = total_bytes(outputs)
    return tqdm(total=total, unit="B", unit_scale=True, desc=what, mininterval=0.5)
