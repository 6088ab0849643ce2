#!/usr/bin/env python
"""Writes clips.json, clips.npz and the two processor files, with transformers' own Gemma 4.

clips holds what the video processor makes of the films of inputs.py: of each frame some patches as
whole numbers of 255, and digests. The files in processor/ are Gemma4Processor.save_pretrained's, of
a processor as it is by default and of one that differs in every setting that we read.

The video processor needs torchvision, of which Python code alone is called: torch does the work.

  pip install --no-deps torchvision==0.29.1
  python tests/data/media/make_reference_video.py   (torch 2.13.0, transformers 5.23.0, pillow
                                                     13.0.0, numpy 2.4.6, x86-64; no network)
"""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import torchvision_schemas  # noqa: F401  # before transformers

import torchvision
import transformers
from tokenizers import Tokenizer, models
from transformers import (
    Gemma4AudioFeatureExtractor,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma4 import video_processing_gemma4 as reference

from inputs import CLIPS, film

HERE = Path(__file__).parent
BUDGETS = reference._SUPPORTED_SOFT_TOKENS
MARKERS = {
    **{"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"},
    **{"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"},
}
OTHER = {
    "feature_extractor": Gemma4AudioFeatureExtractor(
        feature_size=64,
        sampling_rate=8000,
        frame_length_ms=32.0,
        hop_length_ms=16.0,
        min_frequency=50.0,
        max_frequency=3500.0,
        mel_floor=0.01,
    ),
    "image_processor": Gemma4ImageProcessor(
        patch_size=8, pooling_kernel_size=2, max_soft_tokens=560, rescale_factor=1 / 128
    ),
    "video_processor": Gemma4VideoProcessor(
        patch_size=4,
        pooling_kernel_size=5,
        max_soft_tokens=140,
        rescale_factor=1 / 64,
        num_frames=8,
    ),
    "audio_seq_length": 500,
}
DEFAULT = {
    "feature_extractor": Gemma4AudioFeatureExtractor(),
    "image_processor": Gemma4ImageProcessor(),
    "video_processor": Gemma4VideoProcessor(),
}


def digest(array, dtype):
    return hashlib.sha256(np.ascontiguousarray(array, dtype).tobytes()).hexdigest()[:32]


def clip(height, width, patch_size, pooling_kernel_size, budget):
    """One row of clips.json, and patches uint8 [frames, chosen, values]."""
    # A processor file's own budget; the reference checks against its five only.
    reference._SUPPORTED_SOFT_TOKENS = (*BUDGETS, budget)
    processor = Gemma4VideoProcessor(
        patch_size=patch_size, pooling_kernel_size=pooling_kernel_size, max_soft_tokens=budget
    )
    frames = film(height, width)
    found = processor([frames], do_sample_frames=False, return_tensors="np")
    tokens = int(found["num_soft_tokens_per_video"][0])
    count = tokens * pooling_kernel_size**2
    patches = found["pixel_values_videos"][:, :count]
    positions = found["video_position_ids"][:, :count]
    assert len(patches) == len(frames)
    chosen = [0, count // 3, count // 2, count - 1]
    whole = np.rint(patches[:, chosen] * 255)
    assert np.abs(whole - patches[:, chosen] * 255).max() < 1e-4
    row = {
        **{"height": height, "width": width, "max_soft_tokens": budget},
        **{"patch_size": patch_size, "pooling_kernel_size": pooling_kernel_size},
        **{"soft_tokens": tokens, "chosen": chosen},
        **{"patches": digest(patches, "<f4"), "positions": digest(positions, "<i4")},
    }
    return row, whole.astype(np.uint8)


def clips():
    made = [clip(*each) for each in CLIPS]
    made_with = {m.__name__: m.__version__ for m in (transformers, torch, torchvision, np)}
    lines = ",\n".join(json.dumps(row) for row, _ in made)
    text = f'{{"made_with": {json.dumps(made_with)},\n"rows": [\n{lines}\n]}}\n'
    (HERE / "clips.json").write_text(text)
    arrays = {str(number): array for number, (_, array) in enumerate(made)}
    np.savez_compressed(HERE / "clips.npz", **arrays)


def processors():
    vocabulary = {token: i for i, token in enumerate(["<unk>", *MARKERS.values()])}
    for name, parts in (("default", DEFAULT), ("other", OTHER)):
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, extra_special_tokens=MARKERS)
        with tempfile.TemporaryDirectory() as folder:
            Gemma4Processor(tokenizer=tokenizer, **parts).save_pretrained(folder)
            target = HERE / "processor" / name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder) / "processor_config.json", target)


if __name__ == "__main__":
    processors()
    clips()
