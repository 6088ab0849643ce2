"""An HLWQ or PolarQuant repository, in any of its published layouts, opened for reading.

The data decides what is coded: a tensor is coded when its codes are there, plain otherwise. Which
folder and variant a user means is for `locate`. Nothing is written and no tensor is held.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..disk.failures import is_there
from ..disk.index import weight_map
from ..disk.jsonfile import read_json
from ..disk.tensorfile import TensorFile, TensorSpec
from ..errors import CheckpointError, SourceError, raise_all
from ..quant.packing import BitOrder
from ..quant.tables import CENTROIDS
from . import detect
from .code_keys import without_code
from .coded import CodedTensor, Parts, gather, parse_key
from .layout import (
    CODED_FILE,
    DRAFTER,
    PLAIN_FILE,
    SIDE_FILES,
    folder_bits,
    read_settings,
    root_weights,
)

TABLE_KEY = "hlwq_table"  # where our own encoder says, in a file's metadata, which table it used
_CACHED_WEIGHTS = 1 << 18
_PLAIN_DTYPES = ("BF16", "F16", "F32")
_ORDER = ".token_ordering"  # of a drafter: ids, and so whole numbers
_ORDER_DTYPES = ("I64", "I32")


@dataclass(frozen=True)
class PlainTensor:
    """An uncoded tensor and the file it lies in."""

    name: str
    file: TensorFile
    spec: TensorSpec

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns, a stack of matrices being one, each below the other."""
        *leading, columns = self.shape if len(self.shape) > 1 else (*self.shape, 1)
        return math.prod(leading), columns

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows of `matrix` as they lie on disk; bfloat16 as its uint16 bits."""
        # Not all of them may be there: what was moved elsewhere is cut off (write/staged.py).
        return self.file.view(self.name).reshape(-1, self.matrix[1])[start:stop]

    def float_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows as float32."""
        raw = self.rows(start, stop)
        if self.spec.dtype == "BF16":
            return _widened(raw)
        return raw.astype(np.float32)


def _widened(raw: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 bits as float32, a cache's worth at a time."""
    bits = np.empty(raw.shape, dtype=np.uint32)
    source, target = raw.reshape(-1), bits.reshape(-1)
    for start in range(0, target.size, _CACHED_WEIGHTS):
        part = slice(start, start + _CACHED_WEIGHTS)
        target[part] = source[part]
        target[part] <<= np.uint32(16)
    return bits.view(np.float32)


def _parts(file: TensorFile) -> dict[str, Parts]:
    """Collect the parts of coded tensors in one file."""
    parts: dict[str, Parts] = {}
    for name in file.specs:
        key = parse_key(name)
        if key is not None:
            parts.setdefault(key.tensor, {})[key.role] = key, file.view(name)
    return parts


def _twice(what: str) -> str:
    return f"[{what}] needed in one file, got two. The files do not belong together."


class Source:
    """The tensors, config and tokenizer files of one variant.

    Opening reads headers alone; tensors are read and checked when they are first asked for.
    Raises: SourceError for missing files; CheckpointError for damaged ones.
    """

    def __init__(
        self,
        folder: Path,
        variant: str | None = None,
        bit_order: BitOrder | None = None,
        table: str | None = None,
        files: Sequence[str] | None = None,
    ) -> None:
        """Open all files of weights, or those that `files` names."""
        self.folder = folder
        self.variant = variant
        self.root = folder if is_there(folder / "config.json") else folder.parent
        self._bit_order = bit_order
        self._table = table
        self._files = [
            TensorFile(path)
            for path in (self._weight_paths() if files is None else [folder / f for f in files])
        ]

    @property
    def coded(self) -> dict[str, CodedTensor]:
        """The coded tensors by name.

        Raises: CheckpointError for tensors that contradict themselves.
        """
        return self._tensors[0]

    @property
    def plain(self) -> dict[str, PlainTensor]:
        """The other tensors by name.

        Raises: CheckpointError for tensors that contradict themselves.
        """
        return self._tensors[1]

    @cached_property
    def readings(self) -> dict[str, detect.Reading]:
        """How each coded tensor is read.

        Raises: CheckpointError for tensors that contradict themselves.
        """
        return detect.settle(
            self.coded,
            list(self._siblings()),
            self._gates(),
            self._bit_order,
            self._table,
            self._stated_table(),
        )

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json, without what names code.

        Raises: SourceError when there is none or it is damaged.
        """
        return dict(without_code(read_json(self.config_path)))

    @property
    def root_files(self) -> list[Path]:
        """The files beside the weights: config.json and the side files.

        Raises: SourceError when there is no config.json.
        """
        return [self.config_path, *self.side_files]

    @property
    def side_files(self) -> list[Path]:
        """Tokenizer, template, processor and generation files, whatever they are on disk."""
        return [self.root / name for name in SIDE_FILES if os.path.lexists(self.root / name)]

    @property
    def drafter(self) -> "Source | None":
        """The drafter at the repository's root, None when there is none.

        Raises: as `Source`.
        """
        folder = self.root / DRAFTER
        return Source(folder) if is_there(folder / "config.json") else None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(file.path.stat().st_size for file in self._files)

    @property
    def weight_files(self) -> list[Path]:
        return [file.path for file in self._files]

    def evidence(self) -> Iterator[str]:
        """Yield a line for every width: what was found and how it was decided."""
        kinds = Counter(
            (self.coded[name].bits, reading.evidence) for name, reading in self.readings.items()
        )
        for (bits, evidence), count in sorted(kinds.items()):
            yield f"{bits} bits: {count} tensors, {evidence}"

    @property
    def config_path(self) -> Path:
        """The file of the model's config.

        Raises: SourceError when there is none.
        """
        path = self.root / "config.json"
        if not is_there(path):
            raise SourceError(
                f"[{self.folder}] needed config.json in this folder or the one above, got none. "
                "Download the repository's root files too."
            )
        return path

    def _weight_paths(self) -> list[Path]:
        codes = self.folder / CODED_FILE
        if is_there(codes):
            plain = self.folder / PLAIN_FILE
            if not is_there(plain):
                raise SourceError(
                    f"[{self.folder.name}] needed bf16.safetensors beside codes.safetensors, got "
                    "none. Download the variant again."
                )
            return [codes, plain]
        index = self.folder / "model.safetensors.index.json"
        if is_there(index):
            paths = [self.folder / name for name in sorted(set(weight_map(index).values()))]
        else:
            paths = root_weights(self.folder)
        missing = [path.name for path in paths if not is_there(path)]
        if missing or not paths:
            raise SourceError(
                f"[{self.folder}] needed weight files, got no "
                f"{', '.join(missing) or 'safetensors file'}. Download the model again."
            )
        return paths

    @cached_property
    def _tensors(self) -> tuple[dict[str, CodedTensor], dict[str, PlainTensor]]:
        parts: dict[str, Parts] = {}
        plain: dict[str, PlainTensor] = {}
        problems: list[str] = []
        for file in self._files:
            for tensor, roles in _parts(file).items():
                known = parts.setdefault(tensor, {})
                problems += [_twice(f"{role} of {tensor}") for role in known.keys() & roles.keys()]
                known.update(roles)
            for name, spec in file.specs.items():
                if parse_key(name) is not None:
                    continue
                if name in plain:
                    problems.append(_twice(name))
                wanted = _ORDER_DTYPES if name.endswith(_ORDER) else _PLAIN_DTYPES
                if spec.dtype not in wanted:
                    problems.append(
                        f"[{name}] needed {', '.join(wanted)}, got {spec.dtype}. "
                        "The file is not an HLWQ checkpoint."
                    )
                plain[name] = PlainTensor(name, file, spec)
        problems += [
            f"[{name}] needed to be coded or plain, got both. The files do not belong together."
            for name in sorted(parts.keys() & plain.keys())
        ]
        raise_all(problems)
        bits = folder_bits(self.variant or self.folder.name)
        return gather(parts, read_settings(self.folder), bits), plain

    def _stated_table(self) -> str | None:
        """Return the table that our own encoder noted in the metadata, None for files of others."""
        stated = {file.metadata.get(TABLE_KEY, "") for file in self._files}
        return next(iter(stated & CENTROIDS.keys()), None)

    def _siblings(self) -> Iterator[Mapping[str, CodedTensor]]:
        """Open other widths of this model that lie beside it."""
        for path in sorted(self.folder.parent.glob(f"PQ*/{CODED_FILE}")):
            if path.parent == self.folder:
                continue
            # A damaged neighbour is not this variant's fault.
            with suppress(CheckpointError, SourceError):
                yield gather(_parts(TensorFile(path)), {}, folder_bits(path.parent.name))

    def _gates(self) -> dict[str, detect.Rows]:
        return {
            name: tensor.float_rows
            for name, tensor in self.plain.items()
            if name.endswith(".mlp.gate_proj.weight")
        }
