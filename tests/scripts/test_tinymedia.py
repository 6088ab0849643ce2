"""The seen and heard part of the demo's world, on digits that the tests draw themselves."""

import numpy as np
import pytest

from scripts.training import tinymedia
from scripts.training.demo_data import (
    SPEAKERS,
    TEST_TAKES,
    UNSEEN_SPEAKER,
    DataFile,
    Pictures,
    Recordings,
    Senses,
    read_arrays,
    split_recordings,
)

DIGITS = np.arange(10, dtype=np.uint8)


def make_senses():
    """Ten printed digits, and ten tones in place of voices."""
    pixels = np.stack([tinymedia.print_digit(digit)[14:42, 14:42] for digit in DIGITS])
    seconds = np.arange(4000) / tinymedia.RECORDED_HZ
    tones = [np.sin(2 * np.pi * (300 + 100 * digit) * seconds) for digit in range(10)]
    waves = [np.rint(tone * 20000).astype(np.int16) for tone in tones]
    recordings = Recordings(waves, DIGITS, np.array(["theo"] * 10), DIGITS)
    return Senses(Pictures(pixels, DIGITS), recordings)


def media_of(conversation):
    contents = [message["content"] for message in conversation["messages"]]
    return [
        part
        for content in contents
        if isinstance(content, list)
        for part in content
        if part["type"] != "text"
    ]


def test_unseen_speaker_and_test_takes_are_in_no_lesson():
    rows = [
        (digit, speaker, take) for speaker in SPEAKERS for digit in range(10) for take in range(8)
    ]
    digits, speakers, takes = map(np.array, zip(*rows, strict=True))
    waves = [np.array([index], np.int16) for index in range(len(rows))]
    parts = split_recordings(Recordings(waves, digits, speakers, takes))
    numbers = [{int(wave[0]) for wave in part.waves} for part in parts]
    assert sum(map(len, numbers)) == len(set.union(*numbers)) == len(rows)
    learnt, known, unseen = parts
    assert learnt.takes.min() == TEST_TAKES and known.takes.max() == TEST_TAKES - 1
    assert UNSEEN_SPEAKER not in {*learnt.speakers, *known.speakers}
    assert set(unseen.speakers) == {UNSEEN_SPEAKER} and len(unseen.waves) == 80
    assert all(rows[int(wave[0])][0] == digit for wave, digit in zip(*learnt[:2], strict=True))


def test_data_has_to_be_what_was_named(tmp_path):
    np.savez(tmp_path / "some.npz", x=DIGITS)
    with pytest.raises(SystemExit, match="needed sha256 00, got"):
        read_arrays(tmp_path, DataFile("some.npz", "00", "somewhere"))
    with pytest.raises(SystemExit, match=r"needed .*other.npz. It holds ten tones."):
        read_arrays(tmp_path, DataFile("other.npz", "00", "ten tones"))


@pytest.mark.parametrize("kind", tinymedia.KINDS)
def test_equal_seeds_give_equal_conversations(kind):
    senses = make_senses()
    first, same, other = (
        [
            tinymedia.draw_conversation(rng, senses, kind)
            for rng in [np.random.default_rng(seed)]
            for _ in range(20)
        ]
        for seed in (1, 1, 2)
    )
    np.testing.assert_equal(first, same)
    with pytest.raises(AssertionError):
        np.testing.assert_equal(first, other)


@pytest.mark.parametrize("kind", tinymedia.KINDS)
def test_media_are_what_the_processor_takes(kind):
    senses = make_senses()
    rng = np.random.default_rng(3)
    for _ in range(40):
        for part in media_of(tinymedia.draw_conversation(rng, senses, kind)):
            medium = part[part["type"]]
            if kind == "sound":
                assert medium.dtype == np.float32 and np.abs(medium).max() <= 1
                assert 0 < len(medium) <= tinymedia.LONGEST_SOUND
            frames = [medium] if kind == "picture" else medium if kind == "clip" else []
            assert all(frame.dtype == np.uint8 for frame in frames)
            assert len({frame.shape for frame in frames}) <= 1
            assert kind != "clip" or len(frames) == tinymedia.FRAMES


def test_a_plain_picture_is_the_recorded_one():
    senses = make_senses()
    rng = np.random.default_rng(4)
    look = tinymedia.draw_look(rng)._replace(is_plain=True)
    pixels, digit = tinymedia.pick_picture(rng, senses.pictures, look)
    assert np.array_equal(pixels, senses.pictures.pixels[digit])


def test_the_digits_of_a_clip_are_those_of_its_frames_in_order():
    senses = make_senses()
    rng = np.random.default_rng(5)
    plain = 0
    for _ in range(60):
        question, answer = tinymedia.clip_chat(rng, senses)
        part, text = question["content"]
        if part["video"][0].ndim == 3:  # drawn anew: no longer one of the ten
            continue
        plain += 1
        shown = [
            int(np.flatnonzero((senses.pictures.pixels == frame).all((1, 2)))[0])
            for frame in part["video"]
            if frame.any()
        ]
        is_count = text["text"] in tinymedia.COUNT_QUESTIONS
        wanted = str(len(shown)) if is_count else tinymedia.format_order(shown)
        assert answer["content"] == wanted
    assert plain > 10


@pytest.mark.parametrize("length", [4000, 4001, 1999])
def test_a_recording_keeps_its_pitch_at_the_rate_the_model_hears(length):
    hertz = 1000
    wave = np.sin(2 * np.pi * hertz * np.arange(length) / tinymedia.RECORDED_HZ)
    heard = tinymedia.hear(np.rint(wave * 16384).astype(np.int16))
    assert len(heard) == 2 * length
    loudest = np.abs(np.fft.rfft(heard * np.hanning(len(heard)))).argmax()
    assert loudest * tinymedia.HEARD_HZ / len(heard) == pytest.approx(hertz, abs=10)
    middle = heard[len(heard) // 4 : len(heard) * 3 // 4]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.02)
