"""The tiny Gemma 4 of tests/data/oracle: its variants' configs, models and reference logits."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from data.oracle.variants import VARIANTS, derive
from safetensors.numpy import load_file

from hlwq_mlx.gemma4.model import Model, ModelArgs, Resources

__all__ = ["TABLE", "TOLERANCE", "VARIANTS", "array", "config", "fresh_model", "model", "weights"]

FOLDER = Path(__file__).parents[1] / "data" / "oracle"
TABLE = "model.language_model.embed_tokens_per_layer.weight"

# float32 logits up to 16 through 8 layers: the reference's own cached and uncached runs differ by
# 7e-6, and we by 9e-6.
TOLERANCE = 2e-5


@cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "arrays.npz") as file:
        return dict(file)


def array(name: str) -> np.ndarray:
    return arrays()[name]


def config(variant: str = "plain") -> dict[str, Any]:
    """The variant's config.json as transformers re-saved it, free to be changed."""
    parsed: dict[str, Any] = json.loads((FOLDER / f"{variant}.json").read_text())
    return parsed


def weights(variant: str = "plain") -> dict[str, np.ndarray]:
    return derive(variant, load_file(FOLDER / "text.safetensors"))


def fresh_model(
    variant: str = "plain", settings: dict[str, Any] | None = None, **resources: Any
) -> Model:
    """A model with the variant's weights; config and resources given replace its own."""
    tensors = {name: mx.array(weight) for name, weight in weights(variant).items()}
    table = tensors.pop(TABLE, None)
    rows = {} if table is None else {"rows": lambda ids: table[mx.array(ids)]}
    found = Resources(**rows | resources)
    args = ModelArgs.from_dict(config(variant) if settings is None else settings)
    made = Model(args, found)
    made.load_weights(list(made.sanitize(tensors).items()), strict=True)
    return made


@cache
def model(variant: str = "plain") -> Model:
    """The same, made once; tests that change a model take a fresh one."""
    return fresh_model(variant)
