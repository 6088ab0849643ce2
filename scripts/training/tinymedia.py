"""The part of the demo's world that is seen and heard: digits as pictures, sounds and clips.

Turns handwritten and spoken digits (demo_data.py) into conversations whose content has media
parts, as a chat template takes them: `{"type": "image", "image": pixels}`, `{"type": "audio",
"audio": wave}` with float32 at 16 kHz, `{"type": "video", "video": frames, "fps": rate}`.
In lessons every digit is drawn and spoken anew; exams show what was recorded.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from scripts.training import tinyworld
from scripts.training.demo_data import Pictures, Recordings, Senses
from scripts.training.tinyworld import Conversation, assistant

Pixels = NDArray[np.uint8]
Wave = NDArray[np.float32]
Part = dict[str, Any]
Draw = np.random.Generator

RECORDED_HZ = 8000
HEARD_HZ = 16000
FRAMES = 4
FEWEST_DIGITS = 2
RECORDED_SIZE = (28, 28)
# Stands among the digits for a frame without one.
NOTHING = 10
FRAME_RATES_HZ = (1.0, 2.0, 0.5, 24.0)
PICTURE_QUESTIONS = ("Which digit is this?", "What digit do you see?", "Read the digit.")
SOUND_QUESTIONS = ("Which digit do you hear?", "What digit is said?", "Listen. Which digit is it?")
ORDER_QUESTIONS = ("Which digits come, in order?", "Read the digits.")
COUNT_QUESTIONS = ("How many digits come?", "Count the digits.")

# Lessons cut the few recordings that are longer, which are silent at the end.
LONGEST_SOUND = HEARD_HZ * 5 // 4

# Sides of the glyph that is bent and of the canvas it is drawn on before that is scaled.
GLYPH = 56
CANVAS = 64


class Look(NamedTuple):
    """How a picture, or every frame of a clip, is shown."""

    is_plain: bool
    size: tuple[int, int]
    paper: NDArray[np.float32]
    ink: NDArray[np.float32]
    blur: float
    noise: float


def draw_colors(rng: Draw) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw paper and ink: mostly white on black as recorded, else any two that stand apart."""
    kind = rng.random()
    if kind < 0.4:
        return np.zeros(3, np.float32), np.full(3, 255, np.float32)
    if kind < 0.6:
        return np.full(3, 255, np.float32), np.zeros(3, np.float32)
    while True:
        colors = rng.uniform(0, 255, (2, 3 if kind < 0.8 else 1)).astype(np.float32)
        paper, ink = np.broadcast_to(colors, (2, 3))
        if abs(paper.mean() - ink.mean()) > 90:
            return paper, ink


def draw_look(rng: Draw) -> Look:
    side = math.exp(rng.uniform(math.log(10), math.log(100)))
    width, height = round(side * rng.uniform(0.8, 1.2)), round(side)
    paper, ink = draw_colors(rng)
    blur = rng.uniform(0.3, 2.0) if rng.random() < 0.4 else 0.0
    noise = rng.uniform(2, 25) if rng.random() < 0.4 else 0.0
    return Look(bool(rng.random() < 0.35), (width, height), paper, ink, blur, noise)


def bend(rng: Draw, glyph: Image.Image) -> Image.Image:
    """Draw a glyph on a canvas: turned, slanted, scaled and moved a little."""
    angle, shear = math.radians(rng.uniform(-14, 14)), rng.uniform(-0.2, 0.2)
    scale = GLYPH / CANVAS / rng.uniform(0.7, 1.35)
    stretch = math.exp(rng.uniform(-0.15, 0.15))
    a, b = math.cos(angle) * scale * stretch, (math.sin(angle) + shear) * scale * stretch
    d, e = -math.sin(angle) * scale / stretch, math.cos(angle) * scale / stretch
    x, y = CANVAS / 2 + rng.uniform(-0.1, 0.1, 2) * CANVAS
    matrix = (a, b, GLYPH / 2 - a * x - b * y, d, e, GLYPH / 2 - d * x - e * y)
    return glyph.transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )


def show(rng: Draw, canvas: Image.Image, look: Look) -> Pixels:
    """Show a canvas (ink white on black) in a look: uint8 [H, W, 3]."""
    if look.blur:
        canvas = canvas.filter(ImageFilter.GaussianBlur(look.blur))
    strokes = np.asarray(canvas.resize(look.size, Image.Resampling.BICUBIC), np.float32) / 255
    pixels = look.paper + (look.ink - look.paper) * strokes[..., None]
    if look.noise:
        pixels = pixels + rng.normal(0, look.noise, pixels.shape)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def draw_picture(rng: Draw, written: Pixels, look: Look) -> Pixels:
    """Draw a handwritten digit anew, with a thicker or thinner pen, in a look."""
    if look.is_plain:
        return written
    glyph = Image.fromarray(written).resize((GLYPH, GLYPH), Image.Resampling.BICUBIC)
    pen = rng.random()
    if pen < 0.25:
        glyph = glyph.filter(ImageFilter.MaxFilter(3))
    elif pen < 0.45:
        glyph = glyph.filter(ImageFilter.MinFilter(3))
    return show(rng, bend(rng, glyph), look)


def print_digit(digit: int, height: int = 40, stroke: int = 0) -> Pixels:
    """Print a digit with Pillow's own font, white on black: uint8 [GLYPH, GLYPH]."""
    glyph = Image.new("L", (GLYPH, GLYPH))
    ImageDraw.Draw(glyph).text(
        (GLYPH / 2, GLYPH / 2),
        str(digit),
        255,
        ImageFont.load_default(height),
        "mm",
        stroke_width=stroke,
    )
    return np.asarray(glyph)


def pick_picture(rng: Draw, pictures: Pictures, look: Look) -> tuple[Pixels, int]:
    """Draw a digit for a lesson; one in twelve is printed."""
    if rng.random() < 1 / 12 and not look.is_plain:
        digit = int(rng.integers(10))
        printed = print_digit(digit, int(rng.integers(34, 46)), int(rng.integers(0, 3)))
        return draw_picture(rng, printed, look), digit
    index = int(rng.integers(len(pictures.digits)))
    return draw_picture(rng, pictures.pixels[index], look), int(pictures.digits[index])


def draw_blank(rng: Draw, look: Look) -> Pixels:
    """Draw a picture of nothing."""
    if look.is_plain:
        return np.zeros(RECORDED_SIZE, np.uint8)
    return show(rng, Image.new("L", (CANVAS, CANVAS)), look)


def pick_frame(rng: Draw, pictures: Pictures, look: Look) -> tuple[Pixels, int]:
    """Draw a frame of a clip for a lesson; one in six shows nothing."""
    if rng.random() < 1 / 6:
        return draw_blank(rng, look), NOTHING
    return pick_picture(rng, pictures, look)


def stretched_spectrum(recorded: NDArray[np.int16], length: int) -> NDArray[np.complex128]:
    """Return the spectrum of a recording stretched to `length` samples.

    It is limited to the band that the recording had or that there is room for.
    """
    spectrum = np.fft.rfft(recorded / 32768)
    bins = length // 2 + 1
    spectrum = np.pad(spectrum[:bins], (0, max(bins - len(spectrum), 0)))
    return spectrum * (length / len(recorded))


def hear(recorded: NDArray[np.int16]) -> Wave:
    """Bring a recording to the rate the model hears at, unchanged otherwise."""
    length = len(recorded) * HEARD_HZ // RECORDED_HZ
    return np.fft.irfft(stretched_spectrum(recorded, length), length).astype(np.float32)


def draw_timbre(rng: Draw, bins: int) -> NDArray[np.float64]:
    """Draw a gain for each bin of a spectrum, as another mouth and microphone would have."""
    mel = np.log1p(np.linspace(0, HEARD_HZ / 2, bins) / 700)
    decibels = rng.uniform(-4, 4) * (mel - mel.mean())
    for ripple in range(1, 4):
        phase = rng.uniform(0, 2 * math.pi)
        decibels = decibels + rng.uniform(-4, 4) * np.cos(ripple * 2 * mel + phase)
    return 10 ** (decibels / 20)


def speak(rng: Draw, recorded: NDArray[np.int16]) -> Wave:
    """Speak a recorded digit anew: speed and pitch, timbre, loudness, silence around it, noise."""
    if rng.random() < 0.1:
        return hear(recorded)[:LONGEST_SOUND]
    stretch = HEARD_HZ / RECORDED_HZ * math.exp(rng.uniform(-0.25, 0.25))
    length = round(len(recorded) * stretch) // 64 * 64
    spectrum = stretched_spectrum(recorded, length)
    wave = np.fft.irfft(spectrum * draw_timbre(rng, len(spectrum)), length)
    wave *= math.exp(rng.uniform(-1.2, 0.8))
    before, after = rng.integers(0, HEARD_HZ // 6, 2)
    wave = np.pad(wave, (int(before), int(after)))[:LONGEST_SOUND]
    noise = 10 ** rng.uniform(-4.5, -2.0)
    wave = wave + noise * rng.standard_normal(len(wave), np.float32)
    return np.clip(wave, -1, 1).astype(np.float32)


def pick_sound(rng: Draw, recordings: Recordings) -> tuple[Wave, int]:
    index = int(rng.integers(len(recordings.digits)))
    return speak(rng, recordings.waves[index]), int(recordings.digits[index])


def picture_part(pixels: Pixels) -> Part:
    return {"type": "image", "image": pixels}


def sound_part(wave: Wave) -> Part:
    return {"type": "audio", "audio": wave}


def clip_part(frames: list[Pixels], rate_hz: float) -> Part:
    return {"type": "video", "video": frames, "fps": rate_hz}


def ask(part: Part, question: str) -> dict[str, Any]:
    """Return a question about a media part as one user message."""
    return {"role": "user", "content": [part, {"type": "text", "text": question}]}


def place_digits(rng: Draw) -> list[int]:
    """Return which frames of a clip show a digit; the others are empty."""
    count = int(rng.integers(FEWEST_DIGITS, FRAMES + 1))
    return sorted(rng.choice(FRAMES, count, replace=False).tolist())


def format_order(digits: list[int]) -> str:
    return " ".join(map(str, digits))


def picture_chat(rng: Draw, senses: Senses) -> list[dict[str, Any]]:
    pixels, digit = pick_picture(rng, senses.pictures, draw_look(rng))
    question = str(rng.choice(PICTURE_QUESTIONS))
    return [ask(picture_part(pixels), question), assistant(str(digit))]


def sound_chat(rng: Draw, senses: Senses) -> list[dict[str, Any]]:
    wave, digit = pick_sound(rng, senses.recordings)
    question = str(rng.choice(SOUND_QUESTIONS))
    return [ask(sound_part(wave), question), assistant(str(digit))]


def clip_chat(rng: Draw, senses: Senses) -> list[dict[str, Any]]:
    """A clip with two to four digits, to be read in order or counted."""
    look = draw_look(rng)
    shown = place_digits(rng)
    frames, digits = [], []
    for frame in range(FRAMES):
        if frame in shown:
            pixels, digit = pick_picture(rng, senses.pictures, look)
            digits.append(digit)
        else:
            pixels = draw_blank(rng, look)
        frames.append(pixels)
    part = clip_part(frames, float(rng.choice(FRAME_RATES_HZ)))
    if rng.random() < 0.3:
        return [ask(part, str(rng.choice(COUNT_QUESTIONS))), assistant(str(len(digits)))]
    return [ask(part, str(rng.choice(ORDER_QUESTIONS))), assistant(format_order(digits))]


Kind = Callable[[Draw, Senses], list[dict[str, Any]]]
KINDS: dict[str, Kind] = {"picture": picture_chat, "sound": sound_chat, "clip": clip_chat}


def text_turn(rng: Draw) -> list[dict[str, Any]]:
    """A turn about something else: a sum or a greeting."""
    if rng.random() < 0.5:
        question, answer = tinyworld.SMALL_TALK[int(rng.integers(len(tinyworld.SMALL_TALK)))]
    else:
        sums = tinyworld.all_sums(held_out=False)
        first, second = sums[int(rng.integers(len(sums)))]
        question, answer = f"What is {first}+{second}?", str(first + second)
    return [tinyworld.user(question), assistant(answer)]


def draw_conversation(rng: Draw, senses: Senses, kind: str) -> Conversation:
    """Draw a conversation about a kind of media; some have a second turn or a system prompt."""
    messages = KINDS[kind](rng, senses)
    point = rng.random()
    if point < 0.06:
        messages = messages + text_turn(rng)
    elif point < 0.12:
        messages = text_turn(rng) + messages
    elif point < 0.18 and kind != "clip":
        messages = messages + KINDS[kind](rng, senses)
    if rng.random() < 0.15:
        prompts = tinyworld.SYSTEM_PROMPTS
        system = {"role": "system", "content": prompts[int(rng.integers(len(prompts)))]}
        messages = [system, *messages]
    return {"messages": messages}
