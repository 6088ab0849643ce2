"""The oracle's variants of one tiny model: what each changes in the text config and the weights.

All variants are derived from one stored set of tensors, so that only that one is committed.
"""

import re

import numpy as np

PREFIX = "model.language_model.layers."
FULL_LAYERS = (2, 4, 7)
SHARED_LAYERS = (5, 6, 7)
HEAD_DIM = 32
# Of the layers whose keys and values the shared layers' are made of, where none are shared.
DONORS = {5: 1, 6: 3, 7: 4}
EXPERTS, EXPERT_WIDTH = 6, 24
# The text model of 12B and 31B; with experts that of 26B-A4B.
UNSHARED = {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "use_bidirectional_attention": "vision",
}

VARIANTS = {
    "plain": {},
    "k_eq_v": {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "bidirectional": {"use_bidirectional_attention": "vision"},
    "double_wide": {"use_double_wide_mlp": True},
    "unshared": UNSHARED,
    "experts": UNSHARED
    | {
        "enable_moe_block": True,
        "num_experts": EXPERTS,
        "top_k_experts": 2,
        "moe_intermediate_size": EXPERT_WIDTH,
    },
}
# 12B's has classes of its own, and the weights of "unshared".
UNIFIED = {key: value for key, value in UNSHARED.items() if "per_layer" not in key}


def derive(variant: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The variant's tensors under the same names, made from the plain model's."""
    weights = dict(weights)
    if variant in ("unshared", "experts"):
        weights = unshared(weights)
    if VARIANTS.get(variant, {}).get("attention_k_eq_v"):  # towers have variants of their own
        for i in FULL_LAYERS[:2] if variant == "k_eq_v" else FULL_LAYERS:
            del weights[f"{PREFIX}{i}.self_attn.v_proj.weight"]
            name = f"{PREFIX}{i}.self_attn.k_proj.weight"
            weights[name] = weights[name][:HEAD_DIM]
    if variant == "experts":
        for i in range(8):
            weights |= experts(f"{PREFIX}{i}.", weights)
    if variant == "double_wide":
        wide = re.compile(rf"{re.escape(PREFIX)}[{''.join(map(str, SHARED_LAYERS))}]\.mlp\.(\w+)_")
        for name, weight in weights.items():
            if match := wide.match(name):
                axis = 1 if match[1] == "down" else 0
                weights[name] = np.concatenate([weight, 0.25 * np.flip(weight, (0, 1))], axis)
    return {name: np.ascontiguousarray(weight) for name, weight in weights.items()}


def unshared(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without per-layer inputs, and with keys and values in every layer."""
    weights = {name: weight for name, weight in weights.items() if "per_layer" not in name}
    for layer, donor in DONORS.items():
        for part in ("k_proj", "v_proj", "k_norm"):
            weight = weights[f"{PREFIX}{donor}.self_attn.{part}.weight"]
            weights[f"{PREFIX}{layer}.self_attn.{part}.weight"] = np.flip(weight)
    return weights


def experts(layer: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A router and experts of one layer, cut out of its dense MLP."""

    def cut(part: str, axis: int) -> np.ndarray:
        weight = weights[f"{layer}mlp.{part}_proj.weight"]
        turned = [np.roll(weight, 16 * e, axis) for e in range(EXPERTS)]
        return np.stack([each.take(range(EXPERT_WIDTH), axis) for each in turned])

    norms = {
        "post_feedforward_layernorm_1": "pre_feedforward_layernorm",
        "pre_feedforward_layernorm_2": "post_attention_layernorm",
        "post_feedforward_layernorm_2": "post_feedforward_layernorm",
    }
    made = {f"{n}.weight": np.flip(weights[f"{layer}{of}.weight"]) for n, of in norms.items()}
    made |= {
        "experts.gate_up_proj": np.concatenate([cut("gate", 0), cut("up", 0)], axis=1),
        "experts.down_proj": 2 * cut("down", 1),
        "router.proj.weight": 8 * weights[f"{layer}mlp.gate_proj.weight"][5::16],
        "router.scale": weights[f"{layer}input_layernorm.weight"],
        "router.per_expert_scale": weights[f"{layer}self_attn.q_norm.weight"][:EXPERTS],
    }
    return {f"{layer}{name}": weight for name, weight in made.items()}


def patches_of(picture: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches [P, 3*p*p] in [0, 1] of uint8 [rows, columns, 3]; positions [P, 2], column first."""
    rows, columns = picture.shape[0] // p, picture.shape[1] // p
    cut = picture.reshape(rows, p, columns, p, 3).transpose(0, 2, 1, 3, 4)
    positions = [(x, y) for y in range(rows) for x in range(columns)]
    return cut.reshape(rows * columns, -1) / np.float32(255), np.array(positions)
