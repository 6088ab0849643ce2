"""Convert content parts, as transformers and OpenAI write them, into what chat templates take.

A part with media becomes a `Medium`, and `{"type": KIND}` for the template. The kind is one of the
three that every template knows; the source says where the medium comes from. No source is read.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import Any, NamedTuple

from ..errors import RequestError

Normal = dict[str, Any]

# For each type of part, the kind of medium, and the keys that may hold the source.
PART_TYPES = {
    "image": ("image", ("image", "path", "url", "base64")),
    "image_url": ("image", ("image_url",)),
    "audio": ("audio", ("audio", "path", "url", "base64")),
    "input_audio": ("audio", ("input_audio",)),
    "video": ("video", ("video", "path", "url", "base64")),
}
MEDIA_TYPES = tuple(PART_TYPES)
URL_SCHEMES = ("data:", "http://", "https://")


class Medium(NamedTuple):
    """An image, audio or video, and its source: a path, bytes, a URL or an array."""

    kind: str
    source: Any

    def mark(self) -> Hashable:
        """Return a key that identifies the medium: its source, or for an array a new object."""
        return self if isinstance(self.source, str | bytes | Path) else object()


def normalize_part(part: Any, where: str) -> Normal | Medium:
    """Return a part with text, or the medium that it names.

    Raises: RequestError naming the place of a part that is neither, or has no source.
    """
    if isinstance(part, str):
        return {"type": "text", "text": part}
    stated = part.get("type") if isinstance(part, Mapping) else None
    if stated == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if not isinstance(stated, str) or stated not in PART_TYPES:
        raise RequestError(
            f"[{where}] needed a part of type text (with its text), {', '.join(MEDIA_TYPES)}, "
            f"got {brief(part)}. Correct it."
        )
    kind, keys = PART_TYPES[stated]
    given = [key for key in keys if part.get(key) is not None]
    if len(given) != 1:
        raise RequestError(
            f"[{where}] needed the {kind} under one of {', '.join(keys)}, got "
            f"{', '.join(given) or 'none of them'}. Say where the {kind} comes from."
        )
    read = READERS.get(given[0])
    source = part[given[0]]
    return Medium(kind, read(source, where) if read else source)


def take_media(messages: list[Normal]) -> tuple[list[Normal], tuple[Medium, ...]]:
    """Take the media out of normal messages, in the order in which templates render them."""
    media: list[Medium] = []
    bare = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            media += [part for part in content if isinstance(part, Medium)]
            message = {**message, "content": [_bare(part) for part in content]}
        bare.append(message)
    return bare, tuple(media)


def _bare(part: Normal | Medium) -> Normal:
    return {"type": part.kind} if isinstance(part, Medium) else part


def _from_url(value: Any, where: str) -> str:
    """Read what OpenAI's clients send: a URL, which never is a file of this machine."""
    url = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(url, str) or not url.startswith(URL_SCHEMES):
        shown = url if not isinstance(url, str) else url[:60]
        raise RequestError(
            f"[{where}.image_url] needed a URL that begins with {', '.join(URL_SCHEMES)}, got "
            f'{shown!r}. A file is {{"type": "image", "path": ...}}.'
        )
    return url


def _from_data(value: Any, where: str) -> str:
    """Read OpenAI's `input_audio`: base64 text and the name of its format, which is not trusted."""
    data = value.get("data") if isinstance(value, Mapping) else None
    if not isinstance(data, str):
        raise RequestError(
            f"[{where}.input_audio] needed data in base64 and a format, got {brief(value)}. "
            'Give {"data": ..., "format": "wav"}.'
        )
    return data if data.startswith("data:") else f"data:audio;base64,{data}"


def _from_base64(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"[{where}.base64] needed text, got {type(value).__name__}. Encode it.")
    return f"data:;base64,{value}"


READERS = {"image_url": _from_url, "input_audio": _from_data, "base64": _from_base64}
