"""Print how faithful every variant of the demo is, as the model card does for the real model.

    python scripts/benchmarks/fidelity.py [--count 100] [--data DIR]
    python scripts/benchmarks/fidelity.py --variants PQ2 PQ5 --leftovers keep auto small

Makes each variant from the demo's bf16 weights with our encoder, in the published layout, converts
it, with what was left in 16 bits coded as `--leftovers` says, and asks it what it asks bf16:
perplexity and KL divergence on unseen stories, exact answers, and how many answers are bf16's own,
token by token. With the folder of digits that train_demo.py reads (`--data`) it also asks about
pictures, sounds and clips.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hlwq_mlx import library
from hlwq_mlx.dialog import template
from hlwq_mlx.engine.batch import answer_together
from hlwq_mlx.engine.task import Task
from hlwq_mlx.quant.codec import BEST_NORM, OWN_NORM
from hlwq_mlx.quant.tables import CENTROIDS
from hlwq_mlx.quantize import PUBLISHED, TABLES, add_variant
from hlwq_mlx.source import model_card, rules
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import leftovers
from hlwq_mlx.write.convert import convert
from hlwq_mlx.write.quantize import Encoder, Fidelity, Report
from scripts.training import demo_exam, demo_senses_exam, tinyworld
from scripts.training.demo_data import Data, read_data

BASE = "bf16"
TEXTS = 40
NOT_SAID = ("–", "–")


class Row(NamedTuple):
    """One line of the table."""

    variant: str
    cos_sim: float
    relative_error: float
    perplexity: float
    divergence: float
    exact: dict[str, str]
    equal: int
    count: int


class Exams(NamedTuple):
    """How many questions of each kind are asked, and the digits to ask about, if they are there."""

    count: int
    data: Data | None

    def names(self) -> list[str]:
        senses = [] if self.data is None else list(demo_senses_exam.EXAMS)
        return [*demo_exam.EXAMS, *senses]

    def sit(self, subject: "Subject") -> dict[str, str]:
        """Return how many answers of each kind are right, and of how many."""
        exact = {}
        for kind, exam in demo_exam.EXAMS.items():
            exact[kind] = fraction(exam(subject.answerer, self.count), self.count)
        if self.data is not None:
            for kind, about_media in demo_senses_exam.EXAMS.items():
                questions = about_media(self.data, self.count)  # there may be fewer
                share = demo_senses_exam.share_right(subject.media_answerer, questions)
                exact[kind] = fraction(share, len(questions))
        return exact


def fraction(share: float, count: int) -> str:
    """Return a share of right answers as a fraction."""
    return f"{round(count * share)}/{count}"


class Subject:
    """A loaded variant that sits exams and scores texts."""

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = library.load(folder)

    def answers(self, conversations: list[tinyworld.Conversation], limit: int) -> list[list[int]]:
        """Answer greedily, several at a time, and return ids without the stop token."""
        stops = self.tokenizer.eos_token_ids
        tasks = [
            Task(self._prompt(conversation), max_tokens=limit, stop_ids=stops)
            for conversation in conversations
        ]
        found = answer_together(self.model, tasks)
        return [[token for token in ids if token not in stops] for ids in found]

    def answerer(self, conversations: list[tinyworld.Conversation], limit: int) -> list[str]:
        """Answer as an exam asks: raw texts."""
        return [self.tokenizer.decode(ids) for ids in self.answers(conversations, limit)]

    def media_answerer(self, conversations: list[tinyworld.Conversation], limit: int) -> list[str]:
        """Answer about media, one conversation at a time."""
        return [
            library.generate(self.model, self.tokenizer, conversation["messages"], max_tokens=limit)
            for conversation in conversations
        ]

    def _prompt(self, conversation: tinyworld.Conversation) -> list[int]:
        return library.prompt_ids(
            self.tokenizer,
            conversation["messages"],
            tools=conversation.get("tools", ()),
            thinking=conversation.get("thinking", False),
        )

    def scores(self, ids: list[int]) -> NDArray[np.float32]:
        """Return the log probabilities after every position: [L, V]."""
        logits = self.model(mx.array([ids]))[0]
        return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def unseen_texts(tokenizer: Any) -> list[list[int]]:
    """Return unseen stories as they stand in the training text: told, asked, answered."""
    rng = random.Random("perplexity")
    texts = []
    for _ in range(TEXTS):
        story = tinyworld.make_story(rng)
        question = rng.choice(story.questions)
        messages = [tinyworld.user(tinyworld.ask_story(story, question))]
        asked = template.render(tokenizer, messages)
        answered = asked._replace(text=f"{asked.text}{question.answer}<turn|>\n")
        texts.append(template.encode(tokenizer, answered))
    return texts


def compare(
    subject: Subject, texts: list[list[int]], reference: list[NDArray[np.float32]]
) -> tuple[float, float]:
    """Return perplexity and the mean KL divergence from the reference, per token."""
    losses, divergences = [], []
    for ids, wanted in zip(texts, reference, strict=True):
        scores = subject.scores(ids)
        losses.append(-scores[np.arange(len(ids) - 1), ids[1:]])
        divergences.append((np.exp(wanted) * (wanted - scores)).sum(axis=-1)[:-1])
    return float(np.exp(np.concatenate(losses).mean())), float(np.concatenate(divergences).mean())


def pooled(*reports: Report) -> Fidelity:
    """Pool the fidelity of all coded tensors."""
    total = Fidelity()
    for report in reports:
        for part in report.classes.values():
            total += part
    return total


def measure(
    work: Path, exams: Exams, encoder: Encoder, variants: Sequence[str], choices: Sequence[str]
) -> Iterator[Row]:
    """Make, convert and measure variants, bf16 first, each with every choice for its leftovers."""
    source = Source(library.DEMO)
    convert(source, work / BASE)
    subject = Subject(work / BASE)
    texts = unseen_texts(subject.tokenizer)
    reference = [subject.scores(ids) for ids in texts]
    questions = [conversation for conversation, _ in demo_exam.story_conversations(exams.count)]
    wanted = subject.answers(questions, demo_exam.LONGEST_ANSWER)
    yield row_of(BASE, Fidelity(), subject, texts, reference, questions, wanted, exams)
    for variant in tqdm(variants, desc="variants"):
        name, rule = rules.variant_rule(variant)
        published = work / "published" / name
        report = add_variant(source, rule, published, encoder)
        for choice in choices:
            label = name if choices == [leftovers.KEEP] else f"{name}, {choice}"
            summary = convert(Source(published, name), work / f"{name}-{choice}", choice)
            fidelity = pooled(report, summary.plan.report)
            subject = Subject(work / f"{name}-{choice}")
            yield row_of(label, fidelity, subject, texts, reference, questions, wanted, exams)


def row_of(
    name: str,
    fidelity: Fidelity,
    subject: Subject,
    texts: list[list[int]],
    reference: list[NDArray[np.float32]],
    questions: list[tinyworld.Conversation],
    wanted: list[list[int]],
    exams: Exams,
) -> Row:
    perplexity, divergence = compare(subject, texts, reference)
    answers = subject.answers(questions, demo_exam.LONGEST_ANSWER)
    return Row(
        name,
        fidelity.cos_sim,
        fidelity.relative_error,
        perplexity,
        divergence,
        exams.sit(subject),
        sum(mine == theirs for mine, theirs in zip(answers, wanted, strict=True)),
        exams.count,
    )


def print_table(rows: Iterator[Row], exams: list[str], encoder: Encoder) -> list[Row]:
    """Print Markdown, a line as soon as it is known, and return what was printed."""
    printed = []
    norm = "its own norm" if encoder.fit == OWN_NORM else "a norm that fits its codes"
    print(f"Coded by the table {encoder.table}, each block with {norm}.\n")
    head = ["variant", "cos_sim", "rel. error", "perplexity", "KL to bf16", *exams, "equal to bf16"]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        cells = [
            row.variant,
            f"{row.cos_sim:.4f}",
            f"{row.relative_error:.4f}",
            f"{row.perplexity:.3f}",
            f"{row.divergence:.5f}",
            *(row.exact[kind] for kind in exams),
            f"{row.equal}/{row.count}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
        printed.append(row)
    return printed


def print_beside_card(rows: list[Row]) -> None:
    """Print what was found beside what the model card says of the same variants of E4B."""
    head = ["variant", "cos_sim", "by the card", "difference", "equal to bf16", "by the card"]
    print("\n| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        said = model_card.FIGURES.get(row.variant)
        if said is None:  # bf16, and variants with other leftovers
            continue
        by_card = NOT_SAID
        if said.cos_sim is not None:
            by_card = (f"{said.cos_sim:.4f}", f"{row.cos_sim - said.cos_sim:+.4f}")
        equal = (f"{row.equal}/{row.count}", said.equal_answers or NOT_SAID[0])
        print(f"| {' | '.join([row.variant, f'{row.cos_sim:.4f}', *by_card, *equal])} |")
    print("\nThe card's are of E4B and three prompts, ours of the demo and stories.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, help="where to make a temporary folder")
    parser.add_argument("--count", type=int, default=100, help="questions of each kind")
    parser.add_argument("--table", choices=CENTROIDS, default=TABLES[PUBLISHED])
    parser.add_argument("--refit", action="store_true", help="search block norms, as quantize does")
    parser.add_argument(
        "--variants", nargs="+", default=rules.VARIANTS, metavar="PQn", help="default: all"
    )
    parser.add_argument(
        "--leftovers",
        nargs="+",
        choices=leftovers.CHOICES,
        default=[leftovers.KEEP],
        help="a line for each: what becomes of the matrices left in 16 bits (default: keep)",
    )
    parser.add_argument("--data", type=Path, help="folder of the digits, to ask about them too")
    arguments = parser.parse_args()
    data = None if arguments.data is None else read_data(arguments.data)
    exams = Exams(arguments.count, data)
    encoder = Encoder(arguments.table, BEST_NORM if arguments.refit else OWN_NORM)
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        rows = measure(Path(work), exams, encoder, arguments.variants, arguments.leftovers)
        print_beside_card(print_table(rows, exams.names(), encoder))


if __name__ == "__main__":
    main()
