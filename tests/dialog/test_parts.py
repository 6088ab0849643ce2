"""Content parts in every spelling, and the media that they name."""

import numpy as np
import pytest

from hlwq_mlx.dialog.parts import Medium, normalize_part, take_media
from hlwq_mlx.errors import RequestError

WEB = "https://example.org/cat.png"


@pytest.mark.parametrize(
    ("part", "medium"),
    [
        ({"type": "image", "image": "cat.png"}, ("image", "cat.png")),
        ({"type": "image", "path": "cat.png"}, ("image", "cat.png")),
        ({"type": "image", "url": WEB}, ("image", WEB)),
        ({"type": "image", "base64": "iVBO"}, ("image", "data:;base64,iVBO")),
        ({"type": "image_url", "image_url": {"url": WEB, "detail": "low"}}, ("image", WEB)),
        ({"type": "image_url", "image_url": "data:image/png,x"}, ("image", "data:image/png,x")),
        ({"type": "audio", "audio": b"RIFF"}, ("audio", b"RIFF")),
        ({"type": "audio", "path": "a.wav", "url": None}, ("audio", "a.wav")),
        (
            {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}},
            ("audio", "data:audio;base64,UklG"),
        ),
        ({"type": "input_audio", "input_audio": {"data": "data:,x"}}, ("audio", "data:,x")),
        ({"type": "video", "video": "a.mp4"}, ("video", "a.mp4")),
        ({"type": "video", "url": WEB}, ("video", WEB)),
    ],
)
def test_a_medium_in_every_spelling(part, medium):
    assert normalize_part(part, "here") == Medium(*medium)


def test_an_array_is_a_source():
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert normalize_part({"type": "image", "image": pixels}, "here").source is pixels


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (7, "needed a part of type text (with its text), image, image_url, audio, "),
        ({"type": ["image"]}, "needed a part of type text"),
        ({"type": "text"}, "needed a part of type text"),
        ({"type": "image"}, "needed the image under one of image, path, url, base64, got none"),
        ({"type": "video", "path": "a", "url": "b"}, "needed the video under one of video, path"),
        ({"type": "image_url", "image_url": {}}, "needed a URL that begins with data:, http"),
        (
            {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
            "here.image_url] needed a URL that begins with data:, http://, https://, got '/etc/pa",
        ),
        (
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
            'A file is {"type": "image", "path": ...}.',
        ),
        ({"type": "input_audio", "input_audio": "UklG"}, "needed data in base64 and a format"),
        ({"type": "audio", "base64": b"UklG"}, "[here.base64] needed text, got bytes."),
    ],
)
def test_what_is_no_part_is_named(part, said):
    with pytest.raises(RequestError) as raised:
        normalize_part(part, "here")
    assert str(raised.value).startswith("[here")
    assert said in str(raised.value)


def test_media_are_taken_out_of_messages():
    text = {"type": "text", "text": "Hi"}
    messages = [
        {"role": "user", "content": [Medium("image", "a"), text, Medium("audio", "b")]},
        {"role": "assistant", "content": "A"},
        {"role": "tool", "content": [Medium("video", "c")]},
    ]
    bare, media = take_media(messages)
    assert media == (("image", "a"), ("audio", "b"), ("video", "c"))
    assert bare[0]["content"] == [{"type": "image"}, text, {"type": "audio"}]
    assert bare[1] == messages[1]
    assert bare[2]["content"] == [{"type": "video"}]
