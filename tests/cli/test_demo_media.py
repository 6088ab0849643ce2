"""The demo reads, hears and watches real files from the command line."""

import io
from pathlib import Path

import demo
import numpy as np
import pytest
from media_files import sound_file, video_file
from PIL import Image, ImageDraw

from hlwq_mlx.media.processor import SoundSettings
from hlwq_mlx.media.sound import read_sound

SAMPLES = Path(__file__).parents[2] / "scripts" / "samples"
PICTURE, SOUND = SAMPLES / "seven.png", SAMPLES / "three.wav"
SHOWN = (4, None, 7, 1)  # the digits of a clip's frames
STROKES = {
    1: [[(14, 5), (14, 23)]],
    4: [[(17, 23), (17, 5), (7, 17), (21, 17)]],
    7: [[(8, 6), (20, 6), (12, 23)]],
}


def jpeg():
    file = io.BytesIO()
    Image.open(PICTURE).convert("RGB").resize((300, 300)).save(file, "jpeg", quality=90)
    return file.getvalue()


def mp3():
    wave = read_sound(str(SOUND), SoundSettings())
    return sound_file(wave, 16_000, "mp3", "libmp3lame", b="64k")


def frame(digit):
    """Draw a digit with a pen of our own, white on black."""
    drawn = Image.new("RGB", (56, 56))
    for stroke in STROKES.get(digit, ()):
        points = [(2 * x, 2 * y) for x, y in stroke]
        ImageDraw.Draw(drawn).line(points, "white", 5, "curve")
    return np.asarray(drawn)


def mp4():
    return video_file(np.stack([frame(digit) for digit in SHOWN]), fps=1)


FILES = {
    "png": ("--image", PICTURE.read_bytes, "Which digit is this?", "7"),
    "jpg": ("--image", jpeg, "Which digit is this?", "7"),
    "wav": ("--audio", SOUND.read_bytes, "Which digit do you hear?", "3"),
    "mp3": ("--audio", mp3, "Which digit do you hear?", "3"),
    "mp4": ("--video", mp4, "Which digits come, in order?", "4 7 1"),
}


SLOW = {"jpg", "mp3"}  # other readers' tests have them


@pytest.mark.parametrize(
    "suffix",
    [pytest.param(each, marks=[pytest.mark.slow] if each in SLOW else []) for each in FILES],
)
def test_the_demo_answers_about_a_file(tmp_path, suffix):
    option, content, question, answer = FILES[suffix]
    path = tmp_path / f"shown.{suffix}"
    path.write_bytes(content())
    run = demo.run("hlwq_mlx.generate", option, str(path), "--prompt", question)
    assert run.stdout == f"{answer}\n", run.stderr
