"""An HLWQ or PolarQuant repository, in any of its published layouts, opened for reading.

The data decides what is coded: a tensor is coded when its codes are there, plain otherwise. `find`
turns what a user names (a hub id, `id/PQ5`, a folder) into a folder and a variant; `Source` opens
them. Nothing is written and no tensor is held.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..disk.jsonfile import read_json
from ..disk.names import require_plain
from ..disk.tensorfile import TensorFile, TensorSpec
from ..errors import CheckpointError, SourceError, raise_all
from ..quant.packing import BitOrder
from ..quant.tables import CENTROIDS
from . import detect, hub
from .code_keys import without_code
from .coded import SHOWN, CodedTensor, Parts, gather, parse_key, polar_settings

TABLE_KEY = "hlwq_table"  # where our own encoder says, in a file's metadata, which table it used
SIDE_FILES = (
    *("added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("preprocessor_config.json", "processor_config.json", "special_tokens_map.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    "video_preprocessor_config.json",
)
_CODED_FILE = "codes.safetensors"
_PLAIN_DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class PlainTensor:
    """An uncoded tensor and the file it lies in."""

    name: str
    file: TensorFile
    spec: TensorSpec

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows as they lie on disk; bfloat16 as its uint16 bits."""
        return self.file.view(self.name)[start:stop]

    def float_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows as float32."""
        raw = self.rows(start, stop)
        if self.spec.dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)


def list_variants(root: Path) -> list[str]:
    """Name the PQ folders below a repository root."""
    return sorted(path.parent.name for path in root.glob(f"*/{_CODED_FILE}"))


def local_path(model: str) -> Path:
    """Return where a model is if it is a folder; a home folder that nobody has stays as it is."""
    return Path(os.path.expanduser(model))


def find(model: str, variant: str | None) -> tuple[Path, str | None]:
    """Find the folder of a model, local or on the hub, and settle which variant is meant.

    Returns the folder that holds the weights, and the variant's name if it has one.
    Raises: SourceError when the model or the variant does not exist or several could be meant.
    """
    local = find_local(model, variant)
    if local is not None:
        return local
    root, variant = hub.download(model, variant)
    return (root / variant if variant else root), variant


def find_local(model: str, variant: str | None) -> tuple[Path, str | None] | None:
    """Find the folder of a model on this machine as `find` does; None for what is not here.

    Raises: SourceError when the folder lacks the variant or several could be meant.
    """
    path = local_path(model)
    if not path.is_dir() and list_variants(path.parent):  # a root and a variant it may lack
        if variant and variant.lower() != path.name.lower():
            raise SourceError(
                f"[{model}] needed one variant, got {path.name} in the name and --variant "
                f"{variant}. Name it once."
            )
        return _choose_local(path.parent, path.name)
    if not path.is_dir():
        return None
    if (path / _CODED_FILE).is_file():
        named = _variant_name(path.name)
        if variant and named and variant.lower() != named.lower():
            raise SourceError(
                f"[{model}] needed variant {variant}, got the folder of {named}. "
                "Name the repository root, or leave --variant out."
            )
        return path, named
    return _choose_local(path, variant)


def _choose_local(root: Path, variant: str | None) -> tuple[Path, str | None]:
    _settings(root)
    variants = list_variants(root)
    has_own_weights = bool(_root_weights(root))
    choices = [*variants, *([hub.PLAIN] if has_own_weights else [])]
    if variant is None and len(choices) == 1:
        variant = choices[0]
    if variant is None and variants:
        raise SourceError(
            f"[{root}] needed one variant, got {', '.join(choices)}. Choose with --variant."
        )
    by_name = {name.lower(): name for name in choices}
    if variant is None or variant.lower() not in by_name:
        there = ", ".join(choices) or "no weights at all"
        raise SourceError(
            f"[{root}] needed {variant or 'a model'}, got {there}. "
            "Name a folder with codes.safetensors or model*.safetensors in it or in a PQ folder."
        )
    name = by_name[variant.lower()]
    return (root, None) if name == hub.PLAIN else (root / name, name)


def _variant_name(folder: str) -> str | None:
    return folder if re.match(r"PQ\d", folder, re.IGNORECASE) else None


def _folder_bits(folder: str) -> int | None:
    found = re.match(r"PQ(\d)", folder, re.IGNORECASE)
    return int(found.group(1)) if found else None


def _root_weights(folder: Path) -> list[Path]:
    return [path for pattern in hub.ROOT_WEIGHTS for path in sorted(folder.glob(pattern))]


def _settings(folder: Path) -> Mapping[str, Any]:
    """Read a folder's polar_config.json, if it has one."""
    path = folder / "polar_config.json"
    return polar_settings(folder, read_json(path)) if path.is_file() else {}


def _parts(file: TensorFile) -> dict[str, Parts]:
    """Collect the parts of coded tensors in one file."""
    parts: dict[str, Parts] = {}
    for name in file.specs:
        key = parse_key(name)
        if key is not None:
            parts.setdefault(key.tensor, {})[key.role] = key, file.view(name)
    return parts


def weight_map(index: Path) -> dict[str, str]:
    """Read in which file each tensor is.

    Raises: SourceError when the file does not say that.
    """
    files = read_json(index).get("weight_map", {})
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise SourceError(
            f"[{index.name}] needed a weight_map from tensors to files in {index}, got "
            f"{str(files)[:SHOWN]}. Download it again."
        )
    return {tensor: require_plain(name, index.name) for tensor, name in files.items()}


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
    ) -> None:
        self.folder = folder
        self.variant = variant
        self.root = folder if (folder / "config.json").is_file() else folder.parent
        self._bit_order = bit_order
        self._table = table
        self._files = [TensorFile(path) for path in self._weight_paths()]

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
        return dict(without_code(read_json(self._config_path)))

    @property
    def root_files(self) -> list[Path]:
        """The files beside the weights: config.json and the side files.

        Raises: SourceError when there is no config.json.
        """
        return [self._config_path, *self.side_files]

    @property
    def side_files(self) -> list[Path]:
        """Tokenizer, template, processor and generation files, whatever they are on disk."""
        return [self.root / name for name in SIDE_FILES if os.path.lexists(self.root / name)]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(file.path.stat().st_size for file in self._files)

    @property
    def weight_files(self) -> list[Path]:
        return [file.path for file in self._files]

    def evidence(self) -> Iterator[str]:
        """Say for every width what was found and how it was settled."""
        kinds = Counter(
            (self.coded[name].bits, reading.evidence) for name, reading in self.readings.items()
        )
        for (bits, evidence), count in sorted(kinds.items()):
            yield f"{bits} bits: {count} tensors, {evidence}"

    @property
    def _config_path(self) -> Path:
        path = self.root / "config.json"
        if not path.is_file():
            raise SourceError(
                f"[{self.folder}] needed config.json in this folder or the one above, got none. "
                "Download the repository's root files too."
            )
        return path

    def _weight_paths(self) -> list[Path]:
        codes = self.folder / _CODED_FILE
        if codes.is_file():
            plain = self.folder / "bf16.safetensors"
            if not plain.is_file():
                raise SourceError(
                    f"[{self.folder.name}] needed bf16.safetensors beside codes.safetensors, got "
                    "none. Download the variant again."
                )
            return [codes, plain]
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            paths = [self.folder / name for name in sorted(set(weight_map(index).values()))]
        else:
            paths = _root_weights(self.folder)
        missing = [path.name for path in paths if not path.is_file()]
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
                if spec.dtype not in _PLAIN_DTYPES:
                    problems.append(
                        f"[{name}] needed {', '.join(_PLAIN_DTYPES)}, got {spec.dtype}. "
                        "The file is not an HLWQ checkpoint."
                    )
                plain[name] = PlainTensor(name, file, spec)
        problems += [
            f"[{name}] needed to be coded or plain, got both. The files do not belong together."
            for name in sorted(parts.keys() & plain.keys())
        ]
        raise_all(problems)
        bits = _folder_bits(self.variant or self.folder.name)
        return gather(parts, _settings(self.folder), bits), plain

    def _stated_table(self) -> str | None:
        """Return the table that our own encoder left a note of, if this is its work."""
        stated = {file.metadata.get(TABLE_KEY, "") for file in self._files}
        return next(iter(stated & CENTROIDS.keys()), None)

    def _siblings(self) -> Iterator[Mapping[str, CodedTensor]]:
        """Open other widths of this model that lie beside it."""
        for path in sorted(self.folder.parent.glob(f"PQ*/{_CODED_FILE}")):
            if path.parent == self.folder:
                continue
            try:
                file = TensorFile(path)
            except (
                CheckpointError,
                SourceError,
            ):  # a damaged neighbour is no business of this variant's
                continue
            try:
                yield gather(_parts(file), {}, _folder_bits(path.parent.name))
            except CheckpointError:
                continue

    def _gates(self) -> dict[str, detect.Rows]:
        return {
            name: tensor.float_rows
            for name, tensor in self.plain.items()
            if name.endswith(".mlp.gate_proj.weight")
        }
