"""The demo is as good as we say, in our runtime and in the reference's.

tests/data/demo_answers.json holds what transformers answered from the same bf16 weights; its script
is `scripts/train_demo.py evaluate --answers`.
"""

import json
from pathlib import Path

import demo
import demo_exam
import pytest
import tinyworld

from hlwq_mlx import library
from hlwq_mlx.dialog import template
from hlwq_mlx.engine.decode import generate_tokens
from hlwq_mlx.engine.sampling import Sampling

COUNT = 100
# Questions asked here, and the share to be right; scripts/fidelity.py asks 100 of each.
BARS = {"sums": (COUNT, 0.95), "calculator": (20, 0.90), "thoughts": (20, 0.90)}
REFERENCE = Path(__file__).parent / "data" / "demo_answers.json"


def answers(variant, conversations, limit):
    """Answer greedily and return the raw texts, markers included."""
    model, tokenizer = demo.load(variant)
    texts = []
    for conversation in conversations:
        prompt = template.render(
            tokenizer,
            conversation["messages"],
            tools=conversation.get("tools"),
            thinking=conversation.get("thinking", False),
        )
        ids = []
        for token, _ in generate_tokens(
            model, template.encode(tokenizer, prompt), Sampling(), max_tokens=limit
        ):
            if token in tokenizer.eos_token_ids:
                break
            ids.append(token)
        texts.append(tokenizer.decode(ids))
    return texts


def bf16(conversations, limit):
    return answers("bf16", conversations, limit)


@pytest.mark.parametrize("exam", BARS)
def test_bf16_meets_its_bar(exam):
    count, bar = BARS[exam]
    assert demo_exam.EXAMS[exam](bf16, count) >= bar


@pytest.fixture(scope="module")
def asked():
    return demo_exam.story_conversations(COUNT)


@pytest.fixture(scope="module")
def answered(asked):
    return bf16([conversation for conversation, _ in asked], demo_exam.LONGEST_ANSWER)


def equal(texts, others):
    return sum(mine == theirs for mine, theirs in zip(texts, others, strict=True))


def test_bf16_knows_stories_it_has_never_seen(asked, answered):
    assert equal(answered, [wanted for _, wanted in asked]) >= 0.90 * COUNT


def test_pq5_answers_as_bf16_does(asked, answered):
    questions = [conversation for conversation, _ in asked]
    assert equal(answers("PQ5", questions, demo_exam.LONGEST_ANSWER), answered) >= 0.98 * COUNT


def test_our_bf16_answers_as_transformers_does(answered):
    reference = json.loads(REFERENCE.read_text())["stories"]
    # The reference rounds to bfloat16 at every step, we do not.
    assert equal(answered, reference) >= 0.99 * COUNT


def test_the_exam_was_not_in_the_lessons():
    told = {story.text for story, _ in demo_exam.unseen_stories(COUNT)}
    assert len(told) == COUNT
    asked = set(demo_exam.unseen_sums(COUNT))
    lessons = set(tinyworld.all_sums(held_out=False))
    assert not asked & lessons
    assert not {(second, first) for first, second in asked} & lessons


def test_what_ships_is_what_we_say():
    names = {str(path.relative_to(library.DEMO)) for path in library.DEMO.rglob("*.*")}
    assert names == set(demo.SHIPPED)
