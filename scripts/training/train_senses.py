"""The second part of the demo's training: a trained text model learns to see, hear and watch.

First its towers alone learn to give a digit's own embedding for a picture or a sound of it, which
is quick because the text model need not run; then all learns together from conversations.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Gemma4ForConditionalGeneration

from hlwq_mlx.media.images import Patches
from hlwq_mlx.media.processor import ImageSettings
from scripts.training import demo_lessons, tinymedia
from scripts.training.demo_data import Senses
from scripts.training.demo_lessons import Example, answer_weights, batch_loss, batches_from
from scripts.training.demo_media import (
    Prepared,
    media_inputs,
    mel_of,
    patches_of,
    prepare,
    stack_mels,
    stack_patches,
)
from scripts.training.demo_model import (
    PROCESSOR,
    SEED,
    ClipCalibration,
    add_senses,
    likenesses,
    sense_parameters,
    standardize,
)
from scripts.training.fitting import Plan, fit
from scripts.training.tinyworld import Conversation

TOWERS = Plan("towers", 3e-3, ((0, 1 / 50), (49, 1.0), (400, 1.0), (800, 0.05)))
TOGETHER = Plan("together", 8e-4, ((0, 1 / 20), (19, 1.0), (200, 1.0)))
WATCHING = Plan("watching", 1.6e-3, ((0, 0.3), (19, 1.0), (300, 1.0), (620, 0.0)))
PICTURES, FRAMES, SOUNDS = 32, 20, 32
# How many conversations of each kind a step has, in the second stage and in the third.
TOGETHER_ROWS = {"picture": 12, "sound": 12, "clip": 12}
WATCHING_ROWS = {"picture": 10, "sound": 5, "clip": 22}
# Of the text lessons, which go on where they stopped, one row in so many is learnt from.
TEXT_SHARE = 3
CALIBRATION_BATCHES = 8
# How sharply a soft token has to resemble its digit and not another.
SHARPNESS = 6.0


def draw(*numbers: int) -> np.random.Generator:
    """Return the randomness of one step and purpose."""
    return np.random.default_rng([SEED, *numbers])


def draw_pictures(
    step: int, senses: Senses, count: int, settings: ImageSettings
) -> tuple[list[Patches], Any]:
    rng = draw(step, settings.max_soft_tokens)
    pick = tinymedia.pick_frame if settings is PROCESSOR.video else tinymedia.pick_picture
    pairs = [pick(rng, senses.pictures, tinymedia.draw_look(rng)) for _ in range(count)]
    digits = torch.tensor([digit for _, digit in pairs])
    return [patches_of(pixels, settings) for pixels, _ in pairs], digits


def draw_sounds(step: int, senses: Senses, count: int) -> tuple[list[Any], torch.Tensor]:
    rng = draw(step)
    pairs = [tinymedia.pick_sound(rng, senses.recordings) for _ in range(count)]
    digits = torch.tensor([digit for _, digit in pairs])
    return [mel_of(wave) for wave, _ in pairs], digits


def likeness_loss(soft: torch.Tensor, wanted: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
    """Ask that each medium's mean soft token [N, D] be nearest what its digit is to resemble."""
    distances = (soft[:, None] - wanted).square().mean(-1)
    return torch.nn.functional.cross_entropy(-SHARPNESS * distances, digits)


def mean_sight(
    model: Gemma4ForConditionalGeneration, pictures: list[Patches], settings: ImageSettings
) -> torch.Tensor:
    values, positions = stack_patches(pictures, settings)
    features = model.model.get_image_features(values, positions, return_dict=True).pooler_output
    return torch.stack([picture.mean(0) for picture in features])


def mean_hearing(model: Gemma4ForConditionalGeneration, mels: list[Any]) -> torch.Tensor:
    found = model.model.get_audio_features(*stack_mels(mels), return_dict=True)
    mask = found.attention_mask[..., None].float()
    return (found.pooler_output * mask).sum(1) / mask.sum(1)


def towers_loss(model: Gemma4ForConditionalGeneration, senses: Senses, step: int) -> torch.Tensor:
    wanted = likenesses(model)
    losses = []
    for count, settings in ((PICTURES, PROCESSOR.image), (FRAMES, PROCESSOR.video)):
        pictures, digits = draw_pictures(step, senses, count, settings)
        losses.append(likeness_loss(mean_sight(model, pictures, settings), wanted, digits))
    mels, digits = draw_sounds(step, senses, SOUNDS)
    losses.append(likeness_loss(mean_hearing(model, mels), wanted, digits))
    return torch.stack(losses).sum()


@torch.no_grad()
def calibrate_standardization(model: Gemma4ForConditionalGeneration, senses: Senses) -> None:
    pictures, _ = draw_pictures(TOWERS.steps, senses, 256, PROCESSOR.image)
    values, positions = stack_patches(pictures, PROCESSOR.image)
    standardize(model, model.model.vision_tower(values, positions).last_hidden_state)


@torch.no_grad()
def calibrate_clipping(model: Gemma4ForConditionalGeneration, senses: Senses) -> None:
    calibration = ClipCalibration(model)
    for step in range(CALIBRATION_BATCHES):
        towers_loss(model, senses, TOWERS.steps + step)
    calibration.set_bounds()


def chat_example(tokenizer: Any, conversation: Any) -> tuple[Example, Prepared]:
    """Return a conversation with media to learn from; only the model's own words count."""
    prepared = prepare(tokenizer, conversation, prompt=False)
    weights = [float(weight == 1.0) for weight in answer_weights(prepared.ids)]
    return Example(prepared.ids, weights), prepared


def chats_loss(
    model: Gemma4ForConditionalGeneration,
    tokenizer: Any,
    conversations: list[Conversation],
) -> torch.Tensor:
    pairs = [chat_example(tokenizer, conversation) for conversation in conversations]
    media = media_inputs([prepared for _, prepared in pairs])
    return batch_loss(model, [example for example, _ in pairs], **media)


def lessons_from(
    model: Gemma4ForConditionalGeneration,
    tokenizer: Any,
    senses: Senses,
    rows: dict[str, int],
    lesson: int,
) -> Iterator[torch.Tensor]:
    """Yield the loss of every lesson from this one on: chats about media, and text as before."""
    for text in batches_from(tokenizer, demo_lessons.STEPS + lesson):
        losses = []
        for number, (kind, count) in enumerate(rows.items()):
            rng = draw(lesson, number)
            chats = [tinymedia.draw_conversation(rng, senses, kind) for _ in range(count)]
            losses.append(chats_loss(model, tokenizer, chats))
        losses.append(batch_loss(model, text[::TEXT_SHARE]))
        yield torch.stack(losses).sum()
        lesson += 1


def train_senses(
    text: dict[str, torch.Tensor], tokenizer: Any, senses: Senses, work: Path
) -> Gemma4ForConditionalGeneration:
    """Teach a trained text model to see, hear and watch, and return it."""
    model = add_senses(text)
    calibrate_standardization(model, senses)

    def towers_losses(step: int) -> Iterator[torch.Tensor]:
        while True:
            yield towers_loss(model, senses, step)
            step += 1

    fit(model, sense_parameters(model), TOWERS, towers_losses, work / "towers.pt")
    calibrate_clipping(model, senses)
    parameters = list(model.named_parameters())
    lessons = partial(lessons_from, model, tokenizer, senses)
    fit(model, parameters, TOGETHER, partial(lessons, TOGETHER_ROWS), work / "together.pt")

    def watching_losses(step: int) -> Iterator[torch.Tensor]:
        return lessons(WATCHING_ROWS, TOGETHER.steps + step)

    fit(model, parameters, WATCHING, watching_losses, work / "watching.pt")
    return model
