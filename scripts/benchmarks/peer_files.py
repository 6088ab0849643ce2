"""What the contenders of `peers.py` load: one decoder of E4B's shape in every runtime's files.

Codes and weights are random, which no runtime's speed depends on. A file or folder that is there is
not made again.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from hlwq_mlx.folder import published
from hlwq_mlx.source import rules
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import leftovers
from hlwq_mlx.write.convert import convert
from scripts.benchmarks import make_fullsize
from scripts.benchmarks.formats import MIXTURES, Place, mixed_type

# Only ids below it are used, so that mlx-lm needs no more rows of the per-layer table in memory.
IDS = 4096
SMALL = {  # widths of a rehearsal; GGUF's superblocks are 256 wide
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "global_head_dim": 128,
}
CODED = ("mlp", "attention", "ple", "embedding")
POOL = 1 << 12
SCALE = np.float16(5e-4)


def config(layers: int, vocabulary: int, is_small: bool) -> dict[str, Any]:
    """Return E4B's config with few layers, of which the last is a full one, and no towers."""
    settings = published.e4b_config()
    for tower in ("vision_config", "audio_config"):
        settings.pop(tower)
    settings["text_config"] |= {
        "num_hidden_layers": layers,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention"] * (layers - 1) + ["full_attention"],
        "vocab_size": vocabulary,
        "vocab_size_per_layer_input": vocabulary,
        **(SMALL if is_small else {}),
    }
    for name, value in settings.items():
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            settings[name] = min(value, vocabulary - 1)
    return settings


def make(kind: str, name: str, settings: dict[str, Any], work: Path) -> Path:
    """Make what a contender of this kind loads, unless it is there, and return where it lies."""
    text = settings["text_config"]
    shape = f"{text['num_hidden_layers']}x{text['vocab_size']}"
    path = work / f"{kind}-{name}-{shape}"
    if not path.exists():
        partial = work / f"{kind}-{name}-{shape}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        MAKERS[kind](name, settings, partial)
        partial.rename(path)
    return path


def _make_coded(name: str, settings: dict[str, Any], folder: Path) -> None:
    """Write our own folder, all matrices coded at `name` bits."""
    rule = rules.class_rule(dict.fromkeys(CODED, int(name)))
    source = make_fullsize.make(folder / "source", f"PQ{name}", settings, rule)
    convert(Source(source, f"PQ{name}"), folder / "model", leftovers.KEEP)
    shutil.rmtree(folder / "source")


def _make_stock(name: str, settings: dict[str, Any], folder: Path) -> None:
    """Write mlx-lm's weights in float32, affine where `name` is a number of bits."""
    from mlx.utils import tree_flatten
    from safetensors.numpy import save_file

    from scripts.benchmarks.launches import unmade_stock_model

    bits = int(name) if name.isdigit() else None
    text = settings["text_config"]
    text = text | {"vocab_size_per_layer_input": min(text["vocab_size"], IDS)}
    settings = settings | {"text_config": text, "bits": bits}
    parameters = tree_flatten(unmade_stock_model(settings, bits, mx.float32).parameters())
    rng = np.random.default_rng(0)
    pools = {
        mx.uint32: rng.integers(0, 1 << 32, POOL, dtype=np.uint32),
        mx.float32: rng.standard_normal(POOL, dtype=np.float32) / 64,
    }
    folder.mkdir(parents=True)
    arrays = {key: np.resize(pools[array.dtype], array.shape) for key, array in parameters}
    save_file(arrays, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(settings))


def _make_gguf(name: str, settings: dict[str, Any], folder: Path) -> None:
    """Write a GGUF file of the types that llama.cpp's mixture `name` has, straight in codes."""
    from gguf import GGUFWriter

    text = settings["text_config"]
    folder.mkdir(parents=True)
    writer = GGUFWriter(str(folder / "model.gguf"), "gemma4")
    _describe(writer, text)
    add = _TensorWriter(writer)
    layers, hidden = text["num_hidden_layers"], text["hidden_size"]
    side = text["hidden_size_per_layer_input"]
    head, base = ("Q6_K", name.removesuffix("_M")) if name in MIXTURES else (name, name)
    add.coded("token_embd", (text["vocab_size"], hidden), head)
    add.coded("per_layer_token_embd", (text["vocab_size"], side * layers), head)
    add.coded("per_layer_model_proj", (side * layers, hidden), "BF16")
    add.ones("per_layer_proj_norm", side)
    add.ones("output_norm", hidden)
    width = text["global_head_dim"]
    turns = np.ones(width // 2, np.float32)
    turns[width // 8 :] = 1e30  # the quarter of a full layer's head that turns
    writer.add_tensor("rope_freqs.weight", turns)
    for layer, kind in enumerate(text["layer_types"]):
        block = f"blk.{layer}."
        full = kind == "full_attention"
        for part, shape in _shapes(text, text["global_head_dim" if full else "head_dim"]).items():
            place = Place(PARTS[part], layer, layers)
            add.coded(block + part, shape, mixed_type(name, place) if name in MIXTURES else base)
        for part in ("attn_q_norm", "attn_k_norm"):
            add.ones(block + part, text["global_head_dim" if full else "head_dim"])
        for part in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm"):
            add.ones(block + part, hidden)
        add.ones(f"{block}layer_output_scale", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


PARTS = {
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
    "inp_gate": "side",
    "proj": "side",
}


def _shapes(text: dict[str, Any], width: int) -> dict[str, tuple[int, int]]:
    """Return the matrices of a layer whose heads have this width, in GGUF's names."""
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    side = text["hidden_size_per_layer_input"]
    heads, pairs = text["num_attention_heads"] * width, text["num_key_value_heads"] * width
    return {
        "attn_q": (heads, hidden),
        "attn_k": (pairs, hidden),
        "attn_v": (pairs, hidden),
        "attn_output": (hidden, heads),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
        "inp_gate": (side, hidden),
        "proj": (hidden, side),
    }


def _describe(writer: Any, text: dict[str, Any]) -> None:
    """Write what GGUF says of a Gemma 4."""
    rope = {kind: each["rope_theta"] for kind, each in text["rope_parameters"].items()}
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_context_length(4096)
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_key_length(text["global_head_dim"])
    writer.add_value_length(text["global_head_dim"])
    writer.add_key_length_swa(text["head_dim"])
    writer.add_value_length_swa(text["head_dim"])
    writer.add_sliding_window(text["sliding_window"])
    writer.add_sliding_window_pattern([each != "full_attention" for each in text["layer_types"]])
    writer.add_shared_kv_layers(0)
    writer.add_embedding_length_per_layer_input(text["hidden_size_per_layer_input"])
    writer.add_rope_freq_base(rope["full_attention"])
    writer.add_rope_freq_base_swa(rope["sliding_attention"])
    writer.add_rope_dimension_count(text["global_head_dim"])
    writer.add_rope_dimension_count_swa(text["head_dim"])
    writer.add_final_logit_softcapping(text["final_logit_softcapping"])
    writer.add_vocab_size(text["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


class _TensorWriter:
    """Adds tensors to a GGUF file: random codes, and ones."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._rng = np.random.default_rng(0)

    def coded(self, name: str, shape: tuple[int, int], kind: str) -> None:
        """Add a matrix [N, K] of random codes, whose scales are small."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        own = GGMLQuantizationType[kind]
        block, block_bytes = GGML_QUANT_SIZES[own]
        N, K = shape
        pool = self._blocks(kind, block_bytes)
        codes = np.resize(pool, (N * K // block, block_bytes)).reshape(N, -1)
        self._writer.add_tensor(f"{name}.weight", codes, raw_dtype=own)

    def ones(self, name: str, width: int) -> None:
        """Add a vector of ones."""
        self._writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))

    def _blocks(self, kind: str, block_bytes: int) -> NDArray[np.uint8]:
        blocks = self._rng.integers(0, 256, (POOL, block_bytes), dtype=np.uint8)
        if kind == "BF16":
            weights = self._rng.standard_normal(POOL, dtype=np.float32) / 64
            return (weights.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(-1, 2)
        scale = np.frombuffer(SCALE.tobytes(), np.uint8)
        if kind == "Q6_K":  # codes, scales, then what scales those
            blocks[:, 192:208] &= 0x1F
            blocks[:, 208:210] = scale
        else:
            blocks[:, :2] = scale
            if kind in ("Q4_K", "Q5_K"):
                blocks[:, 2:4] = scale
        return blocks


MAKERS: dict[str, Callable[[str, dict[str, Any], Path], None]] = {
    "ours": _make_coded,
    "mlx-lm": _make_stock,
    "llama.cpp": _make_gguf,
}
