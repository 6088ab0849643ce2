"""The demo is as good as we say, in our runtime and in the reference's.

tests/data/demo_answers.json holds what transformers answered from the same bf16 weights; its script
is `scripts/training/train_demo.py evaluate --answers`.
"""

import json
from functools import cache
from pathlib import Path

import demo
import pytest

from hlwq_mlx import library
from scripts.benchmarks import fidelity
from scripts.training import demo_exam, tinyworld

COUNT = 100
# Of the stories and sums; `--all` asks all of them, as scripts/benchmarks/fidelity.py does.
FEWER = 12
REFERENCE = Path(__file__).parents[1] / "data" / "demo_answers.json"


@cache
def subject(variant):
    return fidelity.Subject(demo.folder(variant))


@pytest.mark.parametrize(
    ("exam", "count", "bar"),
    [
        ("sums", FEWER, 0.95),
        pytest.param("sums", COUNT, 0.95, marks=pytest.mark.slow),
        pytest.param("thoughts", 20, 0.90, marks=pytest.mark.slow),
    ],
)
def test_bf16_meets_its_bar(exam, count, bar):
    assert demo_exam.EXAMS[exam](subject("bf16").answerer, count) >= bar


@pytest.mark.slow  # two answers for each of 100 questions; of fewer, chance would decide
def test_bf16_calls_the_calculator():
    assert demo_exam.EXAMS["calculator"](subject("bf16").answerer, COUNT) >= 0.90


@pytest.fixture(scope="module", params=[FEWER, pytest.param(COUNT, marks=pytest.mark.slow)])
def asked(request):
    return demo_exam.story_conversations(COUNT)[: request.param]


@pytest.fixture(scope="module")
def answered(asked):
    return answers("bf16", asked)


def answers(variant, asked):
    questions = [conversation for conversation, _ in asked]
    return subject(variant).answerer(questions, demo_exam.LONGEST_ANSWER)


def equal(texts, others):
    return sum(mine == theirs for mine, theirs in zip(texts, others, strict=True))


def test_bf16_knows_stories_it_has_never_seen(asked, answered):
    assert equal(answered, [wanted for _, wanted in asked]) >= 0.90 * len(asked)


def test_pq5_answers_as_bf16_does(asked, answered):
    assert equal(answers("PQ5", asked), answered) >= int(0.98 * len(asked))


def test_a_batch_answers_as_one_at_a_time(asked, answered):
    model, tokenizer = demo.load("bf16")
    few = [
        library.generate(model, tokenizer, conversation["messages"])
        for conversation, _ in asked[:8]
    ]
    assert few == answered[:8]


def test_our_bf16_answers_as_transformers_does(answered):
    reference = json.loads(REFERENCE.read_text())["stories"]
    # The reference rounds to bfloat16 at every step, we do not.
    assert equal(answered, reference[: len(answered)]) >= 0.99 * len(answered)


def test_exam_stories_differ_and_no_exam_sum_was_in_the_lessons():
    told = {story.text for story, _ in demo_exam.unseen_stories(COUNT)}
    assert len(told) == COUNT
    asked = set(demo_exam.unseen_sums(COUNT))
    lessons = set(tinyworld.all_sums(held_out=False))
    assert not asked & lessons
    assert not {(second, first) for first, second in asked} & lessons


def test_what_ships_is_what_we_say():
    names = {str(path.relative_to(library.DEMO)) for path in library.DEMO.rglob("*.*")}
    assert names == set(demo.SHIPPED)
