"""The tensors of the released Gemma 4 checkpoints: every name and shape, from the config alone.

For E4B these are the 2,130 of Google's file, dead key and value weights of KV-shared layers
included. It says what a source should hold; what one does hold is `inventory`'s to find.

Source: spec gemma4_architecture §4.1.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from ..gemma4.config import Gemma4Config
from ..gemma4.model import KEY_VALUE_PARTS, Model
from .checkpoint import TEXT, text_shapes

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]

_HERE = Path(__file__).parent.parent
_CONFIGS = (_HERE / "e4b_config.json", _HERE.parent / "tests" / "data" / "e4b_config.json")
_CLIPS = ("input_min", "input_max", "output_min", "output_max")
_VISION, _AUDIO = "model.vision_tower.", "model.audio_tower."
_MEL_BANDS = 128


def e4b_config() -> dict[str, Any]:
    """Return Gemma 4 E4B's config.json."""
    path = next(path for path in _CONFIGS if path.is_file())
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """List every tensor of a released checkpoint by name, with its shape.

    Raises: ConfigError for a config that is incomplete.
    """
    args = Gemma4Config.from_dict(config)
    model = Model(replace(args, quantization_config=None))
    shapes = text_shapes(model) | dead(args)
    if args.vision_config:
        shapes |= dict(_vision(args.vision_config, args.text_config.hidden_size))
    if args.audio_config:
        shapes |= dict(_audio(args.audio_config, args.text_config.hidden_size))
    return shapes


def dead(args: Gemma4Config) -> dict[str, Shape]:
    """List the key and value weights that released files carry for layers which borrow theirs."""
    text = args.text_config
    shapes: dict[str, Shape] = {}
    for index in range(text.first_shared, text.num_hidden_layers):
        layer = text.layer(index)
        wide = (layer.num_key_value_heads * layer.head_dim, text.hidden_size)
        for part in KEY_VALUE_PARTS:
            shape = (layer.head_dim,) if part == "k_norm" else wide
            shapes[f"{TEXT}layers.{index}.self_attn.{part}.weight"] = shape
    return shapes


def _clipped(prefix: str, out: int, into: int) -> Named:
    """A linear layer of a tower, whose input and output are clipped to ranges of its own."""
    yield f"{prefix}.linear.weight", (out, into)
    for clip in _CLIPS:
        yield f"{prefix}.{clip}", ()


def _vision(section: Mapping[str, Any], text_width: int) -> Named:
    H, wide, D = section["hidden_size"], section["intermediate_size"], section["head_dim"]
    patch = 3 * section["patch_size"] ** 2
    yield f"{_VISION}patch_embedder.input_proj.weight", (H, patch)
    table = (2, section["position_embedding_size"], H)
    yield f"{_VISION}patch_embedder.position_embedding_table", table
    for index in range(section["num_hidden_layers"]):
        layer = f"{_VISION}encoder.layers.{index}."
        for name in "qkvo":
            yield from _clipped(f"{layer}self_attn.{name}_proj", H, H)
        for name in ("gate", "up"):
            yield from _clipped(f"{layer}mlp.{name}_proj", wide, H)
        yield from _clipped(f"{layer}mlp.down_proj", H, wide)
        for name in ("q_norm", "k_norm"):
            yield f"{layer}self_attn.{name}.weight", (D,)
        for place, block in product(("pre", "post"), ("attention", "feedforward")):
            name = "input" if (place, block) == ("pre", "attention") else f"{place}_{block}"
            yield f"{layer}{name}_layernorm.weight", (H,)
    yield "model.embed_vision.embedding_projection.weight", (text_width, H)


def _audio(section: Mapping[str, Any], text_width: int) -> Named:
    H, out = section["hidden_size"], section["output_proj_dims"]
    first, second = section["subsampling_conv_channels"]
    convolutions = f"{_AUDIO}subsample_conv_projection."
    for index, (channels, into) in enumerate(((first, 1), (second, first))):
        yield f"{convolutions}layer{index}.conv.weight", (channels, into, 3, 3)
        yield f"{convolutions}layer{index}.norm.weight", (channels,)
    yield f"{convolutions}input_proj_linear.weight", (H, _MEL_BANDS // 4 * second)
    yield f"{_AUDIO}output_proj.weight", (out, H)
    yield f"{_AUDIO}output_proj.bias", (out,)
    for index in range(section["num_hidden_layers"]):
        yield from _conformer(section, f"{_AUDIO}layers.{index}.")
    yield "model.embed_audio.embedding_projection.weight", (text_width, out)


def _conformer(section: Mapping[str, Any], layer: str) -> Named:
    H = section["hidden_size"]
    for part in ("feed_forward1", "feed_forward2"):
        yield from _clipped(f"{layer}{part}.ffw_layer_1", 4 * H, H)
        yield from _clipped(f"{layer}{part}.ffw_layer_2", H, 4 * H)
        for place in ("pre", "post"):
            yield f"{layer}{part}.{place}_layer_norm.weight", (H,)
    for name in ("q_proj", "k_proj", "v_proj", "post"):
        yield from _clipped(f"{layer}self_attn.{name}", H, H)
    yield f"{layer}self_attn.relative_k_proj.weight", (H, H)
    yield f"{layer}self_attn.per_dim_scale", (H // section["num_attention_heads"],)
    yield from _clipped(f"{layer}lconv1d.linear_start", 2 * H, H)
    yield from _clipped(f"{layer}lconv1d.linear_end", H, H)
    yield f"{layer}lconv1d.depthwise_conv1d.weight", (H, 1, section["conv_kernel_size"])
    for name in ("lconv1d.pre_layer_norm", "lconv1d.conv_norm"):
        yield f"{layer}{name}.weight", (H,)
    for name in ("norm_pre_attn", "norm_post_attn", "norm_out"):
        yield f"{layer}{name}.weight", (H,)
