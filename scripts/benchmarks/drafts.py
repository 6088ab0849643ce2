"""Tokens a pass of the demo with drafts, on texts that no training uses.

    python scripts/benchmarks/drafts.py                      PQ5, prompt lookup
    python scripts/benchmarks/drafts.py --variants PQ2 PQ3 PQ4 PQ5 PQ8 --count 40

Every answer is made twice in turn, plainly and with drafts, and has to be the same. Stories are
continued, answered about and thought about (a thought quotes a sentence), sums are told. For
quoting, a constraint lets the demo say nothing but the story, since it does not quote by itself.
Counted are the passes behind the prompt. `here` is the wall-clock ratio of decoding, plain over
drafted. `M1` is a model, not a measurement: passes cost the same, and so much more for each drafted
token as engine.speculate reckons. Prints Markdown and a line of JSON.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from hlwq_mlx import library, quantize
from hlwq_mlx.engine.answer import make_chooser, prefill
from hlwq_mlx.engine.decoding import Decoding
from hlwq_mlx.engine.draft import Course, Drafter, Seen
from hlwq_mlx.engine.drafters import find_drafter
from hlwq_mlx.engine.request import Prepared, Request
from hlwq_mlx.engine.speculate import ROW_COST, make_step
from hlwq_mlx.engine.step import Row, Step, start_row
from hlwq_mlx.gemma4.model import Model
from scripts.training import demo_exam, tinyworld

LONGEST = 120  # tokens of an answer
Texts = Callable[[int], Iterator[tuple[tinyworld.Conversation, str | None]]]


def stories(count: int) -> Iterator[tuple[tinyworld.Conversation, str | None]]:
    """Yield beginnings of stories, to be continued."""
    for story, _ in demo_exam.unseen_stories(count):
        beginning = tinyworld.CONTINUE + " ".join(story.sentences[:2])
        yield {"messages": [tinyworld.user(beginning)]}, None


def answers(count: int) -> Iterator[tuple[tinyworld.Conversation, str | None]]:
    """Yield questions about stories."""
    yield from ((asked, None) for asked, _ in demo_exam.story_conversations(count))


def thoughts(count: int) -> Iterator[tuple[tinyworld.Conversation, str | None]]:
    """Yield the same questions, to be thought about."""
    yield from ((asked | {"thinking": True}, None) for asked, _ in answers(count))


def sums(count: int) -> Iterator[tuple[tinyworld.Conversation, str | None]]:
    """Yield sums."""
    yield from ((asked, None) for asked, _ in demo_exam.sum_conversations(count))


def quoting(count: int) -> Iterator[tuple[tinyworld.Conversation, str | None]]:
    """Yield stories of which three sentences are to be told again, from one that is drawn on."""
    rng = random.Random("quoting")
    for story, _ in demo_exam.unseen_stories(count):
        at = rng.randrange(len(story.sentences) - 3)
        told = " ".join(story.sentences[at : at + 3])
        yield {"messages": [tinyworld.user(story.text)]}, told


TEXTS: dict[str, Texts] = {
    "stories": stories,
    "answers": answers,
    "thoughts": thoughts,
    "sums": sums,
    "quoting": quoting,
}


class Verbatim:
    """A constraint: the answer is these tokens."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._rest = list(ids)

    def mask(self, scores: mx.array) -> mx.array:
        """Allow the next token alone."""
        return mx.where(mx.arange(scores.shape[-1]) == self._rest[0], scores, -mx.inf)

    def accept(self, token: int) -> None:
        """Go on to the one behind it."""
        del self._rest[0]


class Counting:
    """A drafter that counts what it drafts."""

    def __init__(self, drafter: Drafter) -> None:
        self.needs_hidden, self.cost = drafter.needs_hidden, drafter.cost
        self.drafted = 0
        self._drafter = drafter

    def draft(self, seen: Seen, count: int) -> Sequence[int] | mx.array:
        """Return what the drafter drafts."""
        drafts = self._drafter.draft(seen, count)
        self.drafted += len(drafts)
        return drafts


class Answer(NamedTuple):
    """Tokens behind the first one, the passes that brought them, and how long it took."""

    ids: list[int]
    passes: int
    seconds: float


def answer(
    model: Model, step: Step, tokenizer: Any, asked: tinyworld.Conversation, told: str | None
) -> Answer:
    """Answer a conversation, or quote what is to be told."""
    keys = library.prompt_ids(
        tokenizer, asked["messages"], thinking=bool(asked.get("thinking", False))
    )
    forced = None if told is None else tokenizer.encode(told, add_special_tokens=False)
    limit = LONGEST if forced is None else len(forced)
    decoding = Decoding(constraint=None if forced is None else Verbatim(forced))
    caches = model.make_cache()
    row = Row(
        caches,
        -1,
        make_chooser(model, decoding, keys),
        tokenizer.eos_token_ids,
        limit,
        course=Course(keys),
    )
    start_row(row, prefill(model, Request(Prepared(keys)), caches))
    found, passes, begun = [row.token], 0, time.perf_counter()
    while not row.is_over:
        [outcome] = step([row])
        if isinstance(outcome, Exception):
            raise outcome
        found += [chosen.token for chosen in outcome]
        passes += 1
    return Answer(found, passes, time.perf_counter() - begun)


def measure(
    model: Model, tokenizer: Any, drafter: Drafter, texts: Texts, count: int
) -> dict[str, float]:
    """Answer texts plainly and with drafts in turn.

    Raises: AssertionError when an answer is not the same.
    """
    counting = Counting(drafter)
    plain, drafted = make_step(model, None), make_step(model, counting)
    tokens = passes = 0
    seconds = [0.0, 0.0]
    for asked, told in texts(count):
        wanted = answer(model, plain, tokenizer, asked, told)
        found = answer(model, drafted, tokenizer, asked, told)
        assert found.ids == wanted.ids, "a drafted answer differs from the plain one"
        tokens += len(found.ids) - 1
        passes += found.passes
        seconds[0] += wanted.seconds
        seconds[1] += found.seconds
    cost = passes + (ROW_COST[True] + drafter.cost) * counting.drafted
    return {
        "tokens": tokens,
        "tokens a pass": tokens / passes,
        "drafted a pass": counting.drafted / passes,
        "here": seconds[0] / seconds[1],
        "M1": tokens / cost,
    }


def coded_demo(variant: str, place: Path) -> str:
    """Code the demo's 16-bit weights as a variant; return the folder's name."""
    output = place / variant
    quantize.main(["--model", str(library.DEMO), "--variant", variant, "--output", str(output)])
    return str(output)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table of all variants, texts and ways to draft."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", default=[library.DEMO_VARIANT], metavar="PQn")
    parser.add_argument("--draft", nargs="+", default=["lookup"], metavar="WAY")
    parser.add_argument("--count", type=int, default=20, help="texts of each kind")
    arguments = parser.parse_args(argv)
    found = []
    with tempfile.TemporaryDirectory() as place:
        for variant in arguments.variants:
            model, tokenizer = library.load(coded_demo(variant, Path(place)))
            for way in arguments.draft:
                drafter = find_drafter(way)
                for kind, texts in TEXTS.items() if drafter is not None else ():
                    numbers = measure(model, tokenizer, drafter, texts, arguments.count)
                    found.append({"variant": variant, "drafts": way, "text": kind, **numbers})
    names = list(found[0])
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in found:
        cells = (
            f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()
        )
        print(f"| {' | '.join(cells)} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
