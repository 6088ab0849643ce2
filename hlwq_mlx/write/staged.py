"""Convert so that each file of a source can be deleted once nothing needs it any more.

Every file that is written depends on as few files of the source as can be. A job beside the output
states all that is still to be done, so that a run that was stopped goes on with the next file, and
needs neither the hub nor what was deleted. A file of the source goes when everything that is made
of it is on the disk and the job says so. The tensors are those that `convert` writes; shards are
cut elsewhere.

The table of rows is half of a model. Where it lies uncoded in a file that nothing else needs any
more, it moves from its end: some rows are written, and then cut off the file.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..disk import atomic
from ..disk.jsonfile import read_json
from ..disk.tensorfile import CutFile, TensorFile, TensorSpec, TensorWriter
from ..errors import SourceError
from ..folder import checksums
from ..folder.names import INDEX_NAME, ROW_TABLE
from ..folder.rows import FILE_NAME as ROW_STORE
from ..folder.side_files import copy_side_files
from ..quant.codec import Fit
from ..quant.coder import Energies
from ..source.coded import CodedTensor, parse_key
from ..source.detect import Reading
from ..source.repository import PlainTensor, Source
from . import convert, leftovers
from .leftovers import Leftover
from .output import Output, copy_of, row_slices, shards, total_bytes, write_file, write_json
from .quantize import Coding, Encoder, Fidelity, as_bfloat16

_JOB = "job.json"
_FORMAT = 2  # of what a job states
_FOLDER = "folder"
_TABLE = "rows.source"  # the file that the table of rows moves from
MOVED_BYTES = 1 << 28  # at once, and so twice on the disk

Record = dict[str, Any]
"""A file to be written: its name, what it is made of, and, once it is there, its checksums."""


@dataclass
class Job:
    """What a conversion still has to do, as it is kept on disk."""

    work: Path
    state: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The folder that will be the output."""
        return self.work / _FOLDER

    @property
    def records(self) -> list[Record]:
        return list(self.state["records"])

    def save(self) -> None:
        """Write the job; whoever reads it finds the old one or this."""
        temporary = self.work / f"{_JOB}.new"
        temporary.write_text(json.dumps(self.state), encoding="utf-8")
        atomic.place(temporary, self.work / _JOB)

    def source(self, names: list[str]) -> Source:
        """Open some files of the source."""
        return Source(Path(self.state["source"]), self.state["variant"], files=names)

    def can_move(self, record: Record, take: Callable[[Path, Path], bool]) -> bool:
        """Return whether a file is the row store, and its table alone needs the file it lies in.

        That file lies beside the job then.
        """
        if "table" not in record:
            return False
        (name,) = record["sources"]
        others = (each for each in self.records if each is not record and each["runs"] is None)
        if any(name in each["sources"] for each in others):
            return False
        target = self.work / _TABLE
        return target.exists() or take(Path(self.state["source"], name), target)

    def spent(self) -> list[Path]:
        """Return the files of the source that nothing needs any more."""
        needed = {
            name for record in self.records if record["runs"] is None for name in record["sources"]
        }
        return [
            Path(self.state["source"], name) for name in self.state["files"] if name not in needed
        ]


def run(
    request: Mapping[str, Any],
    output: Path,
    open_source: Callable[[], Source],
    discard: Callable[[Path], None],
    take: Callable[[Path, Path], bool],
    coding: Callable[[Source], Coding] | None = None,
) -> Iterator[str]:
    """Convert into the new folder `output`, and yield what was done as lines for a person.

    `request` is what was asked for, `choice` of leftovers included: a run that was stopped is only
    gone on with for the same. `open_source` is not called then. `discard` deletes a file of the
    source; `take` moves one to a path, or returns False. `coding` says what of a 16-bit model is
    coded.
    Raises: SourceError when `output` exists, or another run or request is under way; as `convert`.
    """
    with atomic.resumable(output) as work:
        job = _find(work, request) or _begin(work, request, open_source(), coding)
        total = sum(record["bytes"] for record in job.records)
        with tqdm(total=total, unit="B", unit_scale=True, desc="convert", mininterval=0.5) as bar:
            for record in job.records:
                if record["runs"] is not None:
                    bar.update(record["bytes"])
                elif job.can_move(record, take):
                    _move_rows(job, record, bar)
                else:
                    _write(job, record, bar)
                    job.save()
                for path in job.spent():
                    discard(path)
        plan = _plan_of(job)
        _finish(job, plan, output)
    yield from job.state["lines"]
    yield from plan.lines()


def is_begun(output: Path) -> bool:
    """Return whether a run for this output was stopped, so that nothing need be downloaded."""
    return (atomic.resumable_folder(output) / _JOB).exists()


def _find(work: Path, request: Mapping[str, Any]) -> Job | None:
    """Return the job of a run that was stopped.

    Raises: SourceError when it was asked for something else.
    """
    if not (work / _JOB).exists():
        return None
    state = read_json(work / _JOB)
    if state.get("format") != _FORMAT:
        raise SourceError(
            f"[output] needed a job of format {_FORMAT}, got {state.get('format')} in {work}. "
            "Finish it with the hlwq_mlx that began it, or remove the folder to begin anew."
        )
    if state["request"] != request:
        raise SourceError(
            f"[output] needed the request that {work} was begun with, {state['request']}, got "
            f"{dict(request)}. Repeat that one, or remove the folder to begin anew."
        )
    return Job(work, state)


def _begin(
    work: Path,
    request: Mapping[str, Any],
    source: Source,
    coding: Callable[[Source], Coding] | None,
) -> Job:
    """Find out what there is to do, and write it down."""
    folder = work / _FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    made = convert.prepare(source, request["choice"], None if coding is None else coding(source))
    copied = copy_side_files(source, folder)
    made.summary.warnings += copied.warnings + _left_drafter(source)
    tensors = made.tensors | ({} if made.table is None else {ROW_TABLE: made.table})
    tables: list[list[float]] = []
    readings = {
        name: _spelled(source.readings[tensor.name], tables)
        for name, tensor in tensors.items()
        if isinstance(tensor, CodedTensor)
    }
    state: dict[str, Any] = {
        "format": _FORMAT,
        "request": dict(request),
        "source": str(source.folder),
        "variant": source.variant,
        "files": [path.name for path in source.weight_files],
        "config": made.config,
        "manifest": made.manifest(copied.templates),
        "metadata": made.metadata,
        "spelled": {name: tensor.name for name, tensor in tensors.items()},
        "readings": readings,
        "tables": tables,
        "codings": {
            name: [leftover.bits, *astuple(leftover.encoder), leftover.is_asked]
            for name, leftover in made.plan.chosen.items()
        },
        "is_quantized": coding is not None,
        "row_bits": made.plan.row_bits,
        "row_columns": made.row_columns,
        "own": made.plan.own,
        "means": made.plan.strong_means,
        "lines": list(made.summary.notes()),
    }
    job = Job(work, state)
    state["records"] = _records(job, source, sorted(tensors))
    job.save()
    return job


def _left_drafter(source: Source) -> tuple[str, ...]:
    """Return a warning where there is a drafter, which is not converted here."""
    if source.drafter is None:
        return ()
    folder = source.drafter.folder
    return (f"the drafter in {folder} stays as it is: name it with --draft-model to draft with it",)


def _records(job: Job, source: Source, names: list[str]) -> list[Record]:
    """Cut what is to be written into files; what is made of the smallest files comes first."""
    homes = _homes(source)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        groups.setdefault(homes[job.state["spelled"][name]], []).append(name)
    sizes = {path.name: path.stat().st_size for path in source.weight_files}
    found: list[Record] = []
    for home in sorted(groups, key=lambda home: sum(sizes[name] for name in home)):
        plain = [name for name in groups[home] if name != ROW_TABLE]
        outputs = {name: _outputs(job, source, name) for name in plain}
        owner = {id(output): name for name, made in outputs.items() for output in made}
        for shard in shards([output for made in outputs.values() for output in made]):
            members = list(dict.fromkeys(owner[id(output)] for output in shard))
            found.append(_record(home, members, shard))
        if ROW_TABLE in groups[home]:
            record = _record(home, [ROW_TABLE], _outputs(job, source, ROW_TABLE))
            record["name"] = ROW_STORE
            table = source.plain.get(job.state["spelled"][ROW_TABLE])
            if table is not None:
                start, spec = table.file.start(table.name), table.spec
                record["table"] = {"start": start, "dtype": spec.dtype, "shape": spec.shape}
                record |= {"left": spec.shape[0], "moved": []}
            found.append(record)
    numbered = [record for record in found if record["name"] != ROW_STORE]
    for number, record in enumerate(numbered, start=1):
        record["name"] = f"model-{number:05d}-of-{len(numbered):05d}.safetensors"
    return found


def _record(home: tuple[str, ...], tensors: list[str], outputs: list[Output]) -> Record:
    return {
        "name": "",
        "sources": list(home),
        "tensors": tensors,
        "stored": [name for output in outputs for name in output.specs],
        "bytes": total_bytes(outputs),
        "runs": None,
        "lost": [],
    }


def _homes(source: Source) -> dict[str, tuple[str, ...]]:
    """Return in which files each tensor of a source lies."""
    homes: dict[str, set[str]] = {}
    for path in source.weight_files:
        for name in TensorFile(path).specs:
            key = parse_key(name)
            homes.setdefault(key.tensor if key else name, set()).add(path.name)
    return {name: tuple(sorted(files)) for name, files in homes.items()}


def _outputs(job: Job, source: Source, name: str, leftover: Leftover | None = None) -> list[Output]:
    """Plan one tensor, as the job says that it is written."""
    state, spelled = job.state, job.state["spelled"][name]
    tensor: CodedTensor | PlainTensor = (source.coded | source.plain)[spelled]
    if isinstance(tensor, PlainTensor) and name not in state["codings"]:
        tensor = _kept(state, tensor)
    if name == ROW_TABLE:
        readings = {spelled: _reading(state, name)} if isinstance(tensor, CodedTensor) else {}
        return [convert.row_table(tensor, readings, state["row_columns"], state["row_bits"])]
    if isinstance(tensor, CodedTensor):
        return convert.repacked(name, tensor, _reading(state, name))
    if name in state["codings"]:
        return [convert.newly_coded(name, leftover or _leftover(state, name, tensor))]
    return [copy_of(name, tensor)]


def _kept(state: Mapping[str, Any], tensor: PlainTensor) -> PlainTensor:
    """Return a tensor as the folder has it, uncoded."""
    return as_bfloat16(tensor) if state["is_quantized"] else tensor


def _leftover(state: Mapping[str, Any], name: str, tensor: PlainTensor) -> Leftover:
    """Return what codes a tensor, as the job says that it is coded."""
    bits, table, (starts, refits), is_asked = state["codings"][name]
    encoder = Encoder(table, Fit(tuple(starts), refits))
    return Leftover(tensor, bits, Fidelity(), encoder, is_asked, name in state["means"])


def _write(job: Job, record: Record, bar: "tqdm[Any]") -> None:
    """Write one file, to the disk, and note its checksums and what its leftovers lost."""
    path = job.folder / record["name"]
    path.unlink(missing_ok=True)  # of a run that was stopped
    source = job.source(record["sources"])
    new: dict[str, Leftover] = {
        name: _leftover(job.state, name, source.plain[job.state["spelled"][name]])
        for name in job.state["codings"]
        if name in record["tensors"]
    }
    outputs = [
        output
        for name in record["tensors"]
        for output in _outputs(job, source, name, new.get(name))
        if output.specs.keys() <= set(record["stored"])
    ]
    metadata = job.state["metadata"]
    if record["name"] == ROW_STORE:
        metadata = metadata | convert.row_version(job.state["row_bits"])
    record["runs"] = write_file(path, outputs, bar, metadata)
    record["lost"] = [_lost(each) for each in new.values()]
    atomic.flush(path)
    atomic.flush(job.folder)  # its name too, before its source goes


def _lost(leftover: Leftover) -> dict[str, Any]:
    """Return what coding a tensor lost, as JSON has it."""
    return {
        "name": leftover.tensor.name,
        "bits": leftover.bits,
        "weights": leftover.fidelity.weights,
        "energies": list(leftover.fidelity.sums()),
        "is_asked": leftover.is_asked,
    }


def _move_rows(job: Job, record: Record, bar: "tqdm[Any]") -> None:
    """Write the row store from its end, and cut what is written off the file of its table."""
    path, target = job.work / _TABLE, job.folder / record["name"]
    table = record["table"]
    spec = TensorSpec(table["dtype"], tuple(table["shape"]))
    row_bytes = spec.nbytes // spec.shape[0]
    cut = PlainTensor(ROW_TABLE, CutFile(path, ROW_TABLE, spec, table["start"]), spec)
    tensor = _kept(job.state, cut)
    bits = job.state["row_bits"]
    specs, pieces = convert.row_pieces(tensor, {}, job.state["row_columns"], bits)
    if not record["moved"]:
        target.unlink(missing_ok=True)
    bar.update(record["bytes"] * (spec.shape[0] - record["left"]) // spec.shape[0])
    metadata = job.state["metadata"] | convert.row_version(bits)
    with TensorWriter(target, specs, metadata, [tuple(run) for run in record["moved"]]) as writer:
        while record["left"]:
            os.truncate(path, table["start"] + record["left"] * row_bytes)
            first = max(0, record["left"] - max(1, MOVED_BYTES // row_bytes))
            for start, stop in row_slices(record["left"] - first, 8 * row_bytes):
                for name, at, piece in pieces(first + start, first + stop):
                    bar.update(writer.write(name, piece, at))
            atomic.flush(target)
            atomic.flush(job.folder)
            record["left"], record["moved"] = first, writer.digests()
            job.save()
    record["runs"] = record["moved"]
    job.save()
    path.unlink()


def _plan_of(job: Job) -> leftovers.Plan:
    """Return what was done with the leftovers."""
    plan = leftovers.Plan(job.state["request"]["choice"], job.state["own"])
    plan.strong_means = job.state["means"]
    for record in job.records:
        for lost in record["lost"]:
            report = plan.asked if lost["is_asked"] else plan.report
            fidelity = report.of(lost["name"], lost["bits"])
            fidelity.add(lost["weights"], Energies(*lost["energies"]))
    return plan


def _finish(job: Job, plan: leftovers.Plan, output: Path) -> None:
    """Write the small files and give the folder its name."""
    folder, state = job.folder, job.state
    weights = [record for record in job.records if record["name"] != ROW_STORE]
    index = {
        "metadata": {"total_size": sum(record["bytes"] for record in weights)},
        "weight_map": {name: record["name"] for record in weights for name in record["stored"]},
    }
    write_json(folder / INDEX_NAME, index)
    convert.write_config(folder, state["config"], state["manifest"], plan)
    (folder / checksums.FILE_NAME).unlink(missing_ok=True)
    checksums.write(folder, {record["name"]: record["runs"] for record in job.records})
    atomic.place(folder, output)


def _spelled(reading: Reading, tables: list[list[float]]) -> list[Any]:
    """Return a reading as JSON has it; tables are listed once."""
    values = [float(value) for value in reading.centroids]
    if values not in tables:
        tables.append(values)
    return [reading.order, reading.table, reading.evidence, tables.index(values)]


def _reading(state: Mapping[str, Any], name: str) -> Reading:
    order, table, evidence, number = state["readings"][name]
    values = np.array(state["tables"][number], dtype=np.float32)
    return Reading(order, table, values, evidence)
