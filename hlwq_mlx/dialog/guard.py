"""Keep the texts of users and tools from becoming control tokens of the prompt.

A user who writes `<turn|>` in a message must not end the turn. So before a template sees a text, a
mark (one unused character) is put after each character that may begin a control token, and before
the first letter. If a control token of the rendered prompt has a mark inside, the template did not
write it alone, whether it stood in one text or arose from several. The prompt breaks there: its
pieces are encoded one by one, and the token is encoded as plain letters. All other marks are
removed, so every other id is what the whole prompt encodes to.
"""

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import RequestError
from .interface import TokenizerLike
from .parts import Normal
from .placeholders import MARKERS
from .values import QUOTE, is_bare_key

MARKS = range(0xF0000, 0x10FFFE)  # planes of private use
_TEXT_FIELDS = ("name", "tool_name", "tool_call_id", "reasoning", "reasoning_content")


def control_tokens(tokenizer: TokenizerLike) -> list[str]:
    """Return the strings that the tokenizer never splits, and the markers of media.

    Added tokens made of spaces alone are left out, since people type them.
    """
    added = [str(token.content) for token in tokenizer.added_tokens_decoder.values()]
    return [token for token in {*added, *MARKERS.values()} if len(token) > 1 and token.strip()]


def free_letter(held: Any) -> str:
    """Return a letter that stands in no text of what may be nested, and means nothing.

    Raises: RequestError where all such letters are used.
    """
    texts = [*_texts(held)]
    first = chr(MARKS[0])
    if not any(first in text for text in texts):
        return first
    used = set(itertools.chain.from_iterable(texts))
    free = next((letter for letter in map(chr, MARKS) if letter not in used), None)
    if free is None:
        raise RequestError(
            f"[messages] needed one of {len(MARKS):,} letters of private use to stand nowhere in "
            "them, got all. Leave one out."
        )
    return free


class Guard:
    """Marks what people wrote in messages and tools, and finds where the prompt has to break.

    `tokens` are the control tokens; `held` is everything that will be marked, so that the mark is a
    character that does not occur in it.
    """

    def __init__(self, tokens: Sequence[str], held: Any) -> None:
        self._mark = free_letter(held)
        longest_first = sorted(tokens, key=len, reverse=True)
        self._token = re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))")
        self._first = re.compile(f"[{re.escape(''.join({token[0] for token in tokens}))}]")

    def message(self, message: Normal) -> Normal:
        """Mark a normal message; its role stays as it is, because templates compare it."""
        return {key: self._field(key, value) for key, value in message.items()}

    def tool(self, tool: Normal) -> Normal:
        """Mark a normal tool."""
        function = {
            key: self.text(value) if isinstance(value, str) else self._schema(value)
            for key, value in tool["function"].items()
        }
        return {**tool, "function": function}

    def text(self, text: str) -> str:
        """Mark a text where a control token may begin in it, and where one may reach into it.

        Space at its ends stays at its ends, for templates that trim it.
        """
        marked = self.beginnings(text)
        space = len(marked) - len(marked.lstrip())
        return f"{marked[:space]}{self._mark}{marked[space:]}" if marked[space:] else marked

    def beginnings(self, value: Any) -> Any:
        """Mark only where control tokens may begin, so that a template still finds its keywords."""
        if isinstance(value, str):
            return self._first.sub(rf"\g<0>{self._mark}", value)
        if isinstance(value, Mapping):
            return {key: self.beginnings(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.beginnings(each) for each in value]
        return value

    def data(self, value: Any) -> Any:
        """Mark arguments or results, their keys too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self._key(key): self.data(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(each) for each in value]
        return value

    def _key(self, key: Any) -> Any:
        """Mark a key, in quotes if it needs them: templates write keys as they are."""
        if not isinstance(key, str):
            return key
        return self.text(key) if is_bare_key(key) else f"{QUOTE}{self.text(key)}{QUOTE}"

    def resolve(self, marked: str) -> tuple[str, tuple[int, ...]]:
        """Return a rendered prompt without its marks, and the positions no token may span."""
        pieces = marked.split(self._mark)
        text = "".join(pieces)
        marks = list(itertools.accumulate(map(len, pieces[:-1])))
        breaks = set()
        for found in self._token.finditer(text):
            at = bisect_right(marks, found.start(1))
            if at < len(marks) and marks[at] < found.end(1):
                breaks.add(marks[at])
        return text, tuple(sorted(breaks))

    def _field(self, key: str, value: Any) -> Any:
        if key == "role":
            return value
        if key == "content":
            return self._content(value)
        if key == "tool_calls":
            return [self._call(call) for call in value]
        if key == "tool_responses":
            return [self._response(response) for response in value]
        is_text = key in _TEXT_FIELDS and isinstance(value, str)
        return self.text(value) if is_text else self.beginnings(value)

    def _content(self, content: Any) -> Any:
        if not isinstance(content, list):
            return self.data(content)
        return [
            {**part, "text": self.text(part["text"])} if "text" in part else part
            for part in content
        ]

    def _call(self, call: Normal) -> Normal:
        function = {key: self.data(value) for key, value in call["function"].items()}
        return {**call, "id": self.data(call["id"]), "function": function}

    def _response(self, response: Any) -> Any:
        if not isinstance(response, Mapping):
            return self.data(response)
        return {key: self.data(value) for key, value in response.items()}

    def _schema(self, schema: Normal) -> Normal:
        """Mark a schema of `dialog.schema`; a marked name cannot be a keyword of the template."""
        marked: Normal = self.beginnings(schema)
        if "description" in schema:
            marked["description"] = self.text(schema["description"])
        if "properties" in schema:
            marked["properties"] = {
                self.text(name): self._schema(each) for name, each in schema["properties"].items()
            }
        if "items" in schema:
            marked["items"] = self._schema(schema["items"])
        for key in schema.keys() & {"required", "enum"}:
            marked[key] = [self.text(each) for each in schema[key]]
        return marked


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in what may be nested."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value))
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
