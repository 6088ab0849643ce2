"""What a hostile medium takes before it is refused, and a large one when it is read.

The reading process and its own are watched from here: at most 400 MB above what it holds idle.
"""

import io
import json
import os
import re
import struct
import subprocess
import sys
import time
import wave
import zlib

import numpy as np
import psutil
import pytest
from heic_files import HEVC, Heic, full_box, hevc
from media_files import video_file
from PIL import Image
from test_plain import chunk, encoded, with_chunk

MOST_BYTES = 400_000_000
READER = """
import sys, json
from hlwq_mlx.errors import HLWQError
from hlwq_mlx.media.images import image_patches, read_image
from hlwq_mlx.media.processor import Processor
from hlwq_mlx.media.sound import read_sound, sound_mels
from hlwq_mlx.media.video import clip_patches, read_video

settings = Processor()
readers = {
    "image": lambda path: [image_patches(read_image(path), settings.image)],
    "sound": lambda path: sound_mels(read_sound(path, settings.sound), settings.sound),
    "video": lambda path: clip_patches(read_video(path, settings.video), settings.video),
}
readers["image"](sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    kind, path = json.loads(line)
    try:
        print(f"{sum(made.soft_tokens for made in readers[kind](path))} tokens", flush=True)
    except HLWQError as error:
        print(error, flush=True)
"""


class Reader:
    """A process that reads media and is measured."""

    def __init__(self, folder):
        self._path = folder / "medium"
        self._path.write_bytes(encoded("PNG"))
        command = [sys.executable, "-c", READER, str(self._path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, **pipes)
        assert self._process.stdout.readline() == "ready\n"
        self._idle = self._held()

    def read(self, kind, content):
        """What it says of a medium, and how much it held at most above idle."""
        self._path.write_bytes(content)
        self._process.stdin.write(json.dumps([kind, str(self._path)]) + "\n")
        self._process.stdin.flush()
        os.set_blocking(self._process.stdout.fileno(), False)
        answer, most = "", 0
        while not answer.endswith("\n"):
            answer += self._process.stdout.readline()
            most = max(most, self._held() - self._idle)
            time.sleep(0.005)
        return answer.strip(), most

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _held(self):
        held = 0
        reader = psutil.Process(self._process.pid)
        for process in [reader, *reader.children()]:
            try:
                held += process.memory_info().rss
            except psutil.Error:
                continue
        return held


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    made = Reader(tmp_path_factory.mktemp("media"))
    yield made
    made.close()


def webp(side):
    """A lossless picture of one colour: its size is in the header, and nothing behind it."""
    codes = 0x88888  # five codes of one symbol each
    content = b"\x2f" + struct.pack("<IQx", side - 1 | side - 1 << 14, codes)
    chunk = b"VP8L" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def png(w, h, depth, colour):
    """Zeros of any depth, packed a thousandfold."""
    row = 1 + w * depth * {0: 1, 2: 3, 6: 4}[colour] // 8
    packer = zlib.compressobj(1)
    data = b"".join([packer.compress(bytes(row * h)), packer.flush()])
    header = chunk(b"IHDR", struct.pack(">2I5B", w, h, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def exif_bomb(entries, size):
    """Notes that all lie in the same place, each of which is copied."""
    table = b"".join(
        struct.pack(">2H2I", 0xC000 + tag % 0x3000, 7, size, 8) for tag in range(entries)
    )
    return b"MM\0*" + struct.pack(">IH", 8, entries) + table + bytes(size)


def notes_bomb(count):
    """Text that unpacks to a thousand times its size, again and again."""
    note = b"a\0\0" + zlib.compress(bytes(1 << 20))
    content = encoded("PNG")
    return content[:33] + chunk(b"zTXt", note) * count + content[33:]


def animation(form, side):
    frames = [Image.new("P", (side, side), shade) for shade in range(3)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


def index_bomb(count):
    """A film whose table of sample sizes claims `count` entries, of which FFmpeg keeps 40 bytes."""
    film = bytearray(video_file(np.zeros((3, 16, 16, 3), np.uint8)))
    at = film.index(b"stsz")
    film[at + 8 : at + 16] = struct.pack(">2I", 1, count)  # all of one byte
    stts = film.index(b"stts")
    film[stts + 12 : stts + 16] = struct.pack(">I", count)
    stsc = film.index(b"stsc")
    film[stsc + 16 : stsc + 20] = struct.pack(">I", count)
    return bytes(film)


def photo(rows, columns):
    """A HEIC as phones write it, of tiles of 512 pixels."""
    heic = Heic()
    tile = np.asarray(Image.linear_gradient("L").resize((512, 512)).convert("RGB"))
    config, (data,) = hevc(tile[None])
    extent = full_box(b"ispe", 0, struct.pack(">2I", 512, 512))
    tiles = [heic.add(HEVC, data, config, extent) for _ in range(rows * columns)]
    return heic.file(heic.join(tiles, rows, columns, rows * 512, columns * 512))


def long_wav(seconds):
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(1)
        writer.setframerate(16_000)
        writer.writeframes(b"\x80" * 16_000 * seconds)
    return file.getvalue()


def tiff(side):
    """Floating point, one strip."""
    file = io.BytesIO()
    Image.new("F", (side, side)).save(file, "TIFF", compression="tiff_deflate")
    return file.getvalue()


REFUSED = {
    "webp": (
        "image",
        lambda: webp(9_400),
        "exceeds limit of 17250000 pixels",
    ),
    "float-tiff": ("image", lambda: tiff(7_000), "1 to 31,363,636 pixels"),
    "deep-png": ("image", lambda: png(9_400, 9_400, 16, 0), "exceeds limit of 49285714 pixels"),
    "notes": ("image", lambda: notes_bomb(900), "Too much memory used in text chunks"),
    "gif": ("image", lambda: animation("GIF", 7_500), "exceeds limit of 49285714 pixels"),
    "mp4": (
        "video",
        lambda: index_bomb(80_000_000),
        "(a video|media) .*(does not fit into memory|more than)",
    ),
    "wav": ("sound", lambda: long_wav(2_701), "at most 45 minutes of sound"),
}
READ = {
    "exif": lambda: with_chunk(encoded("PNG"), b"eXIf", exif_bomb(9_000, 300_000)),
    "png": lambda: png(7_000, 7_000, 8, 2),
    "webp": lambda: webp(4_100),
    "heic": lambda: photo(12, 15),
}


LATER = {"float-tiff", "deep-png", "notes", "webp", "exif"}  # one of a kind is in the gate


def named(cases):
    return [pytest.param(each, marks=[pytest.mark.slow] if each in LATER else []) for each in cases]


@pytest.mark.parametrize("name", named(REFUSED))
def test_a_hostile_medium_is_refused_in_little_memory(name, reader):
    kind, write, message = REFUSED[name]
    answer, most = reader.read(kind, write())
    assert re.search(rf"medium\] needed (an image .*|a picture of fewer .*)?{message}", answer), (
        answer
    )
    assert most <= MOST_BYTES


@pytest.mark.parametrize("name", named(READ))
def test_a_large_picture_is_read_in_little_memory(name, reader):
    answer, most = reader.read("image", READ[name]())
    assert answer.endswith(" tokens"), answer
    assert most <= MOST_BYTES
