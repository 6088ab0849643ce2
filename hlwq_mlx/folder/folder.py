"""A converted folder, opened once: its small files, each parsed when first asked for.

A folder holds a model or a drafter; a model's may hold the folder of its drafter.

Who loads, judges or serves a folder hands this object on instead of its path, so that all see the
same state of its files. Weights are read by `loading`, and side files are checked by `side_files`.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from ..disk.failures import is_there
from ..disk.index import weight_map
from ..disk.jsonfile import read_json
from ..disk.tensorfile import TensorFile, TensorSpec
from ..errors import SourceError, naming
from ..gemma4.config import Gemma4Config
from ..gemma4.drafter_config import DRAFTERS, DrafterConfig
from ..source.layout import DRAFTER, PLAIN
from .manifest import MODEL_TYPE, manifest_of
from .names import INDEX_NAME

CONFIG = "config.json"
GENERATION = "generation_config.json"


class Converted:
    """A folder that `convert` wrote, and its parsed config.json."""

    model_type: ClassVar[str]

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = config

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a folder's config.json.

        Raises: SourceError when there is none, or it is no JSON object.
        """
        return cls(path, read_json(path / CONFIG))

    @classmethod
    def find(cls, path: Path) -> Self | None:
        """Open a folder if it is one that `convert` wrote of this kind, else return None.

        Raises: SourceError for a config.json that is no JSON object.
        """
        if not is_there(path / CONFIG):
            return None
        opened = cls.open(path)
        return opened if opened.config.get("model_type") == cls.model_type else None

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """The manifest in its config.

        Raises: CheckpointError when there is none, or one of another format or damaged.
        """
        return manifest_of(self.path, self.config)

    @cached_property
    def weight_map(self) -> Mapping[str, str]:
        """The shard of each tensor.

        Raises: SourceError for an index that cannot be read.
        """
        return weight_map(self.path / INDEX_NAME)

    @property
    def shards(self) -> list[Path]:
        """The files of weights that the index names."""
        return [self.path / name for name in sorted(set(self.weight_map.values()))]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The dtype and shape of each tensor, from the headers of the shards.

        Raises: CheckpointError for a damaged shard; SourceError for one that is missing.
        """
        return {name: spec for path in self.shards for name, spec in TensorFile(path).specs.items()}

    def require_variant(self, variant: str | None) -> None:
        """Refuse a variant that the folder was not converted from; None asks for none.

        Raises: SourceError naming both; CheckpointError as `manifest`.
        """
        made_of = self.manifest.get("variant") or PLAIN
        if variant is not None and variant.lower() != made_of.lower():
            raise SourceError(
                f"[{self.path}] needed {variant}, got a folder converted from {made_of}. "
                "Name the repository it came from, or leave --variant out."
            )


class Folder(Converted):
    """The folder of a model."""

    model_type = MODEL_TYPE

    @cached_property
    def args(self) -> Gemma4Config:
        """The model's configuration.

        Raises: ConfigError for a config that is incomplete.
        """
        with naming(self.path / CONFIG):
            return Gemma4Config.from_dict(self.config)

    @cached_property
    def generation(self) -> Mapping[str, Any]:
        """The parsed generation_config.json, empty when there is none.

        Raises: SourceError for one that is no JSON object.
        """
        path = self.path / GENERATION
        return read_json(path) if is_there(path) else {}

    @cached_property
    def drafter(self) -> "DrafterFolder | None":
        """The folder of its drafter, None when there is none.

        Raises: SourceError for one whose config.json is no JSON object.
        """
        return DrafterFolder.find(self.path / DRAFTER)


class DrafterFolder(Converted):
    """The folder of a drafter."""

    model_type = DRAFTERS[1]

    @cached_property
    def args(self) -> DrafterConfig:
        """The drafter's configuration.

        Raises: ConfigError for a config that is incomplete.
        """
        with naming(self.path / CONFIG):
            return DrafterConfig.from_dict(self.config)


def is_ours(path: Path) -> bool:
    """Return whether a folder is one of a model that `convert` wrote.

    Raises: as `Folder.find`.
    """
    return Folder.find(path) is not None
