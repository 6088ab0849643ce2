#!/usr/bin/env python
"""Writes the .json files beside this one, with transformers' own processors of Gemma 4.

images.json holds sha256 digests of patches and positions, sound.json of some log-mel frames and
their count, video.json frame indices and stamps; inputs.py makes what they are computed from.

  python tests/data/media/make_media.py     (torch 2.13.0, transformers 5.23.0, pillow 13.0.0,
                                             numpy 2.4.6, x86-64; no network)
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import PIL

sys.path.insert(0, str(Path(__file__).parents[1]))
import torchvision_schemas  # noqa: F401  # before transformers

import transformers
from PIL import Image
from transformers import Gemma4AudioFeatureExtractor
from transformers.models.gemma4 import image_processing_pil_gemma4 as reference
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from inputs import (
    IMAGE_SIZES,
    SMALL_GRIDS,
    SMALL_SIZES,
    SOUND_LENGTHS,
    VIDEO_LENGTHS,
    picture,
    samples,
)

HERE = Path(__file__).parent
BUDGETS = (70, 140, 280, 560, 1120)


def digest(array, dtype):
    return hashlib.sha256(np.ascontiguousarray(array, dtype).tobytes()).hexdigest()[:32]


def image_row(size, budget, patch_size=16, pooling_kernel_size=3):
    processor = reference.Gemma4ImageProcessorPil(
        patch_size=patch_size, pooling_kernel_size=pooling_kernel_size
    )
    found = processor(
        images=Image.fromarray(picture(*size)), max_soft_tokens=budget, return_tensors="np"
    )
    n = int(found["num_soft_tokens_per_image"][0])
    count = n * pooling_kernel_size**2
    return {
        "size": size,
        "max_soft_tokens": budget,
        "patch_size": patch_size,
        "pooling_kernel_size": pooling_kernel_size,
        "soft_tokens": n,
        "patches": digest(found["pixel_values"][0, :count], "<f4"),
        "positions": digest(found["image_position_ids"][0, :count], "<i4"),
    }


def images():
    rows = [image_row(size, budget) for size in IMAGE_SIZES for budget in BUDGETS]
    # A processor file's own budget; the reference checks against its five only.
    for patch_size, pooling_kernel_size, budget in SMALL_GRIDS:
        reference._SUPPORTED_SOFT_TOKENS = (*BUDGETS, budget)
        rows += [image_row(s, budget, patch_size, pooling_kernel_size) for s in SMALL_SIZES]
    return rows


def sounds():
    extractor = Gemma4AudioFeatureExtractor()
    rows = []
    for length in SOUND_LENGTHS:
        found = extractor([samples(length)], return_tensors="np")
        valid = found["input_features_mask"][0].astype(bool)
        frames = found["input_features"][0][valid]
        chosen = sorted({0, len(frames) // 2, len(frames) - 1}) if len(frames) else []
        rows.append(
            {
                "length": length,
                "frames": len(frames),
                "soft_tokens": int(valid[::2][::2].sum()),
                "values": {str(i): [float(f"{v:.9g}") for v in frames[i]] for i in chosen},
                "sums": [float(f"{v:.9g}") for v in frames.sum(0, dtype=np.float64)],
            }
        )
    return rows


def videos():
    rows = []
    for total, count, fps in VIDEO_LENGTHS:
        metadata = VideoMetadata(total_num_frames=total, fps=fps)
        metadata.frames_indices = default_sample_indices_fn(metadata, num_frames=count)
        stamps = [f"{int(s // 60):02d}:{int(s % 60):02d}" for s in metadata.timestamps]
        indices = [int(i) for i in metadata.frames_indices]
        rows.append(
            {"total": total, "num_frames": count, "fps": fps, "indices": indices, "stamps": stamps}
        )
    return rows


def main():
    made_with = {m.__name__: m.__version__ for m in (transformers, torch, np, PIL)}
    for name, rows in (("images", images()), ("sound", sounds()), ("video", videos())):
        lines = ",\n".join(json.dumps(row) for row in rows)
        text = f'{{"made_with": {json.dumps(made_with)},\n"rows": [\n{lines}\n]}}\n'
        (HERE / f"{name}.json").write_text(text)


if __name__ == "__main__":
    main()
