"""Print an answer: content on stdout, thoughts on stderr, dimmed on a terminal."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..dialog.grammar import BrokenCall, Content, Event, Thought, ToolCall
from .console import note, print_piece, print_stderr, result

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class Screen:
    """Prints the events of an answer, keeping thoughts apart from content.

    `is_terminal` is whether stderr is a terminal.
    """

    def __init__(self, *, is_terminal: bool) -> None:
        self._marks = (DIM, PLAIN) if is_terminal else ("", "")
        self._is_in_thought = False
        self._is_in_line = False

    def show(self, event: Event) -> None:
        """Print a piece of an answer; a call is printed by `show_call`."""
        if isinstance(event, Thought):
            self._show_thought(event.text)
            return
        self._end_thought()
        if isinstance(event, Content):
            print_piece(event.text)
            self._is_in_line = not event.text.endswith("\n")
        elif isinstance(event, BrokenCall):
            note(f"The model made a call that cannot be read: {event.problem}.\n{event.text}")

    def show_call(self, call: ToolCall) -> None:
        """Print a call as a line of JSON."""
        self.end()
        stated = {"name": call.name, "arguments": call.arguments}
        result(json.dumps(stated, ensure_ascii=False))

    def end(self) -> None:
        """End the last line of the answer, if it is open."""
        self._end_thought()
        if self._is_in_line:
            self._is_in_line = False
            print_piece("\n")

    def _show_thought(self, text: str) -> None:
        if not self._is_in_thought:
            self._is_in_thought = True
            print_stderr(self._marks[0])
        print_stderr(text)

    def _end_thought(self) -> None:
        if self._is_in_thought:
            self._is_in_thought = False
            print_stderr(f"{self._marks[1]}\n")


def as_content(pieces: Iterable[str]) -> Iterator[Event]:
    """Yield all pieces of text as content: for prompts without a template."""
    return (Content(piece) for piece in pieces)


def print_stream(
    responses: Iterable[Any], read: Callable[[Iterable[str]], Iterable[Event]] = as_content
) -> str:
    """Print an answer as it comes and mlx-lm's statistics after it; return its text.

    `read` converts the text to events. After Ctrl-C the statistics are printed too, and then
    KeyboardInterrupt is raised again.
    """
    text = ""
    last = None

    def pieces() -> Iterator[str]:
        nonlocal text, last
        for last in responses:
            text += last.text
            yield last.text

    screen = Screen(is_terminal=sys.stderr.isatty())
    interrupted = False
    try:
        for event in read(pieces()):
            screen.show(event)
            if isinstance(event, ToolCall):
                screen.show_call(event)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        screen.end()
    if last is not None:
        _print_statistics(last)
    if interrupted:
        raise KeyboardInterrupt
    return text


def _print_statistics(last: Any) -> None:
    note("=" * 10)
    note(f"Prompt: {last.prompt_tokens} tokens, {last.prompt_tps:.3f} tokens-per-sec")
    note(f"Generation: {last.generation_tokens} tokens, {last.generation_tps:.3f} tokens-per-sec")
    if last.passes < last.generation_tokens:  # drafts were accepted
        a_pass = last.generation_tokens / last.passes
        note(f"Passes: {last.passes}, {a_pass:.3f} tokens-per-pass")
    note(f"Peak memory: {last.peak_memory:.3f} GB")
