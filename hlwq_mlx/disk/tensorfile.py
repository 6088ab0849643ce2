"""Safetensors files without the copies: mapped for reading, filled in any order for writing.

The safetensors library checks every header; this file adds only what it does not offer: a view of
a tensor's bytes where they lie (bfloat16 included), and a file larger than memory written piece by
piece. It knows nothing of what a tensor means.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, DeviceError
from . import failures
from .behind import Digests, Writeback
from .finite import find_not_finite
from .runs import Run

DTYPES: Mapping[str, type[np.generic]] = {
    "BF16": np.uint16,  # numpy has no bfloat16: its bits
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "I8": np.int8,
    "U8": np.uint8,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
}
_ALIGNMENT = 8


@dataclass(frozen=True)
class TensorSpec:
    """The dtype and shape that a header states for one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def item_bytes(self) -> int:
        return np.dtype(DTYPES[self.dtype]).itemsize

    @cached_property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.item_bytes


def _mapped(path: Path) -> NDArray[np.uint8]:
    """Map a file as a plain array: slices of numpy's class for maps cost ten times as much."""
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))


def checked_spec(where: str, name: str, dtype: str, shape: Iterable[int]) -> TensorSpec:
    """Return a tensor's dtype and shape, checked; `where` is the file.

    Raises: CheckpointError for an unknown dtype.
    """
    if dtype not in DTYPES:
        raise CheckpointError(
            f"[{where}] needed a dtype of {', '.join(DTYPES)}, got {dtype} for {name}. "
            "Store the tensor as BF16."
        )
    return TensorSpec(dtype, tuple(shape))


class TensorFile:
    """One safetensors file, mapped into memory.

    Raises: CheckpointError for a file that is cut off, malformed or of an unknown dtype;
    SourceError for one that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        failures.require_file(path)
        try:
            with failures.reading(path), safe_open(path, framework="numpy") as checked:
                names = list(checked.keys())
        except SafetensorError as problem:
            raise CheckpointError(
                f"[{path.name}] needed a whole safetensors file, got {path} ({problem}). "
                "Download or convert it again."
            ) from problem
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(header_bytes))
        # MLX writes null where it has none.
        self.metadata: dict[str, str] = header.get("__metadata__") or {}
        self._data_start = 8 + header_bytes
        self._offsets = {name: int(header[name]["data_offsets"][0]) for name in names}
        self.specs = {
            name: checked_spec(path.name, name, header[name]["dtype"], header[name]["shape"])
            for name in sorted(names)
        }
        self._map = _mapped(path)

    def start(self, name: str) -> int:
        """Return at which byte of the file a tensor begins."""
        return self._data_start + self._offsets[name]

    def view(self, name: str) -> NDArray[Any]:
        """Return a tensor as a read-only view of the file; bfloat16 as its uint16 bits."""
        spec = self.specs[name]
        start = self.start(name)
        raw = self._map[start : start + spec.nbytes]
        if start % spec.item_bytes:  # a view must be aligned; only small foreign files are not
            raw = raw.copy()
        return raw.view(DTYPES[spec.dtype]).reshape(spec.shape)


class CutFile(TensorFile):
    """A file of which one matrix is still there, or its first rows.

    `start` is the byte where the matrix begins. Rows that were cut off are not in its view.
    """

    def __init__(self, path: Path, name: str, spec: TensorSpec, start: int) -> None:
        self.path = path
        self.metadata = {}
        self.specs = {name: spec}
        self._data_start, self._offsets = start, {name: 0}
        self._map = _mapped(path)

    def view(self, name: str) -> NDArray[Any]:
        """Return the rows that are there."""
        spec, start = self.specs[name], self.start(name)
        row_bytes = spec.nbytes // spec.shape[0]
        rows = min(spec.shape[0], (self._map.size - start) // row_bytes)
        raw = self._map[start : start + rows * row_bytes]
        if start % spec.item_bytes:
            raw = raw.copy()
        return raw.view(DTYPES[spec.dtype]).reshape(rows, *spec.shape[1:])


class TensorWriter:
    """Write a safetensors file whose tensors arrive in pieces and in any order.

    The file has its full size from the start, but not yet the space: a full disk may show at any
    piece. Use as a context manager; the file is complete when the block ends. A piece is digested
    after its call has returned, and must stay as it is until then.

    Raises: DeviceError when the disk cannot hold the file.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, TensorSpec],
        metadata: Mapping[str, str] | None = None,
        done: Sequence[Run] = (),
    ) -> None:
        """Begin a new file, or go on with one whose runs `done` are on the disk."""
        self.path = path
        self._specs = specs
        header: dict[str, Any] = {"__metadata__": {"format": "mlx", **(metadata or {})}}
        self._offsets: dict[str, int] = {}
        position = 0
        # Wide types first, as the format's own writer does: every tensor is then aligned.
        for name in sorted(specs, key=lambda name: (-specs[name].item_bytes, name)):
            spec = specs[name]
            self._offsets[name] = position
            header[name] = {
                "dtype": spec.dtype,
                "shape": list(spec.shape),
                "data_offsets": [position, position + spec.nbytes],
            }
            position += spec.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._data_start = 8 + len(text)
        self._size = self._data_start + position
        try:
            self._file = path.open("r+b" if done else "xb", buffering=0)
        except OSError as problem:
            raise self._disk_error(problem) from problem
        self._digests, self._writeback = Digests(done), Writeback(path)
        try:
            if not done:
                self._put(0, len(text).to_bytes(8, "little") + text)
                self._file.truncate(self._size)
        except OSError as problem:
            self._file.close()
            raise self._disk_error(problem) from problem

    def write(self, name: str, piece: NDArray[Any], at: int = 0) -> int:
        """Put a piece `at` bytes into a tensor and return how many bytes it had.

        Raises: CheckpointError for a piece that reaches past its tensor, or has floating numbers
        that are NaN or infinite; DeviceError for the disk.
        """
        raw = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
        room = self._specs[name].nbytes
        if at < 0 or at + raw.size > room:
            raise CheckpointError(
                f"[{self.path.name}] needed a piece inside the {room} bytes of {name}, got "
                f"{raw.size} bytes at {at}. This is a defect of the writer's caller."
            )
        self._require_finite(name, raw, at)
        try:
            self._put(self._data_start + self._offsets[name] + at, raw.data)
            self._writeback.add(raw.size)
        except OSError as problem:
            raise self._disk_error(problem) from problem
        return raw.size

    def digests(self) -> list[Run]:
        """Return the digests of all that was written."""
        return self._digests.listed()

    def _require_finite(self, name: str, raw: NDArray[np.uint8], at: int) -> None:
        spec = self._specs[name]
        found = find_not_finite(raw, spec.dtype)
        if found is not None:
            raise CheckpointError(
                f"[{name}] needed finite numbers, got NaN or infinity as number "
                f"{at // spec.item_bytes + found} of {math.prod(spec.shape)}. Download the model "
                "again, or ask its publisher for a whole one."
            )

    def _put(self, at: int, raw: bytes | memoryview) -> None:
        self._digests.add(at, raw)
        self._file.seek(at)
        while len(raw):  # one call to the system may take less
            raw = raw[self._file.write(raw) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._digests.close()
        try:
            with self._file:
                self._writeback.close()
        except OSError as problem:
            raise self._disk_error(problem) from problem

    def _disk_error(self, problem: OSError) -> DeviceError:
        return DeviceError(
            f"[{self.path.name}] needed {self._size:,} bytes in {self.path.parent}, got "
            f"'{problem.strerror}'. {failures.advice(problem)}"
        )
