"""The grammar of Gemma 4's answers: write one, and read one piece by piece as it comes.

    <|channel>thought\\n...\\n<channel|>content<|tool_call>call:name{...}<tool_call|><turn|>

An answer is a thought, then content, then tool calls. The reader takes pieces that are split
anywhere and yields events in order. It never raises: a call that cannot be read becomes a
BrokenCall. Where models leave the grammar, it decides so:

- Every channel is a thought; only the name `thought` is removed from its text.
- `<|tool_call>` ends a thought. The end of the answer closes an open thought or call. Such a call
  counts only if its brackets and strings were closed, because half an argument must not be used.
- A marker inside `<|"|>` belongs to the string, unless the string never ends.
- Closing markers without an opening one are dropped. Nothing is read after the turn's end.

Source: gemma4_architecture §5.2 and §5.3.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError
from .stop import overlap
from .values import QUOTE, ValueProblem, is_name, parse_call, print_arguments

CHANNEL, CHANNEL_END = "<|channel>", "<channel|>"
CALL, CALL_END = "<|tool_call>", "<tool_call|>"
ENDS = ("<turn|>", "<|tool_response>", "<eos>", "<|turn>")
THOUGHT_NAME = "thought\n"

MARKERS = (CHANNEL, CHANNEL_END, CALL, CALL_END, *ENDS)
_IN_TEXT = re.compile("|".join(map(re.escape, MARKERS)))
_IN_CALL = re.compile("|".join(map(re.escape, (QUOTE, *MARKERS))))
_THOUGHT = re.compile(f"{re.escape(CHANNEL)}.*?{re.escape(CHANNEL_END)}", re.DOTALL)
_IN_STRING = re.compile(re.escape(QUOTE))


@dataclass(frozen=True)
class Thought:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of the answer itself."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A complete call of a function."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class BrokenCall:
    """A call that cannot be acted upon: its text between the markers, and why."""

    text: str
    problem: str


Event = Thought | Content | ToolCall | BrokenCall


@dataclass(frozen=True)
class Answer:
    """A whole answer, its pieces joined."""

    thought: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    broken: tuple[BrokenCall, ...] = ()


def collect(events: Iterable[Event]) -> Answer:
    """Join the events of an answer."""
    events = list(events)
    return Answer(
        "".join(event.text for event in events if isinstance(event, Thought)),
        "".join(event.text for event in events if isinstance(event, Content)),
        tuple(event for event in events if isinstance(event, ToolCall)),
        tuple(event for event in events if isinstance(event, BrokenCall)),
    )


def parse_answer(text: str, *, in_thought: bool = False) -> Answer:
    """Read a whole answer at once."""
    return collect(read_answer([text], in_thought=in_thought))


def read_answer(pieces: Iterable[str], *, in_thought: bool = False) -> Iterator[Event]:
    """Yield the events of an answer as its pieces come."""
    parser = AnswerParser(in_thought=in_thought)
    for piece in pieces:
        yield from parser.feed(piece)
    yield from parser.finish()


def print_answer(
    thought: str = "", content: str = "", calls: Sequence[ToolCall] = (), *, end: str = ""
) -> str:
    """Return an answer as the model would write it; `parse_answer` reads it back.

    Raises: RequestError for text that contains a marker of the grammar.
    """
    found = _IN_TEXT.search(thought) or _IN_TEXT.search(content)
    if found:
        raise RequestError(
            f"[answer] needed text without the model's markers, got {found.group()}. "
            "The grammar has no way to escape it; remove it."
        )
    thinking = f"{CHANNEL}{THOUGHT_NAME}{thought}\n{CHANNEL_END}" if thought else ""
    return "".join([thinking, content, *map(print_call, calls), end])


def print_call(call: ToolCall) -> str:
    """Return one call as the model would write it, with its markers.

    Raises: RequestError for a name that no function may have.
    """
    if not is_name(call.name):
        raise RequestError(
            f"[answer] needed the name of a function, got {call.name!r}. "
            "Use letters, digits and any of _ - . with : between name spaces."
        )
    return f"{CALL}call:{call.name}{print_arguments(call.arguments)}{CALL_END}"


def opens_thought(prompt: str) -> bool:
    """Return whether a prompt leaves a thought open, so that the answer begins inside it."""
    return prompt.rstrip("\n").endswith(f"{CHANNEL}thought")


def without_thoughts(text: str) -> str:
    """Return an answer without its thoughts, of which the last may be cut off.

    A marker without its counterpart counts as text.
    """
    before, end, after = text.rpartition(CHANNEL_END)
    return _THOUGHT.sub("", before + end) + after.partition(CHANNEL + THOUGHT_NAME)[0]


class AnswerParser:
    """Reads an answer piece by piece; text is withheld only while it may begin a marker."""

    def __init__(self, *, in_thought: bool = False) -> None:
        self._buffer = ""
        self._scanned = 0
        self._string_at = -1  # where the string that is open in a call begins
        self._has_thought = False
        self._break = ""  # separates a thought from the one before
        self._step: Callable[[list[Event]], bool] = self._content
        if in_thought:
            self._step = self._thought

    def feed(self, text: str) -> list[Event]:
        """Take the next piece of text and return what is certain now."""
        self._buffer += text
        events: list[Event] = []
        while self._step(events):
            pass
        return events

    def finish(self) -> list[Event]:
        """Return the rest at the end of the stream."""
        events: list[Event] = []
        while self._step == self._call:
            self._end_call(events)
            while self._step(events):
                pass
        if self._step == self._content:
            self._say(Content, self._buffer, events)
        elif self._step == self._thought:
            self._say(Thought, self._buffer.removesuffix("\n"), events)
        self._become(self._after)
        self._buffer = ""
        return events

    def _content(self, events: list[Event]) -> bool:
        found = _IN_TEXT.search(self._buffer)
        if found is None:
            self._say(Content, self._release(overlap(self._buffer, MARKERS)), events)
            return False
        self._say(Content, self._pass(found), events)
        self._open(found.group())
        return True

    def _channel(self, events: list[Event]) -> bool:
        """Read the name of a channel: `thought` and a newline, or none that we know."""
        if THOUGHT_NAME.startswith(self._buffer) and self._buffer != THOUGHT_NAME:
            return False
        if self._buffer.startswith("thought<"):  # a marker follows: the thought is empty
            self._buffer = self._buffer.removeprefix("thought")
        self._buffer = self._buffer.removeprefix(THOUGHT_NAME)
        self._become(self._thought)
        return True

    def _thought(self, events: list[Event]) -> bool:
        found = _IN_TEXT.search(self._buffer)
        if found is None:
            held = overlap(self._buffer, MARKERS)
            # A newline before the closing marker is not part of the thought, so it waits.
            held += self._buffer[: len(self._buffer) - held].endswith("\n")
            self._say(Thought, self._release(held), events)
            return False
        self._say(Thought, self._pass(found).removesuffix("\n"), events)
        self._open(found.group())
        return True

    def _call(self, events: list[Event]) -> bool:
        """Look for the end of a call, from where the last look ended."""
        while True:
            wanted = _IN_CALL if self._string_at < 0 else _IN_STRING
            found = wanted.search(self._buffer, self._scanned)
            if found is None:
                unseen = self._buffer[self._scanned :]
                self._scanned = len(self._buffer) - overlap(unseen, (QUOTE, *MARKERS))
                return False
            if found.group() != QUOTE:
                self._close_call(found, events)
                return True
            self._string_at = -1 if self._string_at >= 0 else found.end()
            self._scanned = found.end()

    def _after(self, events: list[Event]) -> bool:
        self._buffer = ""
        return False

    def _end_call(self, events: list[Event]) -> None:
        """Close a call at the stream's end, or at a marker inside its unclosed string if any."""
        found = _IN_TEXT.search(self._buffer, max(self._string_at, 0))
        if found is not None:
            self._close_call(found, events)
            return
        text, self._buffer = self._buffer, ""
        events.append(_read_call(text, is_closed=False))
        self._become(self._after)

    def _close_call(self, found: re.Match[str], events: list[Event]) -> None:
        events.append(_read_call(self._pass(found), is_closed=True))
        self._open(found.group())

    def _open(self, marker: str) -> None:
        """Go on to what a marker opens; a closing one leads back to content."""
        if marker in ENDS:
            self._become(self._after)
        elif marker == CHANNEL:
            self._break = "\n" if self._has_thought else ""
            self._become(self._channel)
        elif marker == CALL:
            self._become(self._call)
        else:
            self._become(self._content)

    def _become(self, step: Callable[[list[Event]], bool]) -> None:
        self._step = step
        self._scanned = 0
        self._string_at = -1

    def _pass(self, found: re.Match[str]) -> str:
        """Take the text before a marker out of the buffer, and the marker too."""
        before, self._buffer = self._buffer[: found.start()], self._buffer[found.end() :]
        return before

    def _release(self, held: int) -> str:
        size = len(self._buffer) - held
        released, self._buffer = self._buffer[:size], self._buffer[size:]
        return released

    def _say(self, kind: type[Thought] | type[Content], text: str, events: list[Event]) -> None:
        if not text:
            return
        if kind is Thought:
            text, self._break, self._has_thought = self._break + text, "", True
        events.append(kind(text))


def _read_call(text: str, *, is_closed: bool) -> ToolCall | BrokenCall:
    try:
        call = parse_call(text)
    except ValueProblem as problem:
        return BrokenCall(text, str(problem))
    if not is_closed and not call.is_whole:
        return BrokenCall(text, "the answer ended in the middle of the call")
    return ToolCall(call.name, call.arguments)
