"""Train the demo's sibling with experts on every other one of the demo's text lessons.

    python scripts/training/train_experts.py train --work build/experts
    python scripts/training/train_experts.py evaluate --work build/experts
    python scripts/training/train_experts.py publish --work build/experts

The reference implementation (transformers, torch; `pip install -e .[train]`) trains it, in less
than an hour, and answers for it. `evaluate` asks it what training never showed and counts which
experts unseen stories choose: the script fails where an expert of any layer is chosen by less than
5 % of the tokens. `publish` puts the result into tests/data/experts.
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
from transformers import Gemma4ForConditionalGeneration

from scripts.training import demo_exam, tinyworld
from scripts.training.demo_answerer import Answerer
from scripts.training.demo_lessons import batch_loss, batches_from, render
from scripts.training.demo_model import write_checkpoint
from scripts.training.demo_tokenizer import load_tokenizer, write_tokenizer
from scripts.training.experts_model import make_model, watched
from scripts.training.fitting import Plan, fit
from scripts.training.sibling import PUBLISHED

PLAN = Plan("experts", 3e-3, ((0, 1 / 60), (59, 1.0), (960, 1.0), (1200, 0.0)))
BALANCE = 0.02
FEWEST = 0.05
STORIES = 200


def train(work: Path, threads: int) -> None:
    """Train to the end, or go on, and write the sibling to `work`/final."""
    began = time.monotonic()
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    write_tokenizer(work / "tokenizer")
    tokenizer = load_tokenizer(work / "tokenizer")
    model = make_model()

    def losses_from(step: int) -> Iterator[torch.Tensor]:
        for batch in batches_from(tokenizer, step):
            with watched(model) as routed:
                loss = batch_loss(model, batch[::2])
            yield loss + BALANCE * routed.imbalance()

    fit(model, list(model.named_parameters()), PLAN, losses_from, work / "state.pt")
    write_checkpoint(model, work / "final")
    minutes = (time.monotonic() - began) / 60
    print(f"{work / 'final'} is there; this run took {minutes:.1f} minutes.")


@torch.no_grad()
def shares_on_unseen(model: Gemma4ForConditionalGeneration, tokenizer: Any) -> torch.Tensor:
    """Return the share of tokens of unseen stories that choose an expert: [layers, experts]."""
    rng = random.Random("experts")
    each, counts = [], []
    for _ in range(STORIES):
        story = tinyworld.make_story(rng)
        asked = tinyworld.ask_story(story, rng.choice(story.questions))
        ids = render(tokenizer, {"messages": [tinyworld.user(asked)]}, prompt=True)
        with watched(model) as routed:
            model(input_ids=torch.tensor([ids]), use_cache=False)
        each.append(routed.shares() * len(ids))
        counts.append(len(ids))
    return torch.stack(each).sum(0) / sum(counts)


def evaluate(work: Path, count: int) -> None:
    """Print the exams' results and how often each expert is chosen."""
    answerer = Answerer(work / "final", torch.float32)
    for name, exam in demo_exam.EXAMS.items():
        print(f"{name}: {exam(answerer, count):.4f}", flush=True)
    shares = shares_on_unseen(answerer.model, answerer.tokenizer)
    for layer, row in enumerate(shares.tolist()):
        print(f"layer {layer}: " + " ".join(f"{share:.3f}" for share in row))
    fewest = shares.min().item()
    print(f"least chosen: {fewest:.3f}")
    if fewest < FEWEST:
        raise SystemExit(f"error: [experts] needed {FEWEST} of the tokens each, got {fewest:.3f}.")


def publish(work: Path) -> None:
    """Put the trained sibling where tests find it; tokenizer and template are the demo's."""
    PUBLISHED.mkdir(exist_ok=True)
    shutil.copyfile(work / "final" / "model.safetensors", PUBLISHED / "model.safetensors")
    config = json.loads((work / "final" / "config.json").read_text())
    (PUBLISHED / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("verb", choices=("train", "evaluate", "publish"))
    parser.add_argument("--work", type=Path, required=True, help="folder for state and result")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--count", type=int, default=100, help="questions of each kind")
    arguments = parser.parse_args()
    if arguments.verb == "train":
        train(arguments.work, arguments.threads)
    elif arguments.verb == "evaluate":
        evaluate(arguments.work, arguments.count)
    else:
        publish(arguments.work)


if __name__ == "__main__":
    main()
