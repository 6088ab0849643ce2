"""Train the demo model: a small Gemma 4 that knows TinyWorld, and reads, hears and watches digits.

    python scripts/training/train_demo.py train --work build/demo --data DIR
    python scripts/training/train_demo.py evaluate --model build/demo/final --data DIR

The reference implementation (transformers, torch; `pip install -e .[train]`) trains it and answers
for it, so its answers are an independent check of ours. The run is deterministic on one machine,
saves its state every few minutes and goes on from there when started again.

It learns text first (tinyworld.py), which needs no data, and its senses after that (tinymedia.py),
which need the two files of DIR that demo_data.py names with origin and sha256.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma4ForConditionalGeneration

from scripts.training import demo_exam, demo_lessons, demo_senses_exam
from scripts.training.demo_answerer import Answerer
from scripts.training.demo_data import Data, read_data
from scripts.training.demo_lessons import batch_loss, batches_from, stories_told
from scripts.training.demo_model import make_model, write_checkpoint
from scripts.training.demo_tokenizer import load_tokenizer, write_tokenizer
from scripts.training.fitting import Plan, fit
from scripts.training.train_senses import TOGETHER, WATCHING, train_senses

TEXT = Plan("text", 3e-3, ((0, 1 / 60), (59, 1.0), (960, 1.0), (demo_lessons.STEPS, 0.0)))


def train_text(tokenizer: Any, work: Path) -> Gemma4ForConditionalGeneration:
    """Train the text model, or go on training it."""
    model = make_model()

    def losses_from(step: int) -> Iterator[torch.Tensor]:
        for batch in batches_from(tokenizer, step):
            yield batch_loss(model, batch)

    fit(model, list(model.named_parameters()), TEXT, losses_from, work / "state.pt")
    return model


def train(work: Path, data: Path | None, threads: int) -> None:
    """Train to the end, or go on, and write the model to `work`/final."""
    began = time.monotonic()
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    senses = None if data is None else read_data(data).lessons
    write_tokenizer(work / "tokenizer")
    tokenizer = load_tokenizer(work / "tokenizer")
    model = train_text(tokenizer, work)
    if senses is None:
        print("Text is learnt. Without --data it learns neither to see nor to hear.")
    else:
        model = train_senses(model.state_dict(), tokenizer, senses, work)
    write_checkpoint(model, work / "final")
    print(
        f"{work / 'final'} is there; this run took {(time.monotonic() - began) / 60:.1f} minutes."
    )


def evaluate_text(answerer: Answerer, count: int) -> Iterator[tuple[str, float]]:
    """Ask `count` questions of each kind and yield the share of right answers."""
    told = stories_told(demo_lessons.STEPS + TOGETHER.steps + WATCHING.steps)
    seen = told & {story.text for story, _ in demo_exam.unseen_stories(count)}
    if seen:
        raise SystemExit(f"error: {len(seen)} stories of the exam are in the lessons")
    for name, exam in demo_exam.EXAMS.items():
        yield name, exam(answerer, count)


def evaluate_senses(answerer: Answerer, data: Data, count: int) -> Iterator[tuple[str, float]]:
    """Ask about up to `count` media of each kind, then again with the media shuffled."""
    for name, exam in demo_senses_exam.EXAMS.items():
        questions = exam(data, count)
        yield name, demo_senses_exam.share_right(answerer, questions)
        shuffled = demo_senses_exam.shuffled(questions)
        yield f"{name}, shuffled", demo_senses_exam.share_right(answerer, shuffled)


def write_answers(answerer: Answerer, count: int, path: Path) -> None:
    """Write what the reference answers to the story questions."""
    questions = [conversation for conversation, _ in demo_exam.story_conversations(count)]
    answers = {"stories": answerer(questions, demo_exam.LONGEST_ANSWER)}
    path.write_text(json.dumps(answers, indent=0) + "\n")


def evaluate(arguments: argparse.Namespace) -> None:
    """Print the share of right answers in every exam as JSON, and each when it is known."""
    answerer = Answerer(arguments.model, getattr(torch, arguments.dtype))
    results = evaluate_text(answerer, arguments.count)
    if arguments.data is not None:
        asked = evaluate_senses(answerer, read_data(arguments.data), arguments.media_count)
        results = itertools.chain(results, asked)
    shares = {}
    for name, share in results:
        print(f"{name}: {share:.4f}", file=sys.stderr, flush=True)
        shares[name] = share
    json.dump(shares, sys.stdout, indent=1)
    print()
    if arguments.answers is not None:
        write_answers(answerer, arguments.count, arguments.answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("train", help="train, or go on training")
    training.add_argument("--work", type=Path, required=True, help="folder for state and result")
    training.add_argument("--data", type=Path, help="folder of the media sets; without it: text")
    training.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    evaluation = verbs.add_parser("evaluate", help="ask questions it has never seen")
    evaluation.add_argument("--model", type=Path, required=True, help="a folder `train` wrote")
    evaluation.add_argument("--data", type=Path, help="folder of the media sets, to ask about them")
    evaluation.add_argument("--count", type=int, default=100, help="text questions of each kind")
    evaluation.add_argument(
        "--media-count", type=int, default=10_000, help="most media questions of each kind"
    )
    evaluation.add_argument("--answers", type=Path, help="write the story answers as JSON too")
    evaluation.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: bfloat16"
    )
    arguments = parser.parse_args()
    if arguments.verb == "train":
        train(arguments.work, arguments.data, arguments.threads)
    else:
        evaluate(arguments)


if __name__ == "__main__":
    main()
