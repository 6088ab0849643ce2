#!/usr/bin/env python
"""Writes the reference arrays beside this file, with the transformers implementation of Gemma 4.

A tiny random model with E4B's structure (both layer types, KV sharing, per-layer embeddings, soft
tokens, a window shorter than the text) is run as variants that share one set of weights, so
that only one set is stored; variants.py derives the weights of the others from it. Everything
that a fresh model holds constant (norm weights, layer_scalar, ...) is randomised, so that leaving
it out shows.

  python tests/data/oracle/make_oracle.py        (torch 2.13.0, transformers 5.23.0, pillow; no network)
"""

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import torchvision_schemas  # noqa: F401  # before transformers

from safetensors.numpy import load_file, save_file
from transformers import (
    Gemma4AudioConfig,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4UnifiedAudioConfig,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedTextConfig,
    Gemma4UnifiedVisionConfig,
    Gemma4VisionConfig,
)

from variants import UNIFIED, VARIANTS, derive

HERE = Path(__file__).parent
IMAGE, AUDIO, VIDEO, BOI, EOI, BOA, EOA = 300, 301, 302, 303, 304, 305, 306
SOFT = (IMAGE, VIDEO, AUDIO)


PER_LAYER = ("hidden_size_per_layer_input", "vocab_size_per_layer_input")
TOKENS = dict(
    image_token_id=IMAGE,
    audio_token_id=AUDIO,
    video_token_id=VIDEO,
    boi_token_id=BOI,
    eoi_token_id=EOI,
    boa_token_id=BOA,
    eoa_token_index=EOA,
)


def text_settings(changes):
    sliding, full = "sliding_attention", "full_attention"
    text = dict(
        vocab_size=320,
        vocab_size_per_layer_input=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        global_head_dim=32,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=3,
        sliding_window=6,
        layer_types=[sliding, sliding, full, sliding, full, sliding, sliding, full],
        final_logit_softcapping=30.0,
        max_position_embeddings=4096,
        rope_parameters={
            full: {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1_000_000.0,
            },
            sliding: {"rope_type": "default", "rope_theta": 10_000.0},
        },
    )
    return {**text, **changes}


def build_unified_config():
    text = text_settings(UNIFIED)
    config = Gemma4UnifiedConfig(
        text_config=Gemma4UnifiedTextConfig(
            **{key: value for key, value in text.items() if key not in PER_LAYER}
        ),
        vision_config=Gemma4UnifiedVisionConfig(
            mm_embed_dim=48, mm_posemb_size=16, patch_size=4, pooling_kernel_size=2, output_proj_dims=64
        ),
        audio_config=Gemma4UnifiedAudioConfig(audio_embed_dim=40),
        **TOKENS,
    )
    config._attn_implementation = "eager"
    return config


def build_config(text_changes, vision_changes=(), audio_changes=()):
    vision = dict(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=16,
        patch_size=16,
        pooling_kernel_size=3,
        position_embedding_size=256,
        use_clipped_linears=True,
        standardize=False,
    )
    audio = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        subsampling_conv_channels=[128, 4],
        conv_kernel_size=5,
        attention_chunk_size=4,
        attention_context_left=5,
        attention_context_right=0,
        output_proj_dims=24,
        use_clipped_linears=True,
    )
    config = Gemma4Config(
        text_config=Gemma4TextConfig(**text_settings(text_changes)),
        vision_config=Gemma4VisionConfig(**{**vision, **dict(vision_changes)}),
        audio_config=Gemma4AudioConfig(**{**audio, **dict(audio_changes)}),
        **TOKENS,
    )
    config._attn_implementation = "eager"
    return config


@torch.no_grad()
def randomise(model):
    generator = torch.Generator().manual_seed(0)

    def normal(tensor, scale=1.0):
        return torch.randn(tensor.shape, generator=generator) * scale

    constants = ("inv_freq", "embed_scale", "inv_timescales", "softcap")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if any(constant in name for constant in constants):
            continue
        if name.endswith(("input_min", "output_min")):
            tensor.copy_(-(1.0 + torch.rand(tensor.shape, generator=generator)))
        elif name.endswith(("input_max", "output_max")):
            tensor.copy_(1.0 + torch.rand(tensor.shape, generator=generator))
        elif name.endswith("layer_scalar"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif "norm" in name and name.endswith("weight"):
            tensor.copy_(1.0 + normal(tensor, 0.2))
        elif "per_dim_scale" in name:
            tensor.copy_(normal(tensor, 0.5))
        elif "position_embedding_table" in name or "embed_tokens" in name:
            tensor.copy_(normal(tensor, 0.3))
        elif tensor.ndim >= 2:
            tensor.copy_(normal(tensor, 1.2 / max(int(np.prod(tensor.shape[1:])), 1) ** 0.5))
        else:
            tensor.copy_(normal(tensor, 0.2))
    model.tie_weights()


def saved(model):
    """The config and the text model's tensors, as transformers writes them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(Path(folder) / "model.safetensors")
        config = json.loads((Path(folder) / "config.json").read_text())
    return config, {k: v for k, v in weights.items() if k.startswith("model.language_model.")}


def build(variant, plain):
    """The variant's model holding the weights that variants.derive makes from the plain ones."""
    return fill(Gemma4ForConditionalGeneration(build_config(VARIANTS[variant])), variant, plain)


def fill(model, variant, plain):
    """Give a model the weights that variants.derive makes."""
    derived = {k: torch.from_numpy(v) for k, v in derive(variant, plain).items()}
    wanted = {k: v.shape for k, v in saved(model)[1].items()}
    if wanted != {k: v.shape for k, v in derived.items()}:
        raise SystemExit(f"variants.derive({variant!r}) does not make this variant's tensors")
    model.load_state_dict(derived, strict=False)
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def text_logits(model, ids):
    return model(input_ids=torch.from_numpy(ids)).logits.numpy()


@torch.no_grad()
def mixed_logits(model, ids, features):
    """Logits of a sequence whose soft tokens are `features`, in the order of the positions."""
    soft = {kind: torch.from_numpy(features[ids[0][np.isin(ids[0], SOFT)] == kind]) for kind in SOFT}
    model.model.get_audio_features = lambda *_, **__: SimpleNamespace(
        pooler_output=soft[AUDIO][None], attention_mask=torch.ones(1, len(soft[AUDIO])).bool()
    )
    types = (ids == IMAGE) * 1 + (ids == VIDEO) * 2 + (ids == AUDIO) * 3
    output = model(
        input_ids=torch.from_numpy(ids),
        mm_token_type_ids=torch.from_numpy(types),
        mm_encoder_outputs={
            "image": SimpleNamespace(pooler_output=[soft[IMAGE]]),
            "video": SimpleNamespace(pooler_output=[soft[VIDEO]]),
        },
        input_features=torch.zeros(1),
        input_features_mask=torch.zeros(1),
    )
    return output.logits.numpy()


def main():
    rng = np.random.default_rng(0)
    text = rng.integers(3, 290, size=(1, 22))
    mixed = [2, 11, 12, BOI, *[IMAGE] * 10, EOI, 13, BOI, *[IMAGE] * 4, *[VIDEO] * 5, EOI, 14]
    mixed = np.array([[*mixed, BOA, *[AUDIO] * 5, EOA, 15, 16]])
    # As large as this model's scaled token embeddings: 0.3 * sqrt(64).
    features = rng.normal(scale=2.4, size=(np.isin(mixed, SOFT).sum(), 64)).astype(np.float32)

    torch.manual_seed(0)
    model = Gemma4ForConditionalGeneration(build_config({})).eval()
    randomise(model)
    _, plain = saved(model)
    save_file(plain, HERE / "text.safetensors")
    arrays = {"text_ids": text, "mixed_ids": mixed, "features": features}
    for variant in VARIANTS:
        model = build(variant, plain)
        config, _ = saved(model)
        (HERE / f"{variant}.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        arrays[f"{variant}_text_logits"] = text_logits(model, text)
        arrays[f"{variant}_mixed_logits"] = mixed_logits(model, mixed, features)
    model = fill(Gemma4UnifiedForConditionalGeneration(build_unified_config()), "unshared", plain)
    config, _ = saved(model)
    (HERE / "unified.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    arrays["unified_text_logits"] = text_logits(model, text)
    np.savez_compressed(HERE / "arrays.npz", **arrays)
    for name, array in arrays.items():
        print(name, array.shape, float(np.abs(array).max()))


if __name__ == "__main__":
    main()
