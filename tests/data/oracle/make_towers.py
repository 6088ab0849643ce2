#!/usr/bin/env python
"""Writes the towers' weights and reference arrays beside this file, with transformers' Gemma 4.

Two pairs of tiny towers stand before the text model of make_oracle.py, whose weights are read:
`clipped` as E4B's are, `standard` as 31B's image tower is, with every width, eps and cap another.
Images, clips and frames go in padded and in one batch, as transformers' processors make them.

  python tests/data/oracle/make_towers.py        (torch 2.13.0, transformers 5.23.0, pillow; no network)
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from make_oracle import (
    AUDIO,
    BOA,
    BOI,
    EOA,
    EOI,
    HERE,
    IMAGE,
    VIDEO,
    build_config,
    randomise,
)
from safetensors.numpy import load_file, save_file
from transformers import Gemma4ForConditionalGeneration

from variants import patches_of

KEPT = 8  # of a prompt's logits, the last ones
TEXT = {"clipped": {}, "standard": {"use_bidirectional_attention": "vision"}}
VISION = {
    "clipped": {"patch_size": 4, "position_embedding_size": 24},
    "standard": dict(
        hidden_size=32,
        intermediate_size=40,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        patch_size=2,
        pooling_kernel_size=2,
        position_embedding_size=16,
        rms_norm_eps=1e-2,
        rope_parameters={"rope_type": "axial", "rope_theta": 7.0},
        use_clipped_linears=False,
        standardize=True,
    ),
}
SOUND = {
    "clipped": {"subsampling_conv_channels": [16, 8]},
    "standard": dict(
        hidden_size=24,
        num_attention_heads=3,
        subsampling_conv_channels=[12, 5],
        conv_kernel_size=3,
        residual_weight=0.3,
        attention_chunk_size=7,
        attention_context_left=5,
        attention_logit_cap=2.0,
        rms_norm_eps=1e-2,
        output_proj_dims=20,
        use_clipped_linears=False,
    ),
}
# Rows and columns of pooled cells: the images, then the frames of the video.
GRIDS = ((2, 3), (4, 2)), ((2, 2),) * 3
FRAMES = (43, 22)  # of the clips; neither is a multiple of four


def draw_inputs(rng, config):
    """Images and frames as uint8 [rows, columns, 3], clips as mel frames [F, bins]."""
    vision, audio = config.vision_config, config.audio_config
    width = vision.patch_size * vision.pooling_kernel_size
    shapes = [(rows * width, columns * width, 3) for grids in GRIDS for rows, columns in grids]
    pictures = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    bins = audio.subsampling_conv_channels[0]
    clips = [rng.normal(size=(length, bins)).astype(np.float32) for length in FRAMES]
    return pictures, clips


def padded(pictures, vision):
    """A batch of pictures, padded as the processor does: zeros, at positions (-1, -1)."""
    made = [patches_of(picture, vision.patch_size) for picture in pictures]
    k = vision.pooling_kernel_size
    length = max(len(patches) for patches, _ in made) + 2 * k * k
    pixels = [np.pad(patches, ((0, length - len(patches)), (0, 0))) for patches, _ in made]
    places = [
        np.pad(positions, ((0, length - len(positions)), (0, 0)), constant_values=-1)
        for _, positions in made
    ]
    return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(places))


def batched(clips):
    """A batch of clips, the padding filled with what must not be read, and its mask."""
    length = max(map(len, clips)) + 3
    mel = [np.pad(clip, ((0, length - len(clip)), (0, 0)), constant_values=9) for clip in clips]
    mask = [np.arange(length) < len(clip) for clip in clips]
    return torch.from_numpy(np.stack(mel)), torch.from_numpy(np.stack(mask))


def image_ids(counts):
    runs = [[BOI, *[IMAGE] * count, EOI] for count in counts]
    return [2, 11, *runs[0], 12, *runs[1], 13, 14]


def audio_ids(counts):
    runs = [[BOA, *[AUDIO] * count, EOA] for count in counts]
    return [2, 21, *runs[0], 22, *runs[1], 23]


def video_ids(counts):
    runs = [[40 + i, BOI, *[VIDEO] * count, EOI] for i, count in enumerate(counts)]
    return [2, *sum(runs, []), 31, 32]


@torch.no_grad()
def run(model, ids, **inputs):
    """The last logits of one prompt."""
    ids = torch.tensor([ids])
    types = (ids == IMAGE) * 1 + (ids == VIDEO) * 2 + (ids == AUDIO) * 3
    output = model(input_ids=ids, mm_token_type_ids=types, **inputs)
    return output.logits.numpy()[0, -KEPT:]


@torch.no_grad()
def reference(model, pictures, clips):
    """Features and logits of every kind of prompt, and the ids of each."""
    config = model.config
    images, frames = pictures[: len(GRIDS[0])], pictures[len(GRIDS[0]) :]
    pixels, places = padded(images, config.vision_config)
    video_pixels, video_places = padded(frames, config.vision_config)
    image = dict(pixel_values=pixels, image_position_ids=places)
    video = dict(
        pixel_values_videos=video_pixels,
        video_position_ids=video_places,
        num_frames_per_video=torch.tensor([len(frames)]),
    )
    image_rows = model.model.get_image_features(pixels, places, return_dict=True).pooler_output
    video_rows = model.model.get_image_features(video_pixels, video_places, return_dict=True)
    arrays = {
        "image_features": torch.cat(image_rows),
        "video_features": torch.cat(video_rows.pooler_output),
    }
    sounds = {}
    for order, chosen in (("audio", clips), ("reverse", clips[::-1])):
        mel, mask = batched(chosen)
        sounds[order] = dict(input_features=mel, input_features_mask=mask)
        made = model.model.get_audio_features(mel, mask, return_dict=True)
        arrays[f"{order}_features"] = made.pooler_output[made.attention_mask]
        counts = made.attention_mask.sum(1).tolist()
        arrays[f"{order}_ids"] = audio_ids(counts)
    arrays["image_ids"] = image_ids([len(rows) for rows in image_rows])
    arrays["video_ids"] = video_ids([len(rows) for rows in video_rows.pooler_output])
    arrays["all_ids"] = [*arrays["image_ids"], *arrays["reverse_ids"][1:], *arrays["video_ids"][1:]]
    inputs = {"image": image, "video": video, **sounds, "all": image | video | sounds["reverse"]}
    for prompt, given in inputs.items():
        arrays[f"{prompt}_logits"] = run(model, arrays[f"{prompt}_ids"], **given)
    return {name: np.asarray(array) for name, array in arrays.items()}


def main():
    text = load_file(HERE / "text.safetensors")
    weights, arrays = {}, {}
    for variant in TEXT:
        rng = np.random.default_rng(1)
        config = build_config(TEXT[variant], VISION[variant], SOUND[variant])
        model = Gemma4ForConditionalGeneration(config).eval()
        randomise(model)
        model.load_state_dict({k: torch.from_numpy(v) for k, v in text.items()}, strict=False)
        model.tie_weights()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            settings = json.loads((Path(folder) / "config.json").read_text())
            saved = load_file(Path(folder) / "model.safetensors")
        text_form = json.dumps(settings, indent=1, sort_keys=True)
        (HERE / f"{variant}.json").write_text(text_form + "\n")
        towers = {k: v for k, v in saved.items() if not k.startswith("model.language_model.")}
        weights |= {f"{variant}/{name}": tower for name, tower in towers.items()}
        pictures, clips = draw_inputs(rng, config)
        made = reference(model, pictures, clips)
        made |= {f"picture{i}": picture for i, picture in enumerate(pictures)}
        made |= {f"clip{i}": clip for i, clip in enumerate(clips)}
        arrays |= {f"{variant}_{name}": array for name, array in made.items()}
    save_file(weights, HERE / "towers.safetensors")
    np.savez_compressed(HERE / "tower_arrays.npz", **arrays)
    for name, array in arrays.items():
        print(name, array.shape, float(np.abs(array).max()))


if __name__ == "__main__":
    main()
