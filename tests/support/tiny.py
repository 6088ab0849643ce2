"""A tiny Gemma 4 on disk: a 16-bit repository, and HLWQ variants of any mixture beside it.

The published layout is written here from the codec alone, so that what reads it is not tested
against its own writer.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

import hlwq_mlx
from hlwq_mlx.gemma4.model import Model, ModelArgs, Resources
from hlwq_mlx.quant import codec
from hlwq_mlx.quant.packing import BLOCK, BitOrder, pack
from hlwq_mlx.quant.tables import centroids

Weights = dict[str, np.ndarray]
Rule = Callable[[str, tuple[int, ...]], int | None]

TEXT = "model.language_model."
ROWS = f"{TEXT}embed_tokens_per_layer.weight"
EMBEDDING = f"{TEXT}embed_tokens.weight"
AUDIO = "model.audio_tower.layers.0.self_attn.q_proj.linear.weight"
VISION = "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight"
SHARED_LAYERS = (2, 3)
SIDE_FILES = ("tokenizer.json", "chat_template.jinja", "generation_config.json")
_STACK = re.compile(r"(\.experts\.\w+_proj)\.weight$")
DEMO = Path(hlwq_mlx.__file__).parent / "demo"


def config(even: bool = True) -> dict[str, Any]:
    """A config.json; when not `even`, no matrix has whole blocks of 128 columns."""
    H, heads, d = (128, 2, 64) if even else (96, 3, 24)
    text = {
        "model_type": "gemma4_text",
        "vocab_size": 320,
        "vocab_size_per_layer_input": 320,
        "hidden_size": H,
        "hidden_size_per_layer_input": d,
        "intermediate_size": 256 if even else 200,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": len(SHARED_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
        "num_global_key_value_heads": None,
        "head_dim": 64 if even else 16,
        "global_head_dim": 128 if even else 32,
        "attention_k_eq_v": False,
        "use_double_wide_mlp": False,
        "use_bidirectional_attention": None,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": 1000000.0,
                "partial_rotary_factor": 0.25,
            },
        },
        "sliding_window": 8,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 30.0,
        "pad_token_id": 0,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "enable_moe_block": False,
    }
    return {"model_type": "gemma4", "text_config": text, "eos_token_id": [1, 106]}


def dense_config() -> dict[str, Any]:
    """A config.json like 31B's: no rows, nothing shared, and keys that are values."""
    settings = config()
    settings["text_config"] |= {
        **{"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
        **{"attention_k_eq_v": True, "num_global_key_value_heads": 1},
        "use_bidirectional_attention": "vision",
    }
    return settings


def experts_config() -> dict[str, Any]:
    """A config.json like 26B-A4B's: with experts of no whole blocks."""
    settings = dense_config()
    settings["text_config"] |= {
        **{"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2},
        "moe_intermediate_size": 176,
    }
    return settings


def unified_config() -> dict[str, Any]:
    """A config.json like 12B's: keys that it leaves out, and media without towers."""
    settings = dense_config()
    text = settings["text_config"]
    for key in ("hidden_size_per_layer_input", "vocab_size_per_layer_input", "enable_moe_block"):
        del text[key]
    text["model_type"] = "gemma4_unified_text"
    media = {"image": 300, "audio": 301, "video": 302}
    return settings | {
        **{f"{kind}_token_id": token for kind, token in media.items()},
        "model_type": "gemma4_unified",
        "vision_config": {"model_type": "gemma4_unified_vision", "mm_embed_dim": 48},
        "audio_config": {"model_type": "gemma4_unified_audio", "audio_embed_dim": 40},
    }


def dead_names(parts: Iterable[str] = ("k_proj", "v_proj", "k_norm")) -> list[str]:
    """The tensors of KV-shared layers that released files carry and nothing reads."""
    return [f"{TEXT}layers.{i}.self_attn.{part}.weight" for i in SHARED_LAYERS for part in parts]


def make_weights(
    settings: dict[str, Any], has_dead: bool = True, has_towers: bool = True
) -> Weights:
    """Draw every tensor of a released checkpoint, as float32 that bfloat16 holds exactly."""
    rng = np.random.default_rng(7)
    model = Model(ModelArgs.from_dict(settings))
    shapes = {name: array.shape for name, array in tree_flatten(model.parameters())}
    text = model.args.text_config
    width = text.num_hidden_layers * text.hidden_size_per_layer_input
    if width:
        shapes[ROWS] = (text.vocab_size_per_layer_input, width)
    # As files have them: a stack of experts has no suffix.
    shapes = {_STACK.sub(r"\1", name): shape for name, shape in shapes.items()}
    if has_dead:
        shapes |= {
            name: shapes[name.replace(f"layers.{i}", f"layers.{i - 2}")]
            for name in dead_names()
            for i in SHARED_LAYERS
            if f"layers.{i}." in name
        }
    if has_towers:
        shapes |= {AUDIO: (48, 200), VISION: (32, 48), "model.embed_audio.scale": ()}
        shapes["model.audio_tower.subsample.conv.weight"] = (4, 1, 3, 3)
    weights = {}
    for name, shape in shapes.items():
        draw = rng.standard_normal(shape).astype(np.float32)
        weights[name] = 1 + draw / 8 if len(shape) < 2 else draw / np.sqrt(shape[-1])
    return {name: as_float(as_bfloat16(weight)) for name, weight in weights.items()}


def as_bfloat16(weight: np.ndarray) -> mx.array:
    whole = np.ascontiguousarray(weight, dtype=np.float32)
    return mx.array(whole.reshape(weight.shape)).astype(mx.bfloat16)  # a scalar stays one


def as_float(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


def save_plain(path: Path, weights: Weights) -> None:
    """Write tensors as bfloat16."""
    tensors = {name: as_bfloat16(weight) for name, weight in weights.items()}
    mx.save_safetensors(str(path), tensors, {"format": "pt"})


def write_root(
    root: Path, settings: dict[str, Any], side_files: Iterable[str] = SIDE_FILES
) -> Path:
    """Write a repository's config and side files."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text(json.dumps(settings))
    for name in side_files:
        shutil.copyfile(DEMO / name, root / name)
    return root


@cache
def encode(
    raw: bytes, shape: tuple[int, int], bits: int, table: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Code a matrix, once for all tests, and return codes, norms and decoded values."""
    weight = np.frombuffer(raw, dtype=np.float32).reshape(shape)
    codes, norms = codec.encode(weight, centroids(table, bits))
    decoded = codec.decode(codes, norms, centroids(table, bits))
    return codes, norms, decoded[:, : shape[1]]


def publish(
    folder: Path,
    weights: Weights,
    rule: Rule,
    table: str = "clip4_100",
    order: BitOrder = "msb",
) -> Weights:
    """Write a variant's two files and return what they decode to, exactly."""
    folder.mkdir(parents=True)
    parts: dict[str, np.ndarray] = {}
    decoded: Weights = {}
    for name, weight in weights.items():
        bits = rule(name, weight.shape)
        if bits is None:
            continue
        matrix = (int(np.prod(weight.shape[:-1])), weight.shape[-1])
        codes, norms, values = encode(weight.tobytes(), matrix, bits, table)
        key = name.replace(".", "__")
        N, blocks = norms.shape
        parts[f"{key}__packed"] = pack(codes, bits, order)
        parts[f"{key}__norms"] = norms
        parts[f"{key}__meta"] = np.array([N, blocks, BLOCK, codes.size])
        decoded[name] = values.reshape(weight.shape)
    save_file(parts, folder / "codes.safetensors")
    plain = {name: weight for name, weight in weights.items() if name not in decoded}
    save_plain(folder / "bf16.safetensors", plain)
    return plain | decoded


def pure(bits: int) -> Rule:
    """The publisher's rule: matrices but for embeddings, gates, per-layer and vision ones.

    Nobody has published experts; we code them.
    """
    left_out = ("norm", "embed", "gate", "per_layer", "vision", "router")

    def rule(name: str, shape: tuple[int, ...]) -> int | None:
        is_matrix = len(shape) == 2 and not any(part in name for part in left_out)
        return bits if is_matrix or (".experts." in name and len(shape) == 3) else None

    return rule


def mixed(name: str, shape: tuple[int, ...]) -> int | None:
    """PQ2-Mixed: the text model's MLP at 2 bits, its attention at 4."""
    if not name.startswith(TEXT) or len(shape) != 2:
        return None
    return 2 if ".mlp." in name else 4 if ".self_attn." in name else None


def all_coded(name: str, shape: tuple[int, ...]) -> int | None:
    """Every matrix, each class at a width of its own, embeddings and row table too."""
    widths = {"embed_tokens.": 6, "embed_tokens_per_layer": 8, "gate_proj": 3, "up_proj": 5}
    widths |= {"down_proj": 7, "self_attn": 4, "per_layer": 1}
    if len(shape) != (3 if "experts" in name else 2):
        return None
    return next((bits for part, bits in widths.items() if part in name), 2)


def logits(model: Model, ids: Iterable[int] = range(2, 30)) -> np.ndarray:
    return np.array(model(mx.array([list(ids)])))


def dense_model(settings: dict[str, Any], weights: Weights) -> Model:
    """A model without a coded tensor, of the float32 weights given."""
    arrays = {name: mx.array(weight) for name, weight in weights.items()}
    table = arrays.pop(ROWS, None)
    rows = {} if table is None else {"rows": lambda ids: table[mx.array(ids)]}
    model = Model(ModelArgs.from_dict(settings), Resources(**rows))
    model.load_weights(list(model.sanitize(arrays).items()), strict=True)
    return model
