"""Repack an HLWQ source into a folder of stock MLX shape, a slice of rows at a time.

Codes go from the source's bit order to P32 and keep their widths, tables and norms; what else is
coded is for `leftovers` to say, and the rest is copied as it is. The per-layer-embedding table
becomes a row store (ple). What is written first has another name, and the folder gets its own in
one rename: an interrupted conversion leaves nothing that looks finished. The only module that
spells our folder's tensor names is `checkpoint`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.atomic import building, require_room
from ..disk.sizes import format_bytes
from ..disk.tensorfile import TensorSpec
from ..folder import checksums, identity
from ..folder import rows as ple
from ..folder.manifest import TEMPLATES_KEY, make_manifest
from ..folder.names import EXPERTS, ROW_TABLE, CodedNames, coded_names, row_width
from ..folder.rows import FILE_NAME as ROW_STORE
from ..folder.side_files import copy_side_files
from ..gemma4.towers.tower import TOWER_PREFIXES
from ..quant.coding import p32_planes
from ..quant.layers import pad_table
from ..quant.packing import BLOCK, UNIT, Words, p32_plane_offsets
from ..source.coded import CodedTensor
from ..source.detect import Reading, is_odd
from ..source.layout import DRAFTER
from ..source.repository import PlainTensor, Source
from . import leftovers
from .check import Tensors, check_drafter, fit, read_args
from .leftovers import Leftover
from .output import (
    Output,
    Piece,
    Slice,
    bytes_bar,
    copy_of,
    float_rows,
    row_slices,
    total_bytes,
    whole,
    write_file,
    write_json,
    write_shards,
)
from .quantize import Coding, as_bfloat16, require_uncoded

_NAMED = 3
LEFTOVERS_KEY = "leftovers"


@dataclass
class Summary:
    """What a conversion did, in tensors and bytes."""

    source_bytes: int
    written_bytes: int = 0
    coded: dict[int, tuple[int, int]] = field(default_factory=dict)  # bits -> (tensors, weights)
    plain: dict[str, tuple[int, int]] = field(default_factory=dict)  # dtype -> (tensors, bytes)
    plan: leftovers.Plan = field(default_factory=lambda: leftovers.Plan(leftovers.KEEP, 0.0))
    row_store_bytes: int = 0
    left_out: int = 0
    token_bytes: tuple[int, int] = (0, 0)  # of weights that one token reads, before and after
    evidence: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    drafter: "Summary | None" = None

    def lines(self) -> Iterator[str]:
        """Return the summary as lines for a person."""
        yield from self._coded_kinds()
        yield from self.plan.lines()
        yield from self._plain_kinds()
        if self.row_store_bytes:
            yield f"row store {ROW_STORE}: {format_bytes(self.row_store_bytes)}, stays on disk"
        yield from self._left_out()
        before, after = map(format_bytes, self.token_bytes)
        yield f"weights that a token reads: {before} before, {after} after"
        before, after = format_bytes(self.source_bytes), format_bytes(self.written_bytes)
        yield f"on disk: {before} before, {after} after"
        yield from (f"warning: {warning}" for warning in self.warnings)
        if self.drafter is not None:
            yield from (f"drafter: {line}" for line in self.drafter.lines())

    def notes(self) -> Iterator[str]:
        """Return what is known before anything is written, of leftovers nothing."""
        yield from self._coded_kinds()
        yield from self._plain_kinds()
        yield from self._left_out()
        yield from (f"warning: {warning}" for warning in self.warnings)

    def _coded_kinds(self) -> Iterator[str]:
        yield from self.evidence
        for bits, (tensors, weights) in sorted(self.coded.items()):
            yield f"coded at {bits} bits: {tensors} tensors, {weights:,} weights"

    def _plain_kinds(self) -> Iterator[str]:
        for dtype, (tensors, size) in sorted(self.plain.items()):
            yield f"kept as {dtype}: {tensors} tensors, {format_bytes(size)}"

    def _left_out(self) -> Iterator[str]:
        if self.left_out:
            yield f"left out: {self.left_out} tensors that no layer reads"


@dataclass
class Conversion:
    """What will be converted and how, before anything is written."""

    config: dict[str, Any]
    tensors: Tensors  # that some layer reads, but for the table of rows
    coded: leftovers.Coded
    plain: Mapping[str, PlainTensor]
    plan: leftovers.Plan
    table: CodedTensor | PlainTensor | None
    row_columns: int
    identity: str
    summary: Summary
    variant: str | None

    @property
    def metadata(self) -> dict[str, str]:
        """What every file of weights states."""
        return {identity.METADATA_KEY: self.identity}

    def manifest(self, templates: Iterable[str]) -> dict[str, Any]:
        """Return the manifest, but for what the leftovers lost."""
        done = {name: (tensor, tensor.reading) for name, tensor in self.plan.chosen.items()}
        manifest = make_manifest(self.variant, {**self.coded, **done}, self.plan.strong_means)
        return manifest | {
            LEFTOVERS_KEY: {},
            identity.MANIFEST_KEY: self.identity,
            TEMPLATES_KEY: list(templates),
        }


def prepare(source: Source, choice: str, coding: Coding | None = None) -> Conversion:
    """Check a source, find out how it is read, and choose what to code.

    `choice` is one of leftovers.CHOICES; `coding` says what of a 16-bit model is coded besides.
    Raises: CheckpointError when the source does not fit its config; RequestError for a `coding`
    that codes nothing, or of a coded source.
    """
    config, tensors, unread = fit(source)
    for name in unread:
        del tensors[name]
    table = tensors.pop(ROW_TABLE, None)
    summary = Summary(
        source.weight_bytes,
        left_out=len(unread),
        evidence=tuple(source.evidence()),
        warnings=_doubts(source, tensors),
    )
    coded = _coded(tensors, source.readings)
    plain = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, PlainTensor)}
    plan = leftovers.make_plan(choice, coded, plain, coding)
    if coding is not None:
        require_uncoded(source.folder, len(coded), len(plan.chosen))
        left = plain.keys() - plan.chosen.keys()
        plain |= {name: as_bfloat16(plain[name]) for name in left}
        table = as_bfloat16(table) if isinstance(table, PlainTensor) else None
    widths = {name: leftover.bits for name, leftover in plan.chosen.items()}
    stated = {"config": config, "leftovers": widths, "row_bits": plan.row_bits}
    if plan.strong_means:
        stated |= {"means": sorted(plan.strong_means)}
    if coding is not None:
        stated |= {"encoder": astuple(coding.encoder)}
    found = tensors | ({} if table is None else {ROW_TABLE: table})
    own = identity.identify(stated, found, source.readings)
    columns = row_width(read_args(config))
    _count(summary, coded, plain, plan)
    variant = source.variant if coding is None else coding.name
    return Conversion(config, tensors, coded, plain, plan, table, columns, own, summary, variant)


def convert(
    source: Source, output: Path, choice: str = leftovers.KEEP, coding: Coding | None = None
) -> Summary:
    """Convert a source into the folder `output`, which must not exist yet.

    `choice` and `coding` are as in `prepare`. A drafter beside the source gets a folder in
    `output`, and is not what `coding` is about.
    Raises: SourceError when `output` exists; CheckpointError when the source does not fit its
    config; DeviceError when the disk is too small; RequestError as `prepare`; what
    copy_side_files raises for those files.
    """
    made, drafter = prepare(source, choice, coding), check_drafter(source)
    plan, summary = made.plan, made.summary
    outputs = shard_outputs(made.coded, made.plain, plan.chosen)
    rows: list[Output] = []
    if made.table is not None:
        rows = [row_table(made.table, source.readings, made.row_columns, plan.row_bits)]
    everything = [*outputs, *rows]
    with building(output) as folder, bytes_bar(everything, "convert") as progress:
        copied = copy_side_files(source, folder)  # what is damaged there is told before the work
        require_room(folder, total_bytes(everything))
        written = write_shards(folder, outputs, progress, made.metadata)
        if rows:
            path = folder / ROW_STORE
            metadata = made.metadata | row_version(plan.row_bits)
            written[path.name] = write_file(path, rows, progress, metadata)
        summary.warnings += copied.warnings
        manifest = made.manifest(copied.templates)
        write_config(folder, made.config, manifest, plan)
        checksums.write(folder, written)
        summary.written_bytes = sum(path.stat().st_size for path in folder.iterdir())
        if drafter is not None:
            summary.drafter = convert(drafter, folder / DRAFTER, choice)
    summary.row_store_bytes = total_bytes(rows)
    summary.token_bytes = token_bytes(made.tensors, outputs, made.config["text_config"])
    return summary


def row_version(bits: int) -> dict[str, str]:
    """Return what the row store's metadata state of its version."""
    return {ple.VERSION_KEY: ple.CODED} if bits == 8 else {}


def write_config(
    folder: Path, config: dict[str, Any], manifest: dict[str, Any], plan: leftovers.Plan
) -> None:
    """Write config.json with the manifest, once it is known what the leftovers lost."""
    manifest = manifest | {LEFTOVERS_KEY: plan.manifest()}
    write_json(folder / "config.json", config | {"quantization_config": manifest})


def _count(
    summary: Summary,
    coded: leftovers.Coded,
    plain: Mapping[str, PlainTensor],
    plan: leftovers.Plan,
) -> None:
    """Add to the summary what became of which tensors."""
    for tensor, _ in coded.values():
        count, weights = summary.coded.get(tensor.bits, (0, 0))
        summary.coded[tensor.bits] = count + 1, weights + math.prod(tensor.shape)
    for name in plain.keys() - plan.chosen.keys():
        spec = plain[name].spec
        count, size = summary.plain.get(spec.dtype, (0, 0))
        summary.plain[spec.dtype] = count + 1, size + spec.nbytes
    summary.plan = plan


def token_bytes(
    tensors: Tensors, outputs: list[Output], text: Mapping[str, Any]
) -> tuple[int, int]:
    """Sum what one token reads but for towers, before and after; the table is the head too."""
    before = {
        name: tensor.spec.nbytes
        if isinstance(tensor, PlainTensor)
        else tensor.raw.nbytes + tensor.norms.nbytes
        for name, tensor in tensors.items()
    }
    after = {name: spec.nbytes for output in outputs for name, spec in output.specs.items()}
    return _read_bytes(before, text), _read_bytes(after, text)


def _read_bytes(sizes: Mapping[str, int], text: Mapping[str, Any]) -> int:
    """Sum the sizes of tensors but for towers, of experts those that a token is sent to."""
    mine = {name: size for name, size in sizes.items() if not name.startswith(TOWER_PREFIXES)}
    experts = sum(size for name, size in mine.items() if EXPERTS in name)
    used = experts * text["top_k_experts"] // text["num_experts"] if experts else 0
    return sum(mine.values()) - experts + used


def _doubts(source: Source, tensors: Tensors) -> tuple[str, ...]:
    """Return the tensors whose codes, as they will be read, can hardly be right."""
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


def _coded(
    tensors: Tensors, readings: Mapping[str, Reading]
) -> dict[str, tuple[CodedTensor, Reading]]:
    return {
        name: (tensor, readings[tensor.name])
        for name, tensor in tensors.items()
        if isinstance(tensor, CodedTensor)
    }


def shard_outputs(
    coded: leftovers.Coded, plain: Mapping[str, PlainTensor], chosen: Mapping[str, Leftover]
) -> list[Output]:
    """List what goes to the shards."""
    outputs: list[Output] = []
    for name in sorted(coded.keys() | plain.keys()):
        if name in coded:
            outputs += repacked(name, *coded[name])
        elif name in chosen:
            outputs.append(newly_coded(name, chosen[name]))
        else:
            outputs.append(copy_of(name, plain[name]))
    return outputs


def repacked(name: str, tensor: CodedTensor, reading: Reading) -> list[Output]:
    """Plan a tensor whose codes are there."""
    N, K = tensor.shape[0], tensor.padded_columns
    names, codes, norms, table = _coded_specs(name, N, K, tensor.bits)

    def pieces(start: int, stop: int) -> list[Piece]:
        planes = tensor.planes(start, stop, reading.order)
        return _placed(names.codes, planes, p32_plane_offsets(N, start, K, tensor.bits))

    return [
        # Codes that are not packed take several bytes each on their way.
        Output({names.codes: codes}, lambda: _sliced(N, 8 * K, pieces)),
        whole(names.norms, norms, tensor.norms),
        whole(names.centroids, table, pad_table(reading.centroids)),
    ]


def newly_coded(name: str, leftover: Leftover) -> Output:
    """Plan a tensor that is coded as it is written."""
    N, blocks = leftover.tensor.matrix[0], leftover.blocks
    names, codes, norms, table = _coded_specs(name, N, blocks * BLOCK, leftover.bits)

    specs = {names.codes: codes, names.norms: norms, names.centroids: table}
    if leftover.has_means:
        specs |= {names.means: norms}

    def pieces(start: int, stop: int) -> list[Piece]:
        rows = leftover.coded_rows(start, stop)
        offsets = p32_plane_offsets(N, start, rows.codes.shape[1], leftover.bits)
        packed = _placed(names.codes, p32_planes(rows.codes, leftover.bits), offsets)
        at = start * blocks * rows.norms.itemsize
        by_block = {names.norms: rows.norms, names.means: rows.means}
        return [
            (each, at, values) for each, values in by_block.items() if values is not None
        ] + packed

    def slices() -> Iterator[Slice]:
        yield lambda: [(names.centroids, 0, pad_table(leftover.reading.centroids))]
        # Floats, codes and what packs them are as many bytes a weight.
        yield from _sliced(N, 16 * blocks * BLOCK, pieces)

    return Output(specs, slices)


def _sliced(
    rows: int, row_bytes: int, pieces: Callable[[int, int], list[Piece]]
) -> Iterator[Slice]:
    """Yield a call of `pieces` for each slice of rows."""
    return (partial(pieces, start, stop) for start, stop in row_slices(rows, row_bytes))


def _coded_specs(
    name: str, N: int, K: int, bits: int
) -> tuple[CodedNames, TensorSpec, TensorSpec, TensorSpec]:
    """Return the dtypes and shapes of a tensor's codes, norms and centroids in our folder."""
    entries = pad_table(np.zeros(1 << bits, dtype=np.float32)).shape
    return (
        coded_names(name),
        TensorSpec("U32", (N, K * bits // UNIT)),
        TensorSpec("F16", (N, K // BLOCK)),
        TensorSpec("F32", entries),
    )


def _placed(name: str, planes: Iterable[Words], offsets: Iterable[int]) -> list[Piece]:
    """Return the pieces of a tensor of codes: the planes of some rows, which lie apart."""
    return [(name, at, plane) for at, plane in zip(offsets, planes, strict=True)]


def row_table(
    tensor: CodedTensor | PlainTensor, readings: Mapping[str, Reading], columns: int, bits: int
) -> Output:
    """Plan the row store: rows of 8 bits, a copy of a 16-bit table, or a coded table in float16.

    float16 rounds a decoded value by at most 2**-11 of itself, or 2**-25, below what its codes
    lost. A source that does not tell how far it is padded is cut to `columns`.
    """
    specs, pieces = row_pieces(tensor, readings, columns, bits)
    return Output(specs, lambda: _sliced(tensor.shape[0], 16 * columns, pieces))


def row_pieces(
    tensor: CodedTensor | PlainTensor, readings: Mapping[str, Reading], columns: int, bits: int
) -> tuple[dict[str, TensorSpec], Callable[[int, int], list[Piece]]]:
    """Return what the row store holds, as `row_table`, and what makes it of some rows."""
    name = ROW_TABLE
    N = tensor.shape[0]
    if bits == 8:
        scales_name = name.removesuffix("weight") + "scales"
        codes, scales = ple.coded_specs((N, columns))

        def coded(start: int, stop: int) -> list[Piece]:
            row_codes, row_scales = ple.code_rows(
                float_rows(tensor, readings, columns, start, stop)
            )
            at = start * scales.shape[1] * scales.item_bytes
            return [(name, start * columns, row_codes), (scales_name, at, row_scales)]

        return {name: codes, scales_name: scales}, coded
    if isinstance(tensor, PlainTensor):
        row_bytes = tensor.spec.nbytes // N
        return {name: tensor.spec}, lambda start, stop: [
            (name, start * row_bytes, tensor.rows(start, stop))
        ]

    def decoded(start: int, stop: int) -> list[Piece]:
        rows = float_rows(tensor, readings, columns, start, stop)
        return [(name, start * columns * 2, rows.astype(np.float16))]

    return {name: TensorSpec("F16", (N, columns))}, decoded
