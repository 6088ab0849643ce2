"""The row store: per-layer-embedding rows read from disk, so that the table never fills memory.

One safetensors file beside the model's shards, outside the names that loaders sweep up. Version 1,
which its metadata need not name, is one floating matrix; version 2 has 8-bit rows, a scale for
every 32 of them, half as large. Fewer bits than 8 are known to give garbage. The kernel's page
cache keeps the rows of common tokens warm as long as nothing else wants the memory; the last rows
read one by one, as decoding does, are kept whatever happens. The model knows none of this; it is
handed `RowStore` as a callable.

V vocabulary, W width of a row (layers times per-layer width).
"""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from weakref import finalize

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..disk import failures
from ..disk.tensorfile import DTYPES, TensorFile, TensorSpec
from ..errors import CheckpointError, RequestError

FILE_NAME = "ple.safetensors"
VERSION_KEY = "hlwq_rows"
CODED = "2"  # the version whose rows have 8 bits
GROUP = 32
KEPT_ROWS = 256  # 5.5 MB of E4B's in 16 bits
_PLAIN = "1"
_DTYPES = ("BF16", "F16", "F32")
_LARGEST = 127


def coded_specs(shape: tuple[int, int]) -> tuple[TensorSpec, TensorSpec]:
    """Return the dtypes and shapes of the codes and the scales of a table of 8-bit rows."""
    return TensorSpec("I8", shape), TensorSpec("F16", (shape[0], -(-shape[1] // GROUP)))


def code_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Code rows at 8 bits: row = code * scale, one scale for each 32 columns.

    A scale is the largest magnitude over 127, rounded up to float16.

    Shapes: rows [N, W] -> codes [N, W], scales [N, W/32].
    Raises: CheckpointError for a row that float16 scales cannot hold.
    """
    N, W = rows.shape
    groups = -(-W // GROUP)
    padded = np.zeros((N, groups * GROUP), dtype=np.float32)
    padded[:, :W] = rows
    blocks = padded.reshape(N, groups, GROUP)
    wanted = np.abs(blocks).max(axis=-1) / _LARGEST
    if not (wanted < np.finfo(np.float16).max).all():
        raise CheckpointError(
            f"[{FILE_NAME}] needed finite rows up to 8 million, got {np.abs(rows).max():.6g}. "
            "Keep the rows at 16 bits with --leftovers keep."
        )
    scales = wanted.astype(np.float16)
    scales = np.where(scales < wanted, np.nextafter(scales, np.float16(np.inf)), scales)
    steps = np.where(scales > 0, scales, 1).astype(np.float32)[..., None]
    codes = np.rint(blocks / steps).astype(np.int8).reshape(N, -1)
    return np.ascontiguousarray(codes[:, :W]), scales


def decode_rows(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """Decode 8-bit rows to float32.

    Shapes: codes [..., W], scales [..., W/32] -> [..., W].
    """
    wide = scales.astype(np.float32).repeat(GROUP, axis=-1)
    decoded: NDArray[np.float32] = codes * wide[..., : codes.shape[-1]]
    return decoded


class RowStore:
    """Rows of a table on disk, by token id.

    Raises: CheckpointError when the file is missing, damaged or of a version that is not known.
    """

    def __init__(self, path: Path) -> None:
        if not failures.is_there(path):
            raise CheckpointError(
                f"[{path.name}] needed the row store {path}, got no such file. It belongs beside "
                "the model's shards: copy the whole folder, or convert again."
            )
        file = TensorFile(path)
        version = file.metadata.get(VERSION_KEY, _PLAIN)
        if version not in (_PLAIN, CODED):
            raise CheckpointError(
                f"[{path.name}] needed rows of version {_PLAIN} or {CODED}, got {version}. "
                "Update hlwq_mlx, or convert the model again."
            )
        name = _find_coded(path, file.specs) if version == CODED else _find_plain(path, file.specs)
        spec = file.specs[name]
        self.shape: tuple[int, int] = (spec.shape[0], spec.shape[1])
        others = [other for other in file.specs if other != name]
        scales = _Rows(file, others[0]) if others else None
        self._read = partial(_read, _Rows(file, name), scales)
        self._read_one = lru_cache(KEPT_ROWS)(self._read)

    def __call__(self, ids: NDArray[np.integer]) -> mx.array:
        """Read one row for each id.

        Shapes: ids [...] on the host -> [..., W] in the table's dtype; of 8-bit rows float32.
        Raises: RequestError for an id outside the table.
        """
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.shape[0]:
            raise RequestError(
                f"[{FILE_NAME}] needed ids from 0 to {self.shape[0] - 1}, got {ids.min()} to "
                f"{ids.max()}. The tokenizer does not belong to this model."
            )
        flat = tuple(ids.ravel().tolist())
        rows = (self._read_one if len(flat) == 1 else self._read)(flat)
        return rows.reshape(*ids.shape, self.shape[1])


class _Rows:
    """Rows of one tensor, each read by itself.

    Through a memory map a row that is not in the page cache costs the pages around it too, tens of
    times as much (scripts/benchmarks/bench.py rows), and a file that was cut off the whole process.
    """

    def __init__(self, file: TensorFile, name: str) -> None:
        spec = file.specs[name]
        self.dtype = spec.dtype
        self._path = file.path
        self._start = file.start(name)
        self._row = np.empty(spec.shape[1:], dtype=DTYPES[spec.dtype])
        with failures.reading(file.path):
            self._handle = os.open(file.path, os.O_RDONLY)
        finalize(self, os.close, self._handle)

    def __call__(self, ids: Sequence[int]) -> NDArray[Any]:
        rows = np.empty((len(ids), *self._row.shape), dtype=self._row.dtype)
        size = self._row.nbytes
        for at, row in enumerate(ids):
            with failures.reading(self._path):
                contents = os.pread(self._handle, size, self._start + row * size)
            if len(contents) != size:
                raise CheckpointError(
                    f"[{self._path.name}] needed {size} bytes of row {row}, got {len(contents)}. "
                    "The file was cut off since it was opened; convert the model again."
                )
            rows[at] = np.frombuffer(contents, dtype=rows.dtype)
        return rows


def _read(table: _Rows, scales: _Rows | None, ids: Sequence[int]) -> mx.array:
    if scales is not None:
        return mx.array(decode_rows(table(ids), scales(ids)))
    rows = mx.array(table(ids))
    # Not on the GPU's stream, where it would wait for what is under way.
    return rows.view(mx.bfloat16, stream=mx.cpu) if table.dtype == "BF16" else rows


def _find_plain(path: Path, specs: Mapping[str, TensorSpec]) -> str:
    """Return the name of the one floating matrix."""
    name, spec = next(iter(specs.items()), ("nothing", TensorSpec("", ())))
    if len(specs) != 1 or len(spec.shape) != 2 or spec.dtype not in _DTYPES:
        raise CheckpointError(
            f"[{path.name}] needed one matrix of {', '.join(_DTYPES)}, got {len(specs)} "
            f"tensors and {name} of {spec.dtype} {spec.shape}. Convert the model again."
        )
    return name


def _find_coded(path: Path, specs: Mapping[str, TensorSpec]) -> str:
    """Return the name of the codes, beside which there are scales that fit."""
    for name, spec in specs.items():
        others = [other for key, other in specs.items() if key != name]
        if len(spec.shape) == 2 and [spec, *others] == list(coded_specs(spec.shape)):
            return name
    raise CheckpointError(
        f"[{path.name}] needed codes of I8 [V, W] and scales of F16 [V, W/{GROUP}], got "
        f"{', '.join(f'{spec.dtype} {spec.shape}' for spec in specs.values()) or 'nothing'}. "
        "Convert the model again."
    )
