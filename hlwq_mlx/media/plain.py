"""Recognize files whose header proves that decoding them takes little memory and time.

Starting a child process takes as long as reading a photo, so ordinary JPEG, PNG and WAV files are
read without one. Everything else goes to `child`. Nothing is decoded here.
Sources: ITU-T T.81 annex B (JPEG), ISO/IEC 15948 chapter 5 (PNG), the RIFF chunks of WAVE.
"""

import io
import struct
from collections.abc import Callable
from typing import BinaryIO

PLAIN_BYTES = 8 << 20
PLAIN_PIXELS = 1 << 24
# Exif, texts and profiles, whose entries may each unpack or copy much; phones write less.
NOTES_BYTES = 32 << 10

NOTES = {*range(0xE0, 0xF0), 0xFE}
TABLES = {0xC4, 0xDB, 0xDD}
SEQUENTIAL_FRAMES = {0xC0, 0xC1}  # a progressive one keeps every coefficient
START_OF_SCAN = 0xDA
PCM_TAGS = {1, 3}
EXTENSIBLE_TAG = 0xFFFE


def is_plain_image(file: BinaryIO) -> bool:
    """Return whether a file is a small JPEG or PNG of the ordinary kind."""
    return _is_plain(file, {b"\xff\xd8": _is_plain_jpeg, b"\x89PNG": _is_plain_png})


def is_plain_sound(file: BinaryIO) -> bool:
    """Return whether a file is a small WAV of plain numbers."""
    return _is_plain(file, {b"RIFF": _is_plain_wav})


def _is_plain(file: BinaryIO, checks: dict[bytes, Callable[[BinaryIO], bool]]) -> bool:
    if file.seek(0, io.SEEK_END) > PLAIN_BYTES:
        return False
    file.seek(0)
    start = file.read(4)
    try:
        return any(start.startswith(magic) and check(file) for magic, check in checks.items())
    except struct.error:  # it ends within its header
        return False


def _unpack(form: str, file: BinaryIO) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _is_plain_jpeg(file: BinaryIO) -> bool:
    """Return whether there is one sequential frame, and its components stand in one scan."""
    file.seek(2)
    frames, notes, marker = [], 0, 0
    while marker != START_OF_SCAN:
        prefix, marker, length = _unpack(">BBH", file)
        content = file.read(max(length - 2, 0))
        if marker in SEQUENTIAL_FRAMES:
            frames.append(struct.unpack(">HHB", content[1:6]))
        elif marker in NOTES:
            notes += length
        elif prefix != 0xFF or marker not in TABLES | {START_OF_SCAN}:
            return False
    if len(frames) != 1 or notes > NOTES_BYTES:
        return False
    height, width, components = frames[0]
    return 0 < height * width <= PLAIN_PIXELS and content[:1] == bytes([components])


def _is_plain_png(file: BinaryIO) -> bool:
    """Return whether there are few pixels, and little beside them."""
    file.seek(8)
    head = struct.unpack(">I4sII", file.read(16))
    if head[:2] != (13, b"IHDR") or not 0 < head[2] * head[3] <= PLAIN_PIXELS:
        return False
    notes = 0
    file.seek(8)
    while notes <= NOTES_BYTES and (chunk := file.read(8)):
        length, kind = struct.unpack(">I4s", chunk)
        notes += 0 if kind == b"IDAT" else length
        file.seek(length + 4, io.SEEK_CUR)
    return notes <= NOTES_BYTES


def _is_plain_wav(file: BinaryIO) -> bool:
    """Return whether there is PCM, and nothing but short notes beside it."""
    file.seek(8)
    form, kind, length, tag = struct.unpack("<4s4sIH", file.read(14))
    if form != b"WAVE" or kind != b"fmt " or length < 16:
        return False
    if tag == EXTENSIBLE_TAG:
        file.seek(44)
        (tag,) = _unpack("<H", file)
    file.seek(12)
    while chunk := file.read(8):
        kind, length = struct.unpack("<4sI", chunk)
        is_note = kind in (b"fmt ", b"fact", b"LIST") and length <= NOTES_BYTES
        if not is_note and kind != b"data":
            return False
        file.seek(length + length % 2, io.SEEK_CUR)
    return tag in PCM_TAGS
