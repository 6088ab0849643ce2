"""Which files are read without another process, and which are not."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from media_files import sound_file
from PIL import Image

from hlwq_mlx.media.images import read_image
from hlwq_mlx.media.plain import is_plain_image, is_plain_sound
from hlwq_mlx.media.processor import SoundSettings
from hlwq_mlx.media.sound import read_sound


def encoded(form, size=(64, 48), **options):
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, form, **options)
    return file.getvalue()


def chunk(kind, content):
    tail = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + tail


def with_chunk(png, kind, content):
    return png[:33] + chunk(kind, content) + png[33:]


def with_segment(jpeg, marker, content):
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[2:]


@pytest.fixture
def alone(monkeypatch):
    """No other process can be started."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_an_ordinary_picture_starts_no_process(form, alone):
    assert read_image(encoded(form)).shape == (48, 64, 3)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "pcm_f32le"])
def test_an_ordinary_wav_starts_no_process(codec, alone):
    sound = sound_file(np.zeros(1600), 16_000, "wav", codec)
    assert len(read_sound(sound, SoundSettings())) == 1600


JPEG, PNG = encoded("JPEG"), encoded("PNG")
SCAN = JPEG.index(b"\xff\xda")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8",
        encoded("WEBP"),
        encoded("JPEG", progressive=True),
        encoded("JPEG", size=(4200, 4200)),
        with_segment(JPEG, 0xE1, b"Exif\0\0" + bytes(40_000)),
        JPEG[:SCAN] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + JPEG[SCAN:],
        JPEG[:-2] + bytes(9 << 20),
        encoded("PNG", size=(4200, 4200)),
        with_chunk(PNG, b"eXIf", bytes(40_000)),
        PNG + chunk(b"tEXt", b"a\0" + bytes(40_000)),
        PNG[:20],
    ],
    ids=[
        *("empty", "cut jpeg", "webp", "progressive", "large jpeg", "exif", "scans", "long"),
        *("large png", "exif in png", "text", "cut png"),
    ],
)
def test_pictures_that_prove_nothing(content):
    assert not is_plain_image(io.BytesIO(content))


WAV = sound_file(np.zeros(100), 16_000, "wav", "pcm_s16le")


@pytest.mark.parametrize(
    "content",
    [
        b"RIFF",
        WAV + b"ID3 " + struct.pack("<I", 4) + b"abcd",
        WAV[:20] + b"\x55\x00" + WAV[22:],
        WAV + bytes(9 << 20),
        sound_file(np.zeros(100), 16_000, "flac", "flac"),
    ],
    ids=["cut", "tags", "mp3", "long", "flac"],
)
def test_sounds_that_prove_nothing(content):
    assert is_plain_sound(io.BytesIO(WAV))
    assert not is_plain_sound(io.BytesIO(content))
