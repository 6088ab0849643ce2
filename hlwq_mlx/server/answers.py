"""Turn the tokens of an answer into events: text, stop strings, thoughts and calls.

Stop strings end the content alone: a thought or a call that holds one goes on.
"""

import secrets
from collections.abc import Iterable, Sequence

from ..dialog import grammar
from ..dialog.interface import DetokenizerLike
from ..dialog.stop import StopStrings
from .events import Call, Content, Event, Reason, Thought, TokenScore


class _Reader:
    """What all readers do: take a token's text, and end at the first stop string."""

    reasoning_tokens = 0

    def __init__(self, detokenizer: DetokenizerLike, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._content = _Content(stops)

    @property
    def stop(self) -> str | None:
        """The stop string that was found."""
        return self._content.stop

    def _text(self, token: int, score: TokenScore | None) -> str:
        """Take a token and return what it adds to the text."""
        self._detokenizer.add_token(token)
        self._content.scored(score)
        return self._detokenizer.last_segment


class RawReader(_Reader):
    """Reads an answer to a raw prompt: all of it is text."""

    @property
    def is_over(self) -> bool:
        """Whether a stop string was found."""
        return self.stop is not None

    def add(self, token: int, score: TokenScore | None) -> list[Event]:
        """Take a token and return the events that are certain now."""
        return self._content.feed(self._text(token, score))

    def finish(self) -> list[Event]:
        """Return the rest at the end of the answer."""
        if self.is_over:
            return []
        self._detokenizer.finalize()
        return [*self._content.feed(self._detokenizer.last_segment), *self._content.flush()]

    def reason(self, ended: Reason) -> Reason:
        """Return why the answer ended, of which the engine knows a part."""
        return "stop" if self.is_over else ended


class ChatReader(_Reader):
    """Reads an answer to messages, by the model's grammar.

    With `single_call` it is over behind the first call. A call that cannot be read is content, so
    that nothing is lost.
    """

    def __init__(
        self,
        detokenizer: DetokenizerLike,
        stops: Sequence[str],
        *,
        in_thought: bool,
        single_call: bool = False,
    ) -> None:
        super().__init__(detokenizer, stops)
        self._parser = grammar.AnswerParser(in_thought=in_thought)
        self._single_call = single_call
        self._calls = 0
        self._unread = 0  # tokens of which no event has come yet

    @property
    def is_over(self) -> bool:
        """Whether nothing more belongs to the answer."""
        return self.stop is not None or (self._single_call and self._calls > 0)

    def add(self, token: int, score: TokenScore | None) -> list[Event]:
        """Take a token and return the events that are certain now."""
        text = self._text(token, score)
        self._unread += 1
        events = self._read(self._parser.feed(text))
        if any(marker in text for marker in grammar.MARKERS):
            self._content.drop_scores()  # those of a marker, and of a thought's name before it
        return events

    def finish(self) -> list[Event]:
        """Return the rest at the end of the answer."""
        if self.is_over:
            return []
        self._detokenizer.finalize()
        rest = self._read(self._parser.feed(self._detokenizer.last_segment))
        return [*rest, *self._read(self._parser.finish()), *self._content.flush()]

    def reason(self, ended: Reason) -> Reason:
        """Return why the answer ended, of which the engine knows a part."""
        if ended == "length" and not self.is_over:
            return "length"
        return "tool_calls" if self._calls else "stop"

    def _read(self, found: Iterable[grammar.Event]) -> list[Event]:
        events: list[Event] = []
        for each in found:
            if self.is_over:
                break
            if isinstance(each, grammar.Content | grammar.BrokenCall):
                events += self._content.feed(each.text)
            else:
                events += self._content.flush()
                self._content.drop_scores()
                events.append(self._other(each))
            self._unread = 0
        return events

    def _other(self, event: Thought | grammar.ToolCall) -> Event:
        if isinstance(event, Thought):
            self.reasoning_tokens += self._unread
            return event
        index, self._calls = self._calls, self._calls + 1
        return Call(index, f"call_{secrets.token_hex(8)}", event.name, event.arguments)


Reader = RawReader | ChatReader


class _Content:
    """The content of an answer up to its first stop string, with the scores of its tokens."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._strings = StopStrings(stops)
        self._text = ""
        self._scores: list[TokenScore] = []
        self.stop: str | None = None

    def scored(self, score: TokenScore | None) -> None:
        """Take a token's score, to be told with the text that the token becomes."""
        if score is not None:
            self._scores.append(score)

    def drop_scores(self) -> None:
        """Forget the scores of tokens that became something else."""
        self._scores = []

    def feed(self, text: str) -> list[Event]:
        self._text += text
        certain = self._strings.feed(text)
        if self._strings.is_stopped:
            self.stop = first_stop(self._text, self._stops)
        return self._event(certain)

    def flush(self) -> list[Event]:
        """Return what was withheld: no stop string began there."""
        return [] if self.stop is not None else self._event(self._strings.flush())

    def _event(self, text: str) -> list[Event]:
        if not text:
            return []
        scores, self._scores = self._scores, []
        return [Content(text, scores)]


def first_stop(text: str, stops: Iterable[str]) -> str | None:
    """Return the stop string that a text holds first."""
    found = [(text.find(stop), stop) for stop in stops if stop and stop in text]
    return min(found)[1] if found else None
