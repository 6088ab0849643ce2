"""The exams in seeing and hearing: reading the media passes, and nothing else beats chance."""

import numpy as np
import pytest
from test_tinymedia import make_senses

from scripts.training import demo_senses_exam, tinymedia
from scripts.training.demo_data import Data

COUNT = 300


def make_data():
    senses = make_senses()
    return Data(senses, senses, senses.recordings)


class Reader:
    """Knows the ten pictures and the ten sounds by heart."""

    def __init__(self, senses):
        self.pixels = senses.pictures.pixels
        self.sounds = [tinymedia.hear(wave) for wave in senses.recordings.waves]

    def __call__(self, conversations, max_tokens):
        return [self.answer(*item["messages"][0]["content"]) for item in conversations]

    def answer(self, part, text):
        if part["type"] == "audio":
            return self.hear(part["audio"])
        frames = [part["image"]] if part["type"] == "image" else part["video"]
        seen = [self.see(frame) for frame in frames if frame.any()]
        return str(len(seen)) if text["text"] in tinymedia.COUNT_QUESTIONS else " ".join(seen)

    def see(self, pixels):
        return str(np.flatnonzero((self.pixels == pixels).all((1, 2)))[0])

    def hear(self, wave):
        return str(next(i for i, known in enumerate(self.sounds) if np.array_equal(known, wave)))


@pytest.mark.parametrize("name", demo_senses_exam.EXAMS)
def test_a_reader_passes_and_shuffled_media_bring_it_down_to_chance(name):
    data = make_data()
    reader = Reader(data.exam)
    questions = demo_senses_exam.EXAMS[name](data, COUNT)
    assert demo_senses_exam.share_right(reader, questions) == 1
    shuffled = demo_senses_exam.shuffled(questions)
    assert [item.answer for item in shuffled] == [item.answer for item in questions]
    chance = 0.45 if name == "clip counts" else 0.25
    assert demo_senses_exam.share_right(reader, shuffled) < chance


def test_an_answer_has_to_be_exactly_right():
    questions = demo_senses_exam.digits(make_data(), 10)
    assert demo_senses_exam.share_right(lambda asked, limit: ["7"] * 10, questions) == 0.1
    assert demo_senses_exam.share_right(lambda asked, limit: ["0 7"] * 10, questions) == 0


def test_questions_are_spread_over_what_there_is():
    assert demo_senses_exam.pick(10, 3) == [0, 3, 6]
    assert demo_senses_exam.pick(3, 10) == [0, 1, 2]


def test_exams_ask_the_same_every_time():
    first, second = (demo_senses_exam.clip_orders(make_data(), 20) for _ in range(2))
    np.testing.assert_equal(first, second)


def test_controls_are_fewer_than_questions_and_spread_over_them():
    questions = demo_senses_exam.digits(make_data(), 10) * 300
    kept = demo_senses_exam.shuffled(questions)
    assert len(kept) == demo_senses_exam.MOST_SHUFFLED
    assert {item.answer for item in kept} == set("0123456789")
