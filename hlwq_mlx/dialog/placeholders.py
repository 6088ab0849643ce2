"""Replace the placeholders of media in a rendered prompt by soft tokens.

A template writes one marker for each medium. A marker that a user wrote does not count, because the
prompt breaks inside it (see dialog.guard). This module knows how many soft tokens features need,
not the features.
Source: gemma4_architecture §3.3 and §3.6.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..errors import RequestError
from .interface import TokenizerLike

MARKERS = {"image": "<|image|>", "audio": "<|audio|>", "video": "<|video|>"}
ENCLOSURES = {
    "image": ("<|image>", "<image|>"),
    "audio": ("<|audio>", "<audio|>"),
    "video": ("<|image>", "<image|>"),
}
_KINDS = {marker: kind for kind, marker in MARKERS.items()}
_MARKER = re.compile("(" + "|".join(map(re.escape, MARKERS.values())) + ")")


class SoftTokens(NamedTuple):
    """The ids that a run of features of one kind is written with."""

    begin: int
    soft: int
    end: int


class Span(NamedTuple):
    """The replacement of one medium: runs of soft tokens, each with the text before it."""

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


def expand(
    tokenizer: TokenizerLike,
    pieces: Sequence[str],
    spans: Sequence[Span],
    tokens: Mapping[str, SoftTokens],
) -> list[int]:
    """Return the ids of a rendered prompt, with a span in place of every marker.

    No token spans two of the prompt's `pieces`. `spans` of a kind are in the order of its markers;
    `tokens` are those of the kinds that the model knows.
    Raises: RequestError when there are more or fewer spans of a kind than markers.
    """
    parts: list[str | list[int]] = []
    for part in _filled(pieces, spans):
        if not isinstance(part, Span):
            parts.append(part)
            continue
        begin, soft, end = tokens[part.kind]
        for before, count in part.runs:
            parts += [before, [begin, *[soft] * count, end]]
    return _encode(tokenizer, parts)


def expand_text(text: str, spans: Sequence[Span]) -> str:
    """Return a text with soft tokens in place of every marker, for callers that encode text only.

    Raises: as `expand`.
    """
    expanded = ""
    for part in _filled([text], spans):
        if isinstance(part, str):
            expanded += part
        elif isinstance(part, Span):
            expanded += _span_text(part)
    return expanded


def _span_text(span: Span) -> str:
    begin, end = ENCLOSURES[span.kind]
    marker = MARKERS[span.kind]
    return "".join(f"{before}{begin}{marker * count}{end}" for before, count in span.runs)


def _filled(pieces: Sequence[str], spans: Sequence[Span]) -> Iterator[str | list[int] | Span]:
    """Yield texts, spans, and an empty run of ids wherever two pieces meet."""
    waiting = _match(pieces, spans)
    for at, piece in enumerate(pieces):
        if at:
            yield []  # keeps `_encode` from joining the pieces
        for part in _MARKER.split(piece):
            yield next(waiting[_KINDS[part]]) if part in _KINDS else part


def _match(pieces: Sequence[str], spans: Sequence[Span]) -> dict[str, Iterator[Span]]:
    waiting = {}
    for kind, marker in MARKERS.items():
        found = [span for span in spans if span.kind == kind]
        places = sum(piece.count(marker) for piece in pieces)
        if places != len(found):
            raise RequestError(
                f"[prompt] needed one {kind} for each {marker}, got {len(found)} for "
                f"{places}. Give as many as the prompt names; a chat template that "
                "does not know a kind of media leaves it out."
            )
        waiting[kind] = iter(found)
    return waiting


def _encode(tokenizer: TokenizerLike, parts: Sequence[str | list[int]]) -> list[int]:
    """Encode neighbouring texts as one text, so that tokens may span them."""
    ids: list[int] = []
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        ids += tokenizer.encode(text, add_special_tokens=False)
        ids += part
        text = ""
    return ids + tokenizer.encode(text, add_special_tokens=False)
