"""Conversations with media as the reference model takes them: token ids, patches and mel frames."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hlwq_mlx.media.images import Patches, image_patches, read_image
from hlwq_mlx.media.processor import ImageSettings
from hlwq_mlx.media.sound import mel_frames, soft_tokens
from hlwq_mlx.media.video import clip_patches, make_clip
from scripts.training.demo_model import PROCESSOR
from scripts.training.tinyworld import Conversation

Floats = NDArray[np.float32]
PLACEHOLDERS = re.compile(r"<\|image\|>|<\|audio\|>|<\|video\|>")


class Prepared(NamedTuple):
    """A texts conversation and what its soft tokens stand for, in order of appearance."""

    ids: list[int]
    images: list[Patches]
    clips: list[list[Patches]]
    mels: list[Floats]


def patches_of(pixels: NDArray[np.uint8], settings: ImageSettings) -> Patches:
    return image_patches(read_image(pixels), settings)


def mel_of(wave: Floats) -> Floats:
    return mel_frames(wave, PROCESSOR.sound)


def media_parts(conversation: Conversation) -> Iterator[dict[str, Any]]:
    for message in conversation["messages"]:
        if isinstance(message["content"], list):
            yield from (part for part in message["content"] if part["type"] != "text")


def image_text(image: Patches) -> str:
    return "<|image>" + "<|image|>" * image.soft_tokens + "<image|>"


def sound_text(mel: Floats) -> str:
    return "<|audio>" + "<|audio|>" * soft_tokens(len(mel)) + "<audio|>"


def clip_text(frames: list[Patches], stamps: tuple[str, ...]) -> str:
    """Return the text of a clip: its frames, each after the time it is shown at."""
    return " ".join(
        f"{stamp} <|image>{'<|video|>' * frame.soft_tokens}<image|>"
        for stamp, frame in zip(stamps, frames, strict=True)
    )


def prepare(tokenizer: Any, conversation: Conversation, *, prompt: bool) -> Prepared:
    """Tokenize a conversation, with as many soft tokens as its media need."""
    prepared = Prepared([], [], [], [])
    texts = []
    for part in media_parts(conversation):
        if part["type"] == "image":
            prepared.images.append(patches_of(part["image"], PROCESSOR.image))
            texts.append(image_text(prepared.images[-1]))
        elif part["type"] == "audio":
            prepared.mels.append(mel_of(part["audio"]))
            texts.append(sound_text(prepared.mels[-1]))
        else:
            clip = make_clip(part["video"], PROCESSOR.video, part["fps"])
            prepared.clips.append(clip_patches(clip, PROCESSOR.video))
            texts.append(clip_text(prepared.clips[-1], clip.stamps))
    text = tokenizer.apply_chat_template(
        conversation["messages"], add_generation_prompt=prompt, tokenize=False
    )
    remaining = iter(texts)
    text = PLACEHOLDERS.sub(lambda _: next(remaining), text)
    prepared.ids.extend(tokenizer.encode(text, add_special_tokens=False))
    return prepared


def stack_patches(
    pictures: list[Patches], settings: ImageSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack pictures, padded to their budget: values [N, P, D], positions [N, P, 2]."""
    longest = settings.max_soft_tokens * settings.pooling_kernel_size**2
    values = torch.zeros(len(pictures), longest, pictures[0].patches.shape[1])
    positions = torch.full((len(pictures), longest, 2), -1)
    for row, picture in enumerate(pictures):
        values[row, : len(picture.patches)] = torch.from_numpy(picture.patches)
        positions[row, : len(picture.patches)] = torch.from_numpy(picture.positions)
    return values, positions


def stack_mels(mels: list[Floats]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack mel frames, padded on the right: [N, F, bins] and which frames are real [N, F]."""
    longest = max(map(len, mels))
    frames = torch.zeros(len(mels), longest, mels[0].shape[1])
    mask = torch.zeros(len(mels), longest, dtype=torch.bool)
    for row, mel in enumerate(mels):
        frames[row, : len(mel)] = torch.from_numpy(mel)
        mask[row, : len(mel)] = True
    return frames, mask


def media_inputs(rows: list[Prepared]) -> dict[str, torch.Tensor]:
    """Stack the media of a batch's rows under the names the reference's forward gives them."""
    inputs: dict[str, torch.Tensor] = {}
    images = [image for row in rows for image in row.images]
    clips = [clip for row in rows for clip in row.clips]
    mels = [mel for row in rows for mel in row.mels]
    if images:
        inputs["pixel_values"], inputs["image_position_ids"] = stack_patches(
            images, PROCESSOR.image
        )
    if clips:
        frames = [frame for clip in clips for frame in clip]
        stacked = stack_patches(frames, PROCESSOR.video)
        inputs["pixel_values_videos"], inputs["video_position_ids"] = stacked
        inputs["num_frames_per_video"] = torch.tensor([len(clip) for clip in clips])
    if mels:
        inputs["input_features"], inputs["input_features_mask"] = stack_mels(mels)
    return inputs
