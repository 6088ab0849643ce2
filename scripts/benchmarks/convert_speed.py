"""Measure conversion and loading beside copying and reading the same bytes, in turns.

    python scripts/benchmarks/convert_speed.py                    about 3 GB of disk
    python scripts/benchmarks/convert_speed.py --layers 2 --vocabulary 8192    a rehearsal

Two synthetic sources with E4B's shapes (make_fullsize): one whose large matrices are coded at 5
bits, and one whose are in 16 bits. The first is repacked; the second is coded anew at 8 bits, and
copied (--leftovers keep). Beside each stands `cp` of the source's weights. Both ways end when the
disk has everything. Loading stands beside reading the converted files; the page cache is emptied
of them before either, or not (warm). Contenders take turns; medians of a few turns. MB are of the
source's weights, of the converted ones where something is loaded: the weights alone, with layers
joined as on Metal, or all, which without Metal includes making images of 8 bits. Core seconds are
the process's own, of all threads.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts.benchmarks import bench, make_fullsize
from scripts.benchmarks.row_reads import forget

LEAST_WEIGHTS = 1 << 20
PIECE_BYTES = 1 << 22
ROWS = "embed_tokens_per_layer"
ALONE = "layers.0.mlp.up_proj.weight"  # coded in both, or there would be nothing to keep up with


class Measured(NamedTuple):
    """A turn: seconds by the clock, and of processors."""

    seconds: float
    core_seconds: float


def clocked(work: Callable[[], object]) -> Measured:
    """Run something and return what it took, its child processes included."""
    begun, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    return Measured(time.perf_counter() - begun, sum(after[:4]) - sum(before[:4]))


def code_all(name: str, shape: tuple[int, ...]) -> int | None:
    """Code every large matrix but the table of rows."""
    is_large = len(shape) == 2 and shape[0] * shape[1] >= LEAST_WEIGHTS and ROWS not in name
    return 5 if is_large else None


def code_one(name: str, shape: tuple[int, ...]) -> int | None:
    """Code a single matrix."""
    return 5 if name.endswith(ALONE) else None


def weights_of(folder: Path) -> list[Path]:
    """Return the files of weights in a folder."""
    return sorted(folder.glob("*.safetensors"))


def size_of(folder: Path) -> int:
    """Sum the files of weights in a folder."""
    return sum(path.stat().st_size for path in weights_of(folder))


def copy(source: Path, target: Path) -> None:
    """Copy the files of weights with cp, to the disk."""
    target.mkdir()
    subprocess.run(["cp", *map(str, weights_of(source)), str(target)], check=True)
    for path in target.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def convert(source: Path, target: Path, choice: str) -> None:
    """Convert in this process, so that imports are not measured."""
    from hlwq_mlx.source.repository import Source
    from hlwq_mlx.write import convert

    convert.convert(Source(source, "PQ5"), target, choice)


def read(folder: Path) -> None:
    """Read the files of weights that loading reads: not the row store."""
    for path in weights_of(folder):
        if path.name.startswith("model"):
            with path.open("rb", buffering=0) as file:
                while file.read(PIECE_BYTES):
                    pass


def load_weights(folder: Path) -> None:
    """Load the weights and join the layers that share an input, as on Metal."""
    import mlx.core as mx

    from hlwq_mlx.folder import loading
    from hlwq_mlx.folder.folder import Folder
    from hlwq_mlx.quant import fuse

    model = loading.map_folder(Folder.open(folder))
    for block in fuse.blocks(model):
        fuse.fuse(block)
    mx.eval(model.parameters())


def load(folder: Path) -> None:
    """Load the model; without Metal that makes images of 8 bits too."""
    from hlwq_mlx.folder import loading

    loading.load(folder)


def in_turns(contenders: dict[str, Callable[[], object]], turns: int) -> dict[str, Measured]:
    """Return each contender's medians."""
    taken: dict[str, list[Measured]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, work in contenders.items():
            taken[name].append(clocked(work))
    return {
        name: Measured(*(statistics.median(part) for part in zip(*each, strict=True)))
        for name, each in taken.items()
    }


def written(make: Callable[[Path], object], target: Path) -> Callable[[], object]:
    """Return what makes a folder anew; removing the last one is not measured by much."""

    def work() -> None:
        shutil.rmtree(target, ignore_errors=True)
        make(target)

    return work


def conversions(work: Path, sources: dict[str, Path], turns: int) -> Iterator[dict[str, Any]]:
    """Measure each kind of conversion beside cp."""
    kinds = {
        "codes repacked": ("codes", "keep"),
        "16 bits coded anew": ("plain", "auto"),
        "16 bits copied": ("plain", "keep"),
    }
    for kind, (name, choice) in kinds.items():
        source = sources[name]
        contenders = {
            "cp": written(lambda to, source=source: copy(source, to), work / "copy"),
            "ours": written(
                lambda to, source=source, choice=choice: convert(source, to, choice),
                work / f"converted-{name}-{choice}",
            ),
        }
        yield row(kind, size_of(source), in_turns(contenders, turns))


def loads(work: Path, turns: int) -> Iterator[dict[str, Any]]:
    """Measure loading of what was converted beside reading it, whole and as a Mac does."""
    for name in ("codes-keep", "plain-auto"):
        folder = work / f"converted-{name}"
        size = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
        ways = {"weights, cold": load_weights, "weights, warm": load_weights, "all, warm": load}
        for way, loader in ways.items():
            before = forget_all if way.endswith("cold") else keep
            contenders = {
                "read": lambda: (before(folder), read(folder)),  # noqa: B023 (used at once)
                "ours": lambda: (before(folder), loader(folder)),  # noqa: B023
            }
            yield row(f"load {name}: {way}", size, in_turns(contenders, turns))


def forget_all(folder: Path) -> None:
    """Empty the page cache of a folder's weights."""
    for path in weights_of(folder):
        forget(path)


def keep(folder: Path) -> None:
    """Leave the page cache as it is."""


def row(kind: str, size: int, taken: dict[str, Measured]) -> dict[str, Any]:
    """Return a row of the table."""
    beside, ours = taken.values()
    return {
        "kind": kind,
        "mb": size / 1e6,
        "beside": next(iter(taken)),
        "beside_mb_s": size / 1e6 / beside.seconds,
        "ours_mb_s": size / 1e6 / ours.seconds,
        "beside_cores": beside.core_seconds / beside.seconds,
        "ours_cores": ours.core_seconds / ours.seconds,
        "mb_core_s": size / 1e6 / ours.core_seconds,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows as Markdown."""
    print("| | MB | beside | its MB/s | our MB/s | ratio | our cores | our MB per core second |")
    print("|---" * 8 + "|")
    for each in rows:
        ratio = each["ours_mb_s"] / each["beside_mb_s"]
        print(
            f"| {each['kind']} | {each['mb']:.0f} | {each['beside']} | {each['beside_mb_s']:.0f} | "
            f"{each['ours_mb_s']:.0f} | {ratio:.2f} | {each['ours_cores']:.2f} | "
            f"{each['mb_core_s']:.0f} |"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Write the sources, measure, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("convert_speed"), help="must not exist")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2, help="an even number")
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--without-load", action="store_true", help="leave loading out")
    arguments = parser.parse_args(argv)
    arguments.work.mkdir(parents=True)
    settings = make_fullsize.config(arguments.layers, arguments.vocabulary)
    try:
        sources = {
            name: make_fullsize.make(arguments.work / name, "PQ5", settings, rule)
            for name, rule in (("codes", code_all), ("plain", code_one))
        }
        rows = list(conversions(arguments.work, sources, arguments.turns))
        if not arguments.without_load:
            rows += loads(arguments.work, arguments.turns)
    finally:
        shutil.rmtree(arguments.work)
    print(f"E4B's shapes, {arguments.layers} layers, on {bench.machine()}.\n")
    print_table(rows)
    print(json.dumps({"convert_speed": rows}))


if __name__ == "__main__":
    sys.exit(main())
