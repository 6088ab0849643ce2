"""Tokens a pass of the demo with drafts, on texts that no training uses.

    python scripts/benchmarks/drafts.py                      PQ5, prompt lookup
    python scripts/benchmarks/drafts.py --draft model        PQ5, the demo's drafter
    python scripts/benchmarks/drafts.py --draft random       PQ5, a drafter that is never right
    python scripts/benchmarks/drafts.py --variants PQ2 PQ3 PQ4 PQ5 PQ8 --count 40

Every answer is made twice in turn, plainly and with drafts, and has to be the same. Stories are
continued, answered about and thought about (a thought quotes a sentence), sums are told. For
quoting, a constraint lets the demo say nothing but the story, since it does not quote by itself.
Counted are the passes behind the prompt, of as many tokens as an M1 reads for the price of one.
`here` is the wall-clock ratio of decoding, plain over drafted. `M1` is a model, not a measurement:
what the same passes of E4B in that variant, and Google's drafter for it where a drafter drafts,
would gain there (benchmarks/passes.py). Prints Markdown and a line of JSON.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_map

from hlwq_mlx import library, quantize
from hlwq_mlx.engine.answer import make_chooser, prefill
from hlwq_mlx.engine.decoding import Decoding
from hlwq_mlx.engine.draft import Course, Drafter
from hlwq_mlx.engine.drafters import find_drafter
from hlwq_mlx.engine.mtp import ModelDrafter
from hlwq_mlx.engine.request import Prepared, Request
from hlwq_mlx.engine.speculate import DraftingStep, make_step
from hlwq_mlx.engine.step import Row, Step, start_row
from hlwq_mlx.folder import loading
from hlwq_mlx.gemma4.model import Model
from hlwq_mlx.quant.chips import chips
from hlwq_mlx.quant.layers import usual_bits
from hlwq_mlx.source.layout import DRAFTER
from hlwq_mlx.write.cache import open_drafter
from scripts.benchmarks import pass_tables, passes
from scripts.kernels.agx.chips import M1
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
    start_row(row, prefill(model, Request(Prepared(keys)), caches, course=row.course))
    found, passes, begun = [row.token], 0, time.perf_counter()
    while not row.is_over:
        [outcome] = step([row])
        if isinstance(outcome, Exception):
            raise outcome
        found += [chosen.token for chosen in outcome]
        passes += 1
    return Answer(found, passes, time.perf_counter() - begun)


def gain(
    e4b: passes.Model, tokens: int, checked: Mapping[int, int], drafter: passes.Drafter | None
) -> float:
    """Return how much sooner an M1 would have so many tokens of E4B.

    `checked` counts passes by how many drafts each checked, plain ones being those of none.
    """
    plain = [passes.cost(e4b, M1, n).seconds for n in passes.TOKENS]
    seconds = sum(
        count * (plain[drafts] + (drafter.seconds(M1, drafts) if drafter else 0.0))
        for drafts, count in checked.items()
    )
    return tokens * plain[0] / seconds


def measure(
    model: Model, tokenizer: Any, drafter: Drafter, texts: Texts, count: int, e4b: passes.Model
) -> dict[str, float]:
    """Answer texts plainly and with drafts in turn.

    Raises: AssertionError when an answer is not the same.
    """
    plain, drafted = make_step(model, None), make_step(model, drafter)
    assert isinstance(drafted, DraftingStep)
    drafted.most_tokens = chips()["M1"].tokens_a_pass[usual_bits(model) - 1]
    tokens = taken = 0
    seconds = [0.0, 0.0]
    for asked, told in texts(count):
        wanted = answer(model, plain, tokenizer, asked, told)
        found = answer(model, drafted, tokenizer, asked, told)
        assert found.ids == wanted.ids, "a drafted answer differs from the plain one"
        tokens += len(found.ids) - 1
        taken += found.passes
        seconds[0] += wanted.seconds
        seconds[1] += found.seconds
    checked = drafted.checked
    drafts = sum(each * count for each, count in checked.items())
    checked[0] = taken - sum(count for each, count in checked.items() if each)
    theirs = passes.e4b_drafter(pass_tables.CONTEXT) if drafter.needs_hidden else None
    return {
        "tokens": tokens,
        "tokens a pass": tokens / taken,
        "drafted a pass": drafts / taken,
        "here": seconds[0] / seconds[1],
        "M1": gain(e4b, tokens, checked, theirs),
    }


def find(model: Model, way: str) -> Drafter | None:
    """Return what drafts for the demo in a way of the commands' --draft, or of random weights."""
    folder = library.DEMO / DRAFTER
    if way == "model":
        return library.load_drafter(model, folder)
    if way != "random":
        return find_drafter(way)
    drafter = loading.load_drafter(open_drafter(str(folder)))
    mx.random.seed(0)
    drafter.update(tree_map(shuffled, drafter.parameters()))
    mx.eval(drafter.parameters())
    return ModelDrafter(model, drafter)


def shuffled(weight: mx.array) -> mx.array:
    """Return a weight with its numbers in random places; whole ones name tokens, and stay."""
    if not mx.issubdtype(weight.dtype, mx.floating):
        return weight
    return mx.random.permutation(weight.flatten()).reshape(weight.shape)


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
    e4b = pass_tables.models()
    with tempfile.TemporaryDirectory() as place:
        for variant in arguments.variants:
            model, tokenizer = library.load(coded_demo(variant, Path(place)))
            for way in arguments.draft:
                drafter = find(model, way)
                for kind, texts in TEXTS.items() if drafter is not None else ():
                    numbers = measure(
                        model, tokenizer, drafter, texts, arguments.count, e4b[variant]
                    )
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
