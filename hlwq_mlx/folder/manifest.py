"""The manifest in a folder's config.json: which tensors are coded, how wide, by which table."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..disk.fields import is_same
from ..errors import CheckpointError
from ..gemma4.config import MULTIMODAL
from ..quant.packing import BLOCK
from ..source.coded import SHOWN
from ..source.detect import Reading

MODEL_TYPE = MULTIMODAL[1]
METHOD = "hlwq"
FORMAT = 1
_SIGNATURE = {"quant_method": METHOD, "format": FORMAT}
TEMPLATES_KEY = "templates"  # of the manifest: digests of the chat templates that were tried
MOST_BITS = 8


class HasBits(Protocol):
    """A tensor that is coded, or will be."""

    @property
    def bits(self) -> int: ...


def make_manifest(
    variant: str | None, coded: Mapping[str, tuple[HasBits, Reading]], means: Collection[str] = ()
) -> dict[str, Any]:
    """Describe the coded tensors of a folder, tables included; `means` names those with means."""
    tables: dict[str, list[float]] = {}
    tensors: dict[str, dict[str, Any]] = {}
    for name, (tensor, reading) in sorted(coded.items()):
        table = reading.table
        values = [float(value) for value in reading.centroids]
        number = 2
        while tables.setdefault(f"{table}/{tensor.bits}", values) != values:
            table = f"{reading.table}-{number}"  # files may carry a table of their own per tensor
            number += 1
        tensors[name] = {"bits": tensor.bits, "table": table}
        if name in means:
            tensors[name]["means"] = True
    return {
        **_SIGNATURE,
        "block": BLOCK,
        "variant": variant,
        "tensors": tensors,
        "tables": tables,
    }


def manifest_of(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the manifest in a converted folder's config.json.

    Raises: CheckpointError when there is none, or one of another format or damaged.
    """
    manifest = config.get("quantization_config") or {}
    found = [manifest.get(key) if isinstance(manifest, dict) else None for key in _SIGNATURE]
    if not all(map(is_same, found, _SIGNATURE.values())):
        raise CheckpointError(
            f"[{folder}] needed a folder of format {METHOD} {FORMAT}, got "
            f"{' '.join(map(str, found))}. Convert the model again."
        )
    if (problem := _problem_of(manifest)) is not None:
        raise CheckpointError(
            f"[{folder / 'config.json'}] needed a whole manifest as quantization_config, got "
            f"{problem}. Convert the model again."
        )
    return manifest


def _problem_of(manifest: Mapping[str, Any]) -> str | None:
    """Return the first thing in a manifest that `convert` would not have written, or None."""
    tensors, tables = manifest.get("tensors"), manifest.get("tables")
    if not isinstance(tensors, dict) or not isinstance(tables, dict):
        return "none with tensors and tables"
    if not is_same(manifest.get("block"), BLOCK):
        return f"blocks of {_short(manifest.get('block'))}"
    if not isinstance(manifest.get("variant"), str | None):
        return f"{_short(manifest['variant'])} as variant"
    if not _is_list_of(manifest.get(TEMPLATES_KEY, []), str):
        return f"{_short(manifest[TEMPLATES_KEY])} as {TEMPLATES_KEY}"
    for name, table in tables.items():
        if not _is_list_of(table, float):
            return f"{_short(table)} as table {_short(name)}"
    for name, entry in tensors.items():
        stated = entry if isinstance(entry, dict) else {}
        bits, table = stated.get("bits"), stated.get("table")
        is_whole = type(bits) is int and 1 <= bits <= MOST_BITS and isinstance(table, str)
        if not is_whole or not isinstance(stated.get("means", False), bool):
            return f"{_short(entry)} for {_short(name)}"
    return None


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
