"""Placeholders of media in a rendered prompt, and the soft tokens that take their place.

A template writes one marker for each medium. A text that contains such a marker is not one: it is
guarded before the template sees it, and its marker encoded as the letters it is made of. Features
are not known here, only how many soft tokens they need.
Source: gemma4_architecture §3.3 and §3.6.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import RequestError

MARKERS = {"image": "<|image|>", "audio": "<|audio|>", "video": "<|video|>"}
ENCLOSURES = {
    "image": ("<|image>", "<image|>"),
    "audio": ("<|audio>", "<audio|>"),
    "video": ("<|image>", "<image|>"),
}
GUARD = "\ufdd0"  # a noncharacter, which no text may hold
_KINDS = {marker: kind for kind, marker in MARKERS.items()}
_MARKER = re.compile("(" + "|".join(map(re.escape, MARKERS.values())) + ")")
_LITERAL = re.compile(f"<(?={'|'.join(re.escape(each[1:]) for each in MARKERS.values())})")


class SoftTokens(NamedTuple):
    """The ids that a run of features of one kind is written with."""

    begin: int
    soft: int
    end: int


class Span(NamedTuple):
    """What stands for one medium: runs of soft tokens, each with the text before it."""

    kind: str
    runs: tuple[tuple[str, int], ...]


def picture_span(count: int) -> Span:
    """Return the span of an image of so many soft tokens."""
    return Span("image", (("", count),))


def sound_span(counts: Sequence[int]) -> Span:
    """Return the span of a sound: a run for each of the pieces that it is heard in."""
    return Span("audio", tuple(("", count) for count in counts))


def clip_span(stamps: Sequence[str], counts: Sequence[int]) -> Span:
    """Return the span of a video: each frame's time, as "MM:SS", then the frame."""
    texts = (f"{' ' if at else ''}{stamp} " for at, stamp in enumerate(stamps))
    return Span("video", tuple(zip(texts, counts, strict=True)))


def guard(value: Any) -> Any:
    """Return text, or what is made of text, with every literal marker kept from being one."""
    if isinstance(value, str):
        return _LITERAL.sub(f"<{GUARD}", value)
    if isinstance(value, Mapping):
        return {guard(key): guard(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [guard(each) for each in value]
    return value


def expand(
    tokenizer: Any, text: str, spans: Sequence[Span], tokens: Mapping[str, SoftTokens]
) -> list[int]:
    """Turn a rendered prompt into ids, with a span in the place of every marker.

    `spans` of a kind are in the order of its markers; `tokens` are those of the kinds that the
    model knows.
    Raises: RequestError when there are more or fewer spans of a kind than markers.
    """
    pieces: list[str | list[int]] = []
    for part in _filled(text, spans):
        if isinstance(part, str):
            pieces.append(part)
            continue
        begin, soft, end = tokens[part.kind]
        for before, count in part.runs:
            pieces += [before, [begin, *[soft] * count, end]]
    return list(_encode(tokenizer, pieces))


def spell(text: str, spans: Sequence[Span]) -> str:
    """Write a span's soft tokens in the place of every marker, for those who encode text alone.

    Raises: as `expand`.
    """
    spelled = ""
    for part in _filled(text, spans):
        if isinstance(part, str):
            spelled += part
            continue
        begin, end = ENCLOSURES[part.kind]
        for before, count in part.runs:
            spelled += f"{before}{begin}{MARKERS[part.kind] * count}{end}"
    return spelled


def _filled(text: str, spans: Sequence[Span]) -> Iterator[str | Span]:
    waiting = _match(text, spans)
    for part in _MARKER.split(text):
        yield next(waiting[_KINDS[part]]) if part in _KINDS else part


def _match(text: str, spans: Sequence[Span]) -> dict[str, Iterator[Span]]:
    waiting = {}
    for kind, marker in MARKERS.items():
        found = [span for span in spans if span.kind == kind]
        if text.count(marker) != len(found):
            raise RequestError(
                f"[prompt] needed one {kind} for each {marker}, got {len(found)} for "
                f"{text.count(marker)}. Give as many as the prompt names; a chat template that "
                "does not know a kind of media leaves it out."
            )
        waiting[kind] = iter(found)
    return waiting


def _encode(tokenizer: Any, pieces: Sequence[str | list[int]]) -> Iterator[int]:
    """Encode texts that follow each other as one: tokens reach over the places where they meet."""
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        yield from _encode_text(tokenizer, text)
        yield from piece
        text = ""
    yield from _encode_text(tokenizer, text)


def _encode_text(tokenizer: Any, text: str) -> Iterator[int]:
    """Encode what lies on either side of a guard by itself, so that no marker comes of it."""
    for piece in text.split(GUARD):
        yield from tokenizer.encode(piece, add_special_tokens=False)
