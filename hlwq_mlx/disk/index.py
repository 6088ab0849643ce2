"""The index of a model whose tensors lie in several safetensors files."""

from pathlib import Path

from ..errors import SourceError
from .jsonfile import read_json
from .names import require_plain

_SHOWN = 60  # characters of what was found instead


def weight_map(index: Path) -> dict[str, str]:
    """Read in which file each tensor is.

    Raises: SourceError when the file does not say that.
    """
    files = read_json(index).get("weight_map", {})
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise SourceError(
            f"[{index.name}] needed a weight_map from tensors to files in {index}, got "
            f"{str(files)[:_SHOWN]}. Download it again."
        )
    return {tensor: require_plain(name, index.name) for tensor, name in files.items()}
