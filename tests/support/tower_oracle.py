"""The tiny towers of tests/data/oracle: inputs, weights, reference arrays, and a model with them.

Two variants: `clipped` as E4B's towers are, `standard` with a standardized image tower, no bounds,
and every width, eps and cap another.
"""

from functools import cache

import mlx.core as mx
import numpy as np
from data.oracle.variants import patches_of
from oracle import FOLDER, config, fresh_model
from safetensors.numpy import load_file

from hlwq_mlx.gemma4.config import Gemma4Config
from hlwq_mlx.gemma4.model import Model
from hlwq_mlx.gemma4.towers.tower import Tower, make_tower, prefixes

TOWER_VARIANTS = ("clipped", "standard")
KINDS = ("vision", "audio")

# float32 features up to 4.2: the two implementations differ by 1.2e-5 at most.
FEATURES = 3e-5


@cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "tower_arrays.npz") as file:
        return dict(file)


def array(variant: str, name: str) -> np.ndarray:
    return arrays()[f"{variant}_{name}"]


def images(variant: str) -> list[tuple[mx.array, mx.array]]:
    return [_picture(variant, i) for i in (0, 1)]


def frames(variant: str) -> list[tuple[mx.array, mx.array]]:
    return [_picture(variant, i) for i in (2, 3, 4)]


def clips(variant: str) -> list[mx.array]:
    return [mx.array(array(variant, f"clip{i}")) for i in (0, 1)]


def _picture(variant: str, number: int) -> tuple[mx.array, mx.array]:
    p = config(variant)["vision_config"]["patch_size"]
    patches, positions = patches_of(array(variant, f"picture{number}"), p)
    return mx.array(patches), mx.array(positions)


@cache
def tower_weights(variant: str, kind: str) -> dict[str, np.ndarray]:
    stored = load_file(FOLDER / "towers.safetensors")
    named = {name.split("/")[1]: w for name, w in stored.items() if name.startswith(f"{variant}/")}
    return {name: weight for name, weight in named.items() if name.startswith(prefixes(kind))}


def tower(variant: str, kind: str, dtype: mx.Dtype = mx.float32) -> Tower:
    """A tower with the variant's weights."""
    made = make_tower(Gemma4Config.from_dict(config(variant)), kind)
    tensors = {name: mx.array(weight) for name, weight in tower_weights(variant, kind).items()}
    made.load_weights([(name, weight.astype(dtype)) for name, weight in tensors.items()])
    return made


def disturbed(variant: str, kind: str, name: str) -> Tower:
    """A tower with one of its tensors in disorder; a bound is moved to where it bites."""
    made, weight = tower(variant, kind), tower_weights(variant, kind)[name]
    changed = np.flip(weight, -1) / 2 if weight.ndim else np.float32(0.05) * weight
    made.load_weights([(name, mx.array(changed))], strict=False)
    return made


def distance(got: mx.array, wanted: np.ndarray) -> float:
    return float(np.abs(np.array(got.astype(mx.float32)) - wanted).max())


def media_model(variant: str, dtype: mx.Dtype = mx.float32) -> Model:
    """A model that gets its towers when it needs them."""
    model = fresh_model(variant, load_tower=lambda kind: tower(variant, kind, dtype))
    model.set_dtype(dtype)
    return model


def features(model: Model, variant: str) -> dict[str, list[mx.array]]:
    """What the model makes of all inputs, by the names of embed_media's arguments."""
    return {
        "images": [model.image_features(*image) for image in images(variant)],
        "sounds": [model.audio_features(clip) for clip in clips(variant)],
        "videos": [model.image_features(*frame) for frame in frames(variant)],
    }
