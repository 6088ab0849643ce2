"""The demo model: a small Gemma 4 with every feature on, first for text, then with its senses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma4AudioConfig,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4VisionConfig,
)
from transformers.models.gemma4.modeling_gemma4 import Gemma4ClippableLinear

from hlwq_mlx.media.processor import ImageSettings, Processor, SoundSettings, VideoSettings
from scripts.training.demo_tokenizer import IDS, VOCABULARY, write_tokenizer

SEED = 2026
POST_NORM = 0.25
LAYER_SCALAR = 0.95
LAYER_TYPES = "s s f s f s f"
NAMES = {"s": "sliding_attention", "f": "full_attention"}
ROPE = {
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1_000_000.0,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
SHARED_LAYERS = 2
STOP_IDS = [IDS["<eos>"], IDS["<turn|>"], IDS["<|tool_response>"]]
PROCESSOR = Processor(
    ImageSettings(patch_size=4, pooling_kernel_size=2, max_soft_tokens=16),
    SoundSettings(feature_size=64),
    VideoSettings(patch_size=4, pooling_kernel_size=2, max_soft_tokens=9, num_frames=4),
)
# The share of activations that a clipped linear lets through untouched.
UNCLIPPED = 0.9995


def make_text_config() -> Gemma4TextConfig:
    """Build the text part: every feature of the text model, all widths times 128."""
    layer_types = [NAMES[letter] for letter in LAYER_TYPES.split()]
    return Gemma4TextConfig(
        vocab_size=VOCABULARY,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size=128,
        hidden_size_per_layer_input=128,
        intermediate_size=384,
        num_hidden_layers=len(layer_types),
        num_kv_shared_layers=SHARED_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        global_head_dim=64,
        attention_k_eq_v=False,
        sliding_window=64,
        layer_types=layer_types,
        final_logit_softcapping=30.0,
        use_double_wide_mlp=False,
        max_position_embeddings=4096,
        rope_parameters=ROPE,
    )


def make_vision_config() -> Gemma4VisionConfig:
    return Gemma4VisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        patch_size=PROCESSOR.image.patch_size,
        pooling_kernel_size=PROCESSOR.image.pooling_kernel_size,
        position_embedding_size=64,
        use_clipped_linears=True,
        standardize=True,
    )


def make_audio_config() -> Gemma4AudioConfig:
    """Build the sound part.

    The reference needs as many first channels as mel bins, and a chunk of one less than the left
    context.
    """
    return Gemma4AudioConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        subsampling_conv_channels=[PROCESSOR.sound.feature_size, 16],
        attention_chunk_size=8,
        attention_context_left=9,
        attention_context_right=0,
        use_clipped_linears=True,
        output_proj_dims=128,
    )


def make_config(
    text: Gemma4TextConfig,
    vision: Gemma4VisionConfig | None = None,
    audio: Gemma4AudioConfig | None = None,
) -> Gemma4Config:
    """Put the parts together, with the tokenizer's ids for media."""
    config = Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        image_token_id=IDS["<|image|>"],
        audio_token_id=IDS["<|audio|>"],
        video_token_id=IDS["<|video|>"],
        boi_token_id=IDS["<|image>"],
        eoi_token_id=IDS["<image|>"],
        boa_token_id=IDS["<|audio>"],
        eoa_token_index=IDS["<audio|>"],
    )
    config._attn_implementation = "sdpa"
    if audio is not None:  # its attention has this one implementation
        config.audio_config._attn_implementation = "eager"
    return config


@torch.no_grad()
def draw_model(config: Gemma4TextConfig) -> Gemma4ForConditionalGeneration:
    """Build an untrained text model.

    The reference's initial deviation of 0.02 is made for wide models: here it would leave a token's
    embedding far below what the post-norms add in every layer. So embeddings begin at unit size and
    post-norms small. Layer scalars are not 1, so that leaving them out shows.
    """
    torch.manual_seed(SEED)
    model = Gemma4ForConditionalGeneration(make_config(config))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        elif "post_" in name:
            parameter.fill_(POST_NORM)
    for layer in model.model.language_model.layers:
        layer.layer_scalar.fill_(LAYER_SCALAR)
    return model


@torch.no_grad()
def make_model() -> Gemma4ForConditionalGeneration:
    """Build the demo's untrained text model."""
    model = draw_model(make_text_config())
    text = model.model.language_model
    text.embed_tokens_per_layer.weight.normal_(std=text.config.hidden_size_per_layer_input**-0.5)
    return model


@torch.no_grad()
def add_senses(text: dict[str, torch.Tensor]) -> Gemma4ForConditionalGeneration:
    """Build the model with untrained towers around trained text weights.

    A soft token begins as large as a token's scaled embedding.
    """
    torch.manual_seed(SEED)
    config = make_config(make_text_config(), make_vision_config(), make_audio_config())
    model = Gemma4ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        elif "post_" in name:
            parameter.fill_(POST_NORM)
    inner = model.model
    inner.vision_tower.patch_embedder.position_embedding_table.normal_(std=0.5)
    missing, unexpected = model.load_state_dict(text, strict=False)
    if unexpected or any("language_model" in name for name in missing):
        raise SystemExit(f"error: [text model] needed its tensors, got {missing=} {unexpected=}.")
    size = likenesses(model).square().mean().sqrt()
    for embedder in (inner.embed_vision, inner.embed_audio):
        embedder.embedding_projection.weight *= size
    return model


def likenesses(model: Gemma4ForConditionalGeneration) -> torch.Tensor:
    """Return what soft tokens are to resemble, as the decoder layers get embeddings: [11, D].

    The ten digits, and the end of an image where there is nothing to see.
    """
    ids = torch.tensor([IDS[piece] for piece in (*"0123456789", "<image|>")])
    return model.model.language_model.embed_tokens(ids).detach()


def sense_parameters(
    model: Gemma4ForConditionalGeneration,
) -> list[tuple[str, nn.Parameter]]:
    """List the parameters of towers and embedders."""
    return [item for item in model.named_parameters() if "language_model" not in item[0]]


@torch.no_grad()
def standardize(model: Gemma4ForConditionalGeneration, features: torch.Tensor) -> None:
    """Set the vision tower's standardization from pooled features [N, D]."""
    tower = model.model.vision_tower
    tower.std_bias.copy_(features.mean(0))
    tower.std_scale.copy_(1 / features.std(0))


class ClipCalibration:
    """Watches what goes through clipped linears, then sets their bounds from it."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: dict[Gemma4ClippableLinear, list[list[torch.Tensor]]] = {}
        self.hooks = []
        for module in model.modules():
            if isinstance(module, Gemma4ClippableLinear):
                self.seen[module] = []
                self.hooks.append(module.register_forward_hook(self._watch))

    def _watch(
        self, module: Gemma4ClippableLinear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        self.seen[module].append([self._bounds(inputs[0]), self._bounds(output)])

    @staticmethod
    def _bounds(values: torch.Tensor) -> torch.Tensor:
        """Return the smallest and largest value after the share of outliers is left out."""
        outside = (1 - UNCLIPPED) / 2
        values = values.detach().flatten().float()
        count = values.numel()
        low = values.kthvalue(max(1, round(outside * count))).values
        high = values.kthvalue(min(count, round((1 - outside) * count))).values
        return torch.stack([low, high])

    @torch.no_grad()
    def set_bounds(self) -> None:
        """Stop watching and set the bounds, as bfloat16 will hold them."""
        for hook in self.hooks:
            hook.remove()
        for module, batches in self.seen.items():
            inputs, outputs = (
                torch.stack([batch[side] for batch in batches]).mean(0).bfloat16().float()
                for side in (0, 1)
            )
            module.input_min.copy_(inputs[0])
            module.input_max.copy_(inputs[1])
            module.output_min.copy_(outputs[0])
            module.output_max.copy_(outputs[1])


def processor_config() -> dict[str, Any]:
    """Describe how media are prepared, in the form of the reference's Gemma4Processor.

    Its own classes refuse budgets that no released model has, so this is not saved by them.
    """
    image, sound, video = PROCESSOR.image, PROCESSOR.sound, PROCESSOR.video
    picture = {
        "do_convert_rgb": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "resample": 3,
    }
    return {
        "audio_ms_per_token": 40,
        "audio_seq_length": sound.max_soft_tokens,
        "feature_extractor": {
            "dither": 0.0,
            "feature_extractor_type": "Gemma4AudioFeatureExtractor",
            "feature_size": sound.feature_size,
            "fft_length": sound.fft_length,
            "fft_overdrive": False,
            "frame_length": sound.frame_length,
            "hop_length": sound.hop_length,
            "input_scale_factor": 1.0,
            "max_frequency": sound.max_frequency,
            "mel_floor": sound.mel_floor,
            "min_frequency": sound.min_frequency,
            "padding_side": "right",
            "padding_value": 0.0,
            "per_bin_mean": None,
            "per_bin_stddev": None,
            "preemphasis": 0.0,
            "preemphasis_htk_flavor": True,
            "return_attention_mask": True,
            "sampling_rate": sound.sampling_rate,
        },
        "image_processor": {
            **picture,
            **dataclasses.asdict(image),
            "do_normalize": False,
            "image_processor_type": "Gemma4ImageProcessor",
            "image_seq_length": image.max_soft_tokens,
        },
        "image_seq_length": image.max_soft_tokens,
        "processor_class": "Gemma4Processor",
        "video_processor": {
            **picture,
            **dataclasses.asdict(video),
            "do_normalize": True,
            "do_sample_frames": True,
            "return_metadata": False,
            "video_processor_type": "Gemma4VideoProcessor",
        },
    }


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_checkpoint(model: Gemma4ForConditionalGeneration, folder: Path) -> None:
    """Write the trained model as a bf16 transformers folder with tokenizer and template."""
    model.to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)
    if model.config.vision_config is not None:
        write_json(folder / "processor_config.json", processor_config())
    generation = {
        "bos_token_id": IDS["<bos>"],
        "pad_token_id": IDS["<pad>"],
        "eos_token_id": STOP_IDS,
    }
    write_json(folder / "generation_config.json", generation)
