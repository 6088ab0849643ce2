"""Repack an HLWQ source into a folder of stock MLX shape, a slice of rows at a time.

Codes go from the source's bit order to P32 and keep their widths, tables and norms; everything else
is copied as it is. The per-layer-embedding table becomes a row store (ple). What is written first
has another name, and the folder gets its own in one rename: an interrupted conversion leaves
nothing that looks finished. The only module that spells our folder's tensor names is `checkpoint`.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import DeviceError
from ..gemma4.config import Gemma4Config
from ..quant import codec
from ..quant.layers import pad_table
from ..quant.packing import UNIT, p32_plane_offsets, p32_planes
from . import checkpoint
from .atomic import building
from .coded import CodedTensor
from .detect import Reading, is_odd
from .ple import FILE_NAME as ROW_STORE
from .source import PlainTensor, Source
from .tensorfile import TensorSpec, TensorWriter

SHARD_BYTES = 5 * 10**9
_SLICE_BYTES = 1 << 26
_SPARE_BYTES = 1 << 26
_NAMED = 3
_HEADER_BYTES = 256  # of a tensor in a file's header, at most

Piece = tuple[int, NDArray[Any]]
Tensors = dict[str, CodedTensor | PlainTensor]


@dataclass(frozen=True)
class Output:
    """One tensor to write: its header, and its bytes as (offset, piece) when asked."""

    name: str
    spec: TensorSpec
    pieces: Callable[[], Iterator[Piece]]


@dataclass
class Summary:
    """What a conversion did, in tensors and bytes."""

    source_bytes: int
    written_bytes: int = 0
    coded: dict[int, tuple[int, int]] = field(default_factory=dict)  # bits -> (tensors, weights)
    plain: dict[str, tuple[int, int]] = field(default_factory=dict)  # dtype -> (tensors, bytes)
    row_store_bytes: int = 0
    left_out: int = 0
    evidence: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """Spell the summary for a person."""
        yield from self.evidence
        for bits, (tensors, weights) in sorted(self.coded.items()):
            yield f"coded at {bits} bits: {tensors} tensors, {weights:,} weights"
        for dtype, (tensors, size) in sorted(self.plain.items()):
            yield f"kept as {dtype}: {tensors} tensors, {size / 1e9:.3f} GB"
        if self.row_store_bytes:
            yield f"row store {ROW_STORE}: {self.row_store_bytes / 1e9:.3f} GB, stays on disk"
        if self.left_out:
            yield f"left out: {self.left_out} tensors that no layer reads (KV-shared layers)"
        before, after = self.source_bytes / 1e9, self.written_bytes / 1e9
        yield f"bytes: {before:.3f} GB before, {after:.3f} GB after"
        yield from (f"warning: {warning}" for warning in self.warnings)


def convert(source: Source, output: Path) -> Summary:
    """Convert a source into the folder `output`, which must not exist yet.

    Raises: SourceError when `output` exists; CheckpointError when the source does not fit its
    config; DeviceError when the disk is too small.
    """
    config = checkpoint.normalize_config(source.config)
    tensors = _canonical(source)
    unread = checkpoint.unread_names(config, tensors)
    for name in unread:
        del tensors[name]
    summary = Summary(
        source.weight_bytes,
        left_out=len(unread),
        evidence=tuple(source.evidence()),
        warnings=_doubts(source, tensors),
    )
    row_width = checkpoint.row_width(Gemma4Config.from_dict(config))
    outputs, rows = _plan(tensors, source.readings, row_width, summary)
    with building(output) as folder, _bytes_bar(outputs, rows) as progress:
        _check_disk(folder, [*outputs, *rows])
        _write_shards(folder, outputs, progress)
        if rows:
            _write_file(folder / ROW_STORE, rows, progress)
        summary.warnings += _copy_side_files(source, folder)
        manifest = checkpoint.make_manifest(source.variant, _coded(tensors, source.readings))
        _write_json(folder / "config.json", config | {"quantization_config": manifest})
        summary.written_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return summary


def _doubts(source: Source, tensors: Tensors) -> tuple[str, ...]:
    """Name the tensors whose codes, as they will be read, can hardly be right."""
    names = [
        name
        for name, tensor in tensors.items()
        if isinstance(tensor, CodedTensor) and is_odd(tensor, source.readings[tensor.name])
    ]
    if not names:
        return ()
    named = ", ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")
    return (
        f"{len(names)} tensors have not the energy of coded weights: {named}. If answers make no "
        "sense, they were read wrongly: try another --bit-order or --centroids",
    )


def _canonical(source: Source) -> Tensors:
    """Name every tensor of a source as our folder does."""
    found: Tensors = {**source.coded, **source.plain}
    return {checkpoint.canonical_name(name): found[name] for name in sorted(found)}


def _plan(
    tensors: Tensors, readings: Mapping[str, Reading], row_width: int, summary: Summary
) -> tuple[list[Output], list[Output]]:
    """List what goes to the shards and what to the row store."""
    outputs: list[Output] = []
    rows: list[Output] = []
    for name, tensor in tensors.items():
        if name == checkpoint.ROW_TABLE:
            rows = [_row_table(tensor, readings, row_width)]
            summary.row_store_bytes = rows[0].spec.nbytes
        elif isinstance(tensor, CodedTensor):
            outputs += _coded_outputs(name, tensor, readings[tensor.name])
            count, weights = summary.coded.get(tensor.bits, (0, 0))
            summary.coded[tensor.bits] = count + 1, weights + math.prod(tensor.shape)
        else:
            outputs.append(_copy(name, tensor))
            count, size = summary.plain.get(tensor.spec.dtype, (0, 0))
            summary.plain[tensor.spec.dtype] = count + 1, size + tensor.spec.nbytes
    return outputs, rows


def _coded(
    tensors: Tensors, readings: Mapping[str, Reading]
) -> dict[str, tuple[CodedTensor, Reading]]:
    return {
        name: (tensor, readings[tensor.name])
        for name, tensor in tensors.items()
        if isinstance(tensor, CodedTensor) and name != checkpoint.ROW_TABLE
    }


def _row_slices(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    step = max(1, _SLICE_BYTES // max(1, row_bytes))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _coded_outputs(name: str, tensor: CodedTensor, reading: Reading) -> list[Output]:
    N, K = tensor.shape[0], tensor.padded_columns

    def codes() -> Iterator[Piece]:
        # Packing holds about eight bytes a code at its peak.
        for start, stop in _row_slices(N, 8 * K):
            planes = p32_planes(tensor.rows(start, stop, reading.order), tensor.bits)
            offsets = p32_plane_offsets(N, start, K, tensor.bits)
            yield from zip(offsets, planes, strict=True)

    names = checkpoint.coded_names(name)
    table = pad_table(reading.centroids)
    return [
        Output(names.codes, TensorSpec("U32", (N, K * tensor.bits // UNIT)), codes),
        Output(
            names.norms, TensorSpec("F16", tensor.norms.shape), lambda: iter([(0, tensor.norms)])
        ),
        Output(names.centroids, TensorSpec("F32", table.shape), lambda: iter([(0, table)])),
    ]


def _copy(name: str, tensor: PlainTensor) -> Output:
    def pieces() -> Iterator[Piece]:
        if not tensor.spec.shape:
            yield 0, tensor.file.view(tensor.name)
            return
        row_bytes = tensor.spec.nbytes // max(1, tensor.spec.shape[0])
        for start, stop in _row_slices(tensor.spec.shape[0], row_bytes):
            yield start * row_bytes, tensor.rows(start, stop)

    return Output(name, tensor.spec, pieces)


def _row_table(
    tensor: CodedTensor | PlainTensor, readings: Mapping[str, Reading], columns: int
) -> Output:
    """Plan the row store: a copy of a 16-bit table, or a coded table decoded to float16.

    float16 rounds a decoded value by at most 2**-11 of itself, or 2**-25, below what its codes
    lost. A source that does not tell how far it is padded is cut to `columns`.
    """
    if isinstance(tensor, PlainTensor):
        return _copy(checkpoint.ROW_TABLE, tensor)
    reading = readings[tensor.name]
    N = tensor.shape[0]

    def pieces() -> Iterator[Piece]:
        for start, stop in _row_slices(N, 16 * columns):
            codes = tensor.rows(start, stop, reading.order)
            weight = codec.decode(codes, tensor.norms[start:stop], reading.centroids)
            yield start * columns * 2, weight[:, :columns].astype(np.float16)

    return Output(checkpoint.ROW_TABLE, TensorSpec("F16", (N, columns)), pieces)


def _shards(outputs: list[Output]) -> list[list[Output]]:
    """Split outputs, in order, into shards that stay below the limit where a tensor allows it."""
    shards: list[list[Output]] = [[]]
    size = 0
    for output in outputs:
        file_bytes = output.spec.nbytes + _HEADER_BYTES
        if shards[-1] and size + file_bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(output)
        size += file_bytes
    return shards


def _write_shards(folder: Path, outputs: list[Output], progress: "tqdm[Any]") -> None:
    shards = _shards(outputs)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file_name, shard, progress)
        weight_map |= {output.name: file_name for output in shard}
    total = sum(output.spec.nbytes for output in outputs)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / checkpoint.INDEX_NAME, index)


def _write_file(path: Path, outputs: list[Output], progress: "tqdm[Any]") -> None:
    with TensorWriter(path, {output.name: output.spec for output in outputs}) as writer:
        for output in outputs:
            for at, piece in output.pieces():
                progress.update(writer.write(output.name, piece, at))


def _copy_side_files(source: Source, folder: Path) -> tuple[str, ...]:
    for path in source.side_files:
        shutil.copyfile(path, folder / path.name)
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    if has_tokenizer:
        return ()
    return (f"{source.root} has no tokenizer files; add them to the folder before generating",)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _check_disk(folder: Path, outputs: list[Output]) -> None:
    needed = sum(output.spec.nbytes for output in outputs) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DeviceError(
            f"[convert] needed {needed / 1e9:.2f} GB in {folder.parent}, got {free / 1e9:.2f} GB "
            "free. Free disk space or choose another --output."
        )


def _bytes_bar(outputs: list[Output], rows: list[Output]) -> "tqdm[Any]":
    total = sum(output.spec.nbytes for output in [*outputs, *rows])
    return tqdm(total=total, unit="B", unit_scale=True, desc="convert", mininterval=0.5)
