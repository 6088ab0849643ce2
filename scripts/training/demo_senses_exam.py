"""The demo's exams in seeing, hearing and watching, on digits that no lesson shows.

As in demo_exam.py an answerer sits them: conversations (here with media parts, see tinymedia.py)
and a token limit in, raw texts out. Every exam is also sat with its media dealt out anew among its
questions: a model that reads them is then right as often as chance has it, and no more.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scripts.training import tinymedia
from scripts.training.demo_data import Data, Pictures, Recordings
from scripts.training.demo_exam import LONGEST_ANSWER, Answerer
from scripts.training.tinymedia import Part

SEED = 411
MOST_CLIPS = 1000
MOST_SHUFFLED = 1000


class Question(NamedTuple):
    """A media part, what is asked about it, and the answer."""

    part: Part
    text: str
    answer: str


Exam = Callable[[Data, int], list[Question]]


def pick(available: int, count: int) -> list[int]:
    """Pick `count` numbers below `available`, spread evenly; all of them when there are fewer."""
    count = min(count, available)
    return [index * available // count for index in range(count)]


def digits(data: Data, count: int) -> list[Question]:
    """Handwritten digits of MNIST's test set, as they are."""
    pictures = data.exam.pictures
    return [
        Question(
            tinymedia.picture_part(pictures.pixels[index]),
            tinymedia.PICTURE_QUESTIONS[0],
            str(pictures.digits[index]),
        )
        for index in pick(len(pictures.digits), count)
    ]


def ask_recordings(recordings: Recordings, count: int) -> list[Question]:
    return [
        Question(
            tinymedia.sound_part(tinymedia.hear(recordings.waves[index])),
            tinymedia.SOUND_QUESTIONS[0],
            str(recordings.digits[index]),
        )
        for index in pick(len(recordings.digits), count)
    ]


def spoken(data: Data, count: int) -> list[Question]:
    """Spoken digits: takes never learnt from, of voices heard before."""
    return ask_recordings(data.exam.recordings, count)


def unseen_voice(data: Data, count: int) -> list[Question]:
    """Spoken digits of a voice never heard before."""
    return ask_recordings(data.unseen_voice, count)


def make_clip(rng: np.random.Generator, pictures: Pictures) -> tuple[Part, list[int]]:
    """Show two to four of MNIST's test digits in a clip of four frames, a second each."""
    frames, shown = [], []
    filled = tinymedia.place_digits(rng)
    for frame in range(tinymedia.FRAMES):
        index = int(rng.integers(len(pictures.digits)))
        if frame in filled:
            frames.append(pictures.pixels[index])
            shown.append(int(pictures.digits[index]))
        else:
            frames.append(np.zeros_like(pictures.pixels[index]))
    return tinymedia.clip_part(frames, tinymedia.FRAME_RATES_HZ[0]), shown


def clip_orders(data: Data, count: int) -> list[Question]:
    """The digits of a clip, in order."""
    rng = np.random.default_rng(SEED)
    clips = [make_clip(rng, data.exam.pictures) for _ in range(min(count, MOST_CLIPS))]
    question = tinymedia.ORDER_QUESTIONS[0]
    return [Question(part, question, tinymedia.format_order(shown)) for part, shown in clips]


def clip_counts(data: Data, count: int) -> list[Question]:
    """How many digits a clip has; chance is one in three."""
    rng = np.random.default_rng(SEED + 1)
    clips = [make_clip(rng, data.exam.pictures) for _ in range(min(count, MOST_CLIPS))]
    question = tinymedia.COUNT_QUESTIONS[0]
    return [Question(part, question, str(len(shown))) for part, shown in clips]


EXAMS: dict[str, Exam] = {
    "digits": digits,
    "spoken": spoken,
    "unseen voice": unseen_voice,
    "clip orders": clip_orders,
    "clip counts": clip_counts,
}


def shuffled(questions: list[Question]) -> list[Question]:
    """Deal the media out anew among some of the questions, which keep their answers."""
    questions = [questions[index] for index in pick(len(questions), MOST_SHUFFLED)]
    order = np.random.default_rng(SEED).permutation(len(questions))
    return [
        question._replace(part=questions[index].part)
        for question, index in zip(questions, order, strict=True)
    ]


def share_right(answerer: Answerer, questions: list[Question]) -> float:
    """Ask, and return the share of answers that are exactly right."""
    asked = [{"messages": [tinymedia.ask(item.part, item.text)]} for item in questions]
    answers = answerer(asked, LONGEST_ANSWER)
    right = sum(
        answer.strip() == item.answer for answer, item in zip(answers, questions, strict=True)
    )
    return right / len(questions)
