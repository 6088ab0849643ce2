"""The oracle's variants of one tiny model: what each changes in the text config and the weights.

All variants are derived from one stored set of tensors, so that only that one is committed.
"""

import re

import numpy as np

PREFIX = "model.language_model.layers."
FULL_LAYERS = (2, 4, 7)
SHARED_LAYERS = (5, 6, 7)
HEAD_DIM = 32

VARIANTS = {
    "plain": {},
    "k_eq_v": {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "bidirectional": {"use_bidirectional_attention": "vision"},
    "double_wide": {"use_double_wide_mlp": True},
}


def derive(variant: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The variant's tensors under the same names, made from the plain model's."""
    weights = dict(weights)
    if variant == "k_eq_v":
        for i in FULL_LAYERS[:2]:
            del weights[f"{PREFIX}{i}.self_attn.v_proj.weight"]
            name = f"{PREFIX}{i}.self_attn.k_proj.weight"
            weights[name] = weights[name][:HEAD_DIM]
    if variant == "double_wide":
        wide = re.compile(rf"{re.escape(PREFIX)}[{''.join(map(str, SHARED_LAYERS))}]\.mlp\.(\w+)_")
        for name, weight in weights.items():
            if match := wide.match(name):
                axis = 1 if match[1] == "down" else 0
                weights[name] = np.concatenate([weight, 0.25 * np.flip(weight, (0, 1))], axis)
    return {name: np.ascontiguousarray(weight) for name, weight in weights.items()}


def patches_of(picture: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches [P, 3*p*p] in [0, 1] of uint8 [rows, columns, 3]; positions [P, 2], column first."""
    rows, columns = picture.shape[0] // p, picture.shape[1] // p
    cut = picture.reshape(rows, p, columns, p, 3).transpose(0, 2, 1, 3, 4)
    positions = [(x, y) for y in range(rows) for x in range(columns)]
    return cut.reshape(rows * columns, -1) / np.float32(255), np.array(positions)
