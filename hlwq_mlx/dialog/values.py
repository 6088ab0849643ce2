"""Gemma 4's notation of arguments: `{city:<|"|>Paris<|"|>,days:2}`, printed and parsed.

Printing is exact: keys bare and sorted, strings raw between `<|"|>`, as the chat templates print
them. Parsing also accepts what models write instead: JSON, quoted keys, spaces, `=` for `:`,
strings without quotes, trailing commas, `call:name(key=value)`, brackets that are never closed.
Source: gemma4_architecture §5.2, and the deviations it lists in §5.3.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError

QUOTE = '<|"|>'
MAX_DEPTH = 64

# Digits with a leading zero are a code or a telephone number, and stay text.
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(\.\d*)?|(\.\d+))([eE][+-]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None, "none": None, "nil": None}
_NAME = re.compile(r"[\w.-]+(?::[\w.-]+)*")
_BARE_KEY = re.compile(r"[^\s:=,{}\[\]()\"'<](?:[^:=,{}\[\]()<]*[^\s:=,{}\[\]()<])?")
_LOOSE_STRING = re.compile(r"""(["'])((?:\\.|(?!\1)[^\\])*)\1""", re.DOTALL)
_LOOSE_ESCAPE = re.compile(r"""\\([\\"'nt])""")
_JSON = json.JSONDecoder(strict=False)
_ESCAPED = {"n": "\n", "t": "\t"}
_CLOSERS = {"{": "}", "[": "]", "(": ")"}


class ValueProblem(ValueError):
    """Arguments that cannot be read; the message says why, for the reader of the broken call."""


@dataclass(frozen=True)
class ParsedCall:
    """A call as it was written; `is_whole` is False if a bracket or string was left open."""

    name: str
    arguments: dict[str, Any]
    is_whole: bool


def print_value(value: Any) -> str:
    """Return a JSON value in the model's notation.

    Raises: RequestError for a value that the notation cannot express.
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return _print_text(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return print_arguments(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(print_value, value))}]"
    raise RequestError(
        f"[arguments] needed JSON values and finite numbers, got {value!r}. "
        "Convert it before it becomes an argument."
    )


def print_arguments(arguments: Mapping[str, Any]) -> str:
    """Return an object in the model's notation, its keys in the order of jinja's dictsort."""
    odd = [key for key in arguments if not isinstance(key, str)]
    if odd:
        raise RequestError(
            f"[arguments] needed text as keys, got {odd[0]!r}. Convert it before it becomes a key."
        )
    items = sorted(arguments.items(), key=lambda item: item[0].lower())
    return "{" + ",".join(f"{_print_key(key)}:{print_value(value)}" for key, value in items) + "}"


def _print_key(key: str) -> str:
    return key if is_bare_key(key) else _print_text(key)


def _print_text(text: str) -> str:
    if QUOTE in text:
        raise RequestError(
            f"[arguments] needed text without the model's own quote {QUOTE}, got {text!r}. "
            "The grammar has no way to escape it; remove it."
        )
    return f"{QUOTE}{text}{QUOTE}"


def is_bare_key(text: str) -> bool:
    """Return whether a key without quotes is read back unchanged."""
    return _BARE_KEY.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Return whether text can be the name of a function in a call."""
    return _NAME.fullmatch(text) is not None


def parse_value(text: str) -> Any:
    """Read one value, leniently.

    Raises: ValueProblem when it makes no sense.
    """
    reader = _Reader(text)
    value = reader.value("")
    reader.expect_end()
    return value


def parse_call(text: str) -> ParsedCall:
    """Read what stands between `<|tool_call>` and `<tool_call|>`.

    `call:name{...}`, `call:name(key=value)`, `name{...}`, a bare name, and the JSON object
    `{"name": ..., "arguments": ...}` that other models are taught.
    Raises: ValueProblem when it makes no sense.
    """
    reader = _Reader(text)
    reader.skip_space()
    if reader.peek() == "{":
        name, arguments = _call_of_object(reader.value(""))
    else:
        name = reader.name()
        arguments = reader.arguments()
    reader.expect_end()
    return ParsedCall(name, arguments, reader.is_whole)


def _call_of_object(stated: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    stated = stated.get("function", stated)
    name = stated.get("name") if isinstance(stated, dict) else None
    if not isinstance(name, str) or not is_name(name):
        raise ValueProblem("needed a name in the call's object")
    arguments = stated.get("arguments", stated.get("parameters")) or {}
    if isinstance(arguments, str):
        arguments = parse_value(arguments)
    if not isinstance(arguments, dict):
        raise ValueProblem(f"needed an object of arguments, got {arguments!r}")
    return name, arguments


class _Reader:
    """Recursive descent over one call; `is_whole` falls when the text ends too early."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self.is_whole = True

    def peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def skip_space(self) -> None:
        while self.peek().isspace():
            self._at += 1

    def take(self, expected: str) -> bool:
        """Pass over spaces and, if it follows, the expected text."""
        self.skip_space()
        found = self._text.startswith(expected, self._at)
        if found:
            self._at += len(expected)
        return found

    def expect_end(self) -> None:
        self.skip_space()
        if self.peek():
            raise ValueProblem(f"needed the end, got {self._rest()}")

    def name(self) -> str:
        if self.take("call:"):
            self.skip_space()
        found = _NAME.match(self._text, self._at)
        if found is None:
            raise ValueProblem(f"needed call:name, got {self._rest()}")
        self._at = found.end()
        return found.group()

    def arguments(self) -> dict[str, Any]:
        """Read `{...}`, `(key=value)`, `({...})` or nothing at all."""
        self.skip_space()
        opener = self.peek()
        if not opener:
            self.is_whole = False
            return {}
        if opener not in "{(":
            raise ValueProblem(f"needed arguments in braces, got {self._rest()}")
        self._at += 1
        self.skip_space()
        if opener == "(" and self.peek() == "{":
            arguments = self.arguments()
            self.is_whole = self.take(")") and self.is_whole
            return arguments
        return self.members(_CLOSERS[opener])

    def value(self, closer: str) -> Any:
        """Read a value inside a bracket that `closer` ends."""
        self.skip_space()
        if self.take(QUOTE):
            return self.quoted_text()
        opener = self.peek()
        if opener and opener in "{[":
            self._at += 1
            return self.members("}") if opener == "{" else self.items()
        text = self.escaped_text(closer)
        return self.bare(closer) if text is None else text

    def members(self, closer: str) -> dict[str, Any]:
        """Read `key:value,...` up to the closer; the opener is behind us."""
        self._enter()
        members: dict[str, Any] = {}
        while not self._ends(closer):
            key = self.key()
            if not self.take(":") and not self.take("="):
                raise ValueProblem(f"needed : after the key {key!r}, got {self._rest()}")
            members[key] = self.value(closer)
            self._separate(closer)
        self._depth -= 1
        return members

    def items(self) -> list[Any]:
        self._enter()
        items = []
        while not self._ends("]"):
            items.append(self.value("]"))
            self._separate("]")
        self._depth -= 1
        return items

    def key(self) -> str:
        if self.take(QUOTE):
            return self.quoted_text()
        text = self.escaped_text(":=")
        if text is not None:
            return text
        found = _BARE_KEY.match(self._text, self._at)
        if found is None:
            raise ValueProblem(f"needed a key, got {self._rest()}")
        self._at = found.end()
        return found.group()

    def quoted_text(self) -> str:
        """Read raw text up to the closing quote, or all of it when none comes."""
        end = self._text.find(QUOTE, self._at)
        self.is_whole = self.is_whole and end >= 0
        end = len(self._text) if end < 0 else end
        text, self._at = self._text[self._at : end], end + len(QUOTE)
        return text

    def escaped_text(self, followers: str) -> str | None:
        """Read a string of JSON or Python, if one stands here and a separator follows it."""
        start = self._at
        found = _LOOSE_STRING.match(self._text, start)
        if found is None:
            return None
        text, self._at = _unescape(found)
        self.skip_space()
        if self.peek() and self.peek() not in f",{followers}":
            self._at = start
            return None
        return text

    def bare(self, closer: str) -> Any:
        """Read a number, a word, or text without quotes."""
        start = self._at
        while self.peek() and self.peek() not in f",{closer}":
            if self._text.startswith(QUOTE, self._at):
                raise ValueProblem(f"needed a comma before the string, got {self._rest()}")
            self._at += 1
        self.is_whole = self.is_whole and bool(self.peek() or not closer)
        text = self._text[start : self._at].strip()
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        return _number(text)

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueProblem(f"needed brackets nested at most {MAX_DEPTH} deep")

    def _ends(self, closer: str) -> bool:
        """Pass over the closer, or over the end of a text that lacks it."""
        while self.take(","):
            pass
        if self.take(closer):
            return True
        self.is_whole = self.is_whole and bool(self.peek())
        return not self.peek()

    def _separate(self, closer: str) -> None:
        self.skip_space()
        if self.peek() and self.peek() not in f",{closer}":
            raise ValueProblem(f"needed , or {closer}, got {self._rest()}")

    def _rest(self) -> str:
        rest = self._text[self._at :]
        return repr(rest[:40]) if rest else "the end"


def _unescape(found: re.Match[str]) -> tuple[str, int]:
    """Return a string without its escapes, and where it ends; JSON's rules are tried first."""
    if found.group(1) == '"':
        try:
            text, end = _JSON.raw_decode(found.string, found.start())
            return str(text), end
        except ValueError:
            pass  # an escape that JSON does not know, as in "C:\\dir"
    text = _LOOSE_ESCAPE.sub(lambda escape: _ESCAPED.get(escape[1], escape[1]), found.group(2))
    return text, found.end()


def _number(text: str) -> Any:
    """Turn text that is a finite number into it; other text stays."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return text
    try:
        number = float(text) if any(found.groups()) else int(text)
    except ValueError:  # an int of thousands of digits
        return text
    return number if math.isfinite(number) else text
