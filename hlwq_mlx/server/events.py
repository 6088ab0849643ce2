"""The events of an answer, in order, before a dialect writes them.

    Begun, then Thought, Content and Call as they come, then one Done or Failed

Waiting may come anywhere before the end: the client shall see that the server lives.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..dialog.grammar import Thought as Thought
from ..errors import HLWQError

Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Alternative:
    """A token that could have been chosen: its text as bytes, and its log probability."""

    token: bytes
    logprob: float


@dataclass(frozen=True)
class TokenScore(Alternative):
    """A chosen token and the likeliest ones in its place."""

    top: Sequence[Alternative] = ()


@dataclass(frozen=True)
class Usage:
    """What an answer took: tokens, and seconds."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0
    load_s: float = 0.0
    prompt_s: float = 0.0
    answer_s: float = 0.0


@dataclass(frozen=True)
class Begun:
    """The prompt is accepted; how many tokens it has, and how many of them were known."""

    prompt: int
    cached: int


@dataclass(frozen=True)
class Waiting:
    """Nothing new; written in a dialect's own form so that no client gives up."""


@dataclass(frozen=True)
class Content:
    """A piece of the answer, with the scores of its tokens where the client wants them."""

    text: str
    scores: Sequence[TokenScore] = ()


@dataclass(frozen=True)
class Call:
    """A complete call of a tool; `index` counts the calls of an answer from 0."""

    index: int
    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """The end of an answer; `stop` is the stop string that ended it, if one did."""

    reason: Reason
    usage: Usage
    stop: str | None = None


@dataclass(frozen=True)
class Failed:
    """The end of an answer that could not be given; `status` is that of HTTP."""

    problem: HLWQError
    status: int = 500


Event = Begun | Waiting | Thought | Content | Call | Done | Failed


@dataclass(frozen=True)
class Whole:
    """A whole answer, its events joined."""

    thought: str
    content: str
    scores: Sequence[TokenScore]
    calls: Sequence[Call]
    done: Done


def join(events: Iterable[Event]) -> Whole:
    """Join the events of an answer that ended in Done."""
    events = list(events)
    pieces = [event for event in events if isinstance(event, Content)]
    return Whole(
        "".join(event.text for event in events if isinstance(event, Thought)),
        "".join(piece.text for piece in pieces),
        [score for piece in pieces for score in piece.scores],
        [event for event in events if isinstance(event, Call)],
        next(event for event in events if isinstance(event, Done)),
    )
