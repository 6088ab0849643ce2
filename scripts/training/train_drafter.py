"""Train the demo's drafter on conversations of TinyWorld, to choose what the demo would choose.

    python scripts/training/train_drafter.py train --work build/drafter
    python scripts/training/train_drafter.py publish --work build/drafter

The reference implementation (transformers, torch; `pip install -e .[train]`) trains it, for some
minutes. A draft is right when the demo, whose own words the text has up to there, would choose the
same token. Conversations come from seeds of their own, and none tells a story of an exam or of
benchmarks/drafts.py, which `train` checks. `publish` puts the result into hlwq_mlx/demo/drafter.
"""

import argparse
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma4AssistantForCausalLM, Gemma4ForConditionalGeneration

from hlwq_mlx.library import DEMO
from scripts.training import demo_exam, tinyworld
from scripts.training.demo_lessons import Example, render_training
from scripts.training.demo_tokenizer import load_tokenizer
from scripts.training.drafter_model import (
    Starts,
    allow_all_shared,
    drafts_from,
    make_drafter,
    read,
)
from scripts.training.fitting import Plan, fit

DRAFTS = 4
ROWS, BATCHES_PER_CHUNK = 16, 32
PLAN = Plan("drafter", 2e-3, ((0, 0.05), (20, 1.0), (200, 1.0), (400, 0.0)))
EXAMINED = 1000  # stories that must not be in the lessons
LESSONS = tinyworld.Stage(
    {
        tinyworld.continuation_chat: 0.40,
        tinyworld.thinking_chat: 0.20,
        tinyworld.story_chat: 0.12,
        tinyworld.belongings_chat: 0.05,
        tinyworld.calculator_chat: 0.12,
        tinyworld.sums_chat: 0.08,
        tinyworld.small_talk: 0.03,
    },
    tinyworld.ASKED_LAST,
)


def chunk_conversations(chunk: int) -> Iterator[tinyworld.Conversation]:
    """Yield the conversations of a chunk of lessons."""
    return tinyworld.conversations(f"drafter/{chunk}", LESSONS)


def batches_from(tokenizer: Any, step: int) -> Iterator[list[Example]]:
    """Yield the batch of every step from `step` on, each of conversations of about one length."""
    chunk, skip = divmod(step, BATCHES_PER_CHUNK)
    while True:
        stream = chunk_conversations(chunk)
        count = ROWS * BATCHES_PER_CHUNK
        examples = [render_training(tokenizer, next(stream)) for _ in range(count)]
        examples.sort(key=lambda example: len(example.ids))
        batches = [examples[start : start + ROWS] for start in range(0, count, ROWS)]
        random.Random(chunk).shuffle(batches)
        yield from batches[skip:]
        chunk, skip = chunk + 1, 0


def padded(batch: list[Example]) -> tuple[torch.Tensor, Starts]:
    """Return the ids of a batch, and the positions before each word that the model says."""
    longest = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    spoken = [
        [at for at in range(1, len(each.ids) - 1) if each.weights[at + 1] == 1] for each in batch
    ]
    most = max(map(len, spoken))
    positions = torch.ones(len(batch), most, dtype=torch.long)
    is_one = torch.zeros(len(batch), most, dtype=torch.bool)
    for row, (example, found) in enumerate(zip(batch, spoken, strict=True)):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        positions[row, : len(found)] = torch.tensor(found)
        is_one[row, : len(found)] = True
    return ids, Starts(positions, is_one)


def batch_loss(
    target: Gemma4ForConditionalGeneration,
    drafter: Gemma4AssistantForCausalLM,
    batch: list[Example],
) -> torch.Tensor:
    """Compute the mean cross entropy of drafts, as long as the text is what the model chose."""
    ids, starts = padded(batch)
    seen = read(target, ids)
    embed = target.get_input_embeddings()
    counted, losses, count = starts.is_one, torch.zeros(()), torch.zeros(())
    for step, logits in enumerate(drafts_from(drafter, embed, ids, seen, starts, DRAFTS)):
        wanted = starts.pick(seen.choices, step)
        each = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), wanted, reduction="none"
        )
        losses = losses + (each * counted).sum()
        count = count + counted.sum()
        is_last = starts.positions + step + 2 >= ids.shape[1]
        counted = counted & (wanted == starts.pick(ids, step + 1)) & ~is_last
    return losses / count


def require_unseen(steps: int) -> None:
    """End the script when a lesson tells a story that an exam or a benchmark asks about."""
    told: set[str] = set()
    for chunk in range(-(-steps // BATCHES_PER_CHUNK)):
        stream = chunk_conversations(chunk)
        for _ in range(ROWS * BATCHES_PER_CHUNK):
            told |= tinyworld.stories_in(next(stream))
    seen = told & {story.text for story, _ in demo_exam.unseen_stories(EXAMINED)}
    if seen:
        raise SystemExit(f"error: {len(seen)} stories of the exam are in the lessons")


def train(work: Path, threads: int) -> None:
    """Train to the end, or go on, and write the drafter to `work`/final."""
    began = time.monotonic()
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    require_unseen(PLAN.steps)
    allow_all_shared()
    tokenizer = load_tokenizer(DEMO)
    target = Gemma4ForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32).eval()
    target.requires_grad_(False)
    drafter = make_drafter(target)

    def losses_from(step: int) -> Iterator[torch.Tensor]:
        for batch in batches_from(tokenizer, step):
            yield batch_loss(target, drafter, batch)

    fit(drafter, list(drafter.named_parameters()), PLAN, losses_from, work / "state.pt")
    drafter.to(torch.bfloat16).save_pretrained(work / "final")
    minutes = (time.monotonic() - began) / 60
    print(f"{work / 'final'} is there; this run took {minutes:.1f} minutes.")


def publish(work: Path) -> None:
    """Put the trained drafter into the package."""
    target = DEMO / "drafter"
    target.mkdir(exist_ok=True)
    shutil.copyfile(work / "final" / "model.safetensors", target / "model.safetensors")
    config = json.loads((work / "final" / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("verb", choices=("train", "publish"))
    parser.add_argument("--work", type=Path, required=True, help="folder for state and result")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    arguments = parser.parse_args()
    if arguments.verb == "train":
        train(arguments.work, arguments.threads)
    else:
        publish(arguments.work)


if __name__ == "__main__":
    main()
