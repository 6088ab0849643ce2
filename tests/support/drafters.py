"""The tiny drafter of tests/data/oracle, which drafts for its plain model."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from oracle import FOLDER
from safetensors.numpy import load_file, save_file

from hlwq_mlx.gemma4.drafter import Drafter
from hlwq_mlx.gemma4.drafter_config import DrafterConfig

HEADS = ("ordered", "tied")


@cache
def reference() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "drafter_arrays.npz") as file:
        return dict(file)


def settings(head: str = "ordered") -> dict[str, Any]:
    """The drafter's config.json as transformers saved it, free to be changed."""
    parsed: dict[str, Any] = json.loads((FOLDER / f"drafter_{head}.json").read_text())
    return parsed


def weights(head: str = "ordered") -> dict[str, np.ndarray]:
    found = load_file(FOLDER / "drafter.safetensors")
    is_ordered = head == "ordered"
    return {k: v for k, v in found.items() if is_ordered or not k.startswith("masked_")}


def drafter(head: str = "ordered") -> Drafter:
    made = Drafter(DrafterConfig.from_dict(settings(head)))
    made.load_weights([(k, mx.array(v)) for k, v in weights(head).items()], strict=True)
    return made


def write(root: Path, head: str = "ordered", **changes: Any) -> Path:
    """Write the drafter as transformers does, with keys of its config.json changed."""
    root.mkdir(parents=True)
    (root / "config.json").write_text(json.dumps(settings(head) | changes))
    save_file(weights(head), root / "model.safetensors")
    return root
