"""The names of files and folders in an HLWQ repository, for each of its published layouts.

A variant is a folder below the root, `PQ5` say, with its codes and its uncoded tensors; a root may
hold weights of its own too. Nothing here opens a file of weights.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..disk.failures import is_there
from ..disk.jsonfile import read_json
from ..errors import CheckpointError

PLAIN = "bf16"  # the variant name of a repository's own, uncoded weights
CODED_FILE = "codes.safetensors"
PLAIN_FILE = "bf16.safetensors"
SETTINGS_FILE = "polar_config.json"
DRAFTER = "drafter"  # the folder of a drafter at the root of its model's repository
ROOT_FILES = ("*.json", "*.jinja", "tokenizer.model")
ROOT_WEIGHTS = (
    "polar_state_chunk*.safetensors",
    "bf16_kept.safetensors",
    "model*.safetensors",
)
SIDE_FILES = (
    *("added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("preprocessor_config.json", "processor_config.json", "special_tokens_map.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    "video_preprocessor_config.json",
)
_WIDTH = re.compile(r"PQ(\d)", re.IGNORECASE)
_SHOWN = 60  # characters of what was found instead


def list_variants(root: Path) -> list[str]:
    """Return the names of the PQ folders below a repository root."""
    return sorted(path.parent.name for path in root.glob(f"*/{CODED_FILE}"))


def variant_name(folder: str) -> str | None:
    """Return a folder's name if it is that of a variant."""
    return folder if _WIDTH.match(folder) else None


def folder_bits(folder: str) -> int | None:
    """Return the first width that a variant's name states, None if it states none."""
    found = _WIDTH.match(folder)
    return int(found.group(1)) if found else None


def root_weights(folder: Path) -> list[Path]:
    """Return the files of weights that lie in a folder itself."""
    return [path for pattern in ROOT_WEIGHTS for path in sorted(folder.glob(pattern))]


def read_settings(folder: Path) -> Mapping[str, Any]:
    """Read a folder's polar_config.json; empty when it has none.

    Raises: SourceError for one that is no JSON object; CheckpointError as `polar_settings`.
    """
    path = folder / SETTINGS_FILE
    return polar_settings(folder, read_json(path)) if is_there(path) else {}


def polar_settings(folder: Path, text: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check a polar_config.json and return it.

    Raises: CheckpointError for the unrelated file of the same name beside torchao weights, and for
    layers that are no objects.
    """
    kind = str(text.get("weight_format", ""))
    if kind.startswith("torchao"):
        raise CheckpointError(
            f"[{folder.name}] needed HLWQ codes, got weight_format {kind!r} in polar_config.json. "
            "Those are torchao weights; use the HLWQ repository of the model instead."
        )
    layers = text.get("layers", {})
    if not isinstance(layers, dict) or not all(isinstance(own, dict) for own in layers.values()):
        raise CheckpointError(
            f"[{folder.name}] needed an object for each of the layers in polar_config.json, got "
            f"{str(layers)[:_SHOWN]}. The file is damaged; download it again."
        )
    return text
