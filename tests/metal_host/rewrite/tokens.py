"""A text as tokens that can be walked, matched and changed in place.

White space, line ends and line markers are tokens too, so that what is not touched stays as it was
and compiler messages keep their lines. "Significant" means every other token.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .unit import RewriteError

PATTERN = re.compile(
    r"""
    (?P<marker>^\#[^\n]*$) | (?P<space>[ \t\r\f\v]+) | (?P<end>\n) |
    (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*') |
    (?P<number>\.?[0-9](?:[eEpP][+-]|[0-9a-zA-Z_.'])*) |
    (?P<word>[A-Za-z_]\w*) |
    (?P<sign>::|->|\+\+|--|<=|>=|==|!=|&&|\|\||\+=|-=|\*=|/=|%=|&=|\|=|\^=|<<=|<<|\S)
    """,
    re.X | re.M | re.A,
)
LAYOUT = ("marker", "space", "end")
MARKER = re.compile(r'#\s*(?:line\s+)?(\d+)\s+"([^"]*)"')

SPACES = {
    "device": "__global",
    "threadgroup": "__local",
    "constant": "__constant",
    "thread": "__private",
}
INTEGERS = ("bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong")
SCALARS = (*INTEGERS, "half", "float", "bfloat")
VECTORS = frozenset(f"{scalar}{size}" for scalar in SCALARS for size in (2, 3, 4))


@dataclass(slots=True)
class Token:
    kind: str
    text: str


class Tokens:
    """The tokens of one text; positions outside it read as ""."""

    def __init__(self, source: str) -> None:
        self.items = [Token(str(m.lastgroup), m.group()) for m in PATTERN.finditer(source)]

    def __str__(self) -> str:
        return "".join(item.text for item in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> str:
        return self.items[position].text if 0 <= position < len(self.items) else ""

    def __setitem__(self, position: int, text: str) -> None:
        self.items[position].text = text

    def is_word(self, position: int) -> bool:
        return 0 <= position < len(self.items) and self.items[position].kind == "word"

    def words(self) -> Iterator[tuple[int, str]]:
        """Yield every word with its position; what is erased meanwhile is left out."""
        for position, item in enumerate(self.items):
            if item.kind == "word":
                yield position, item.text

    def after(self, position: int) -> int:
        """Find the next significant token."""
        position += 1
        while position < len(self.items) and self.items[position].kind in LAYOUT:
            position += 1
        return position

    def before(self, position: int) -> int:
        """Find the significant token before; -1 when there is none."""
        position -= 1
        while position >= 0 and self.items[position].kind in LAYOUT:
            position -= 1
        return position

    def significant(self, start: int, stop: int) -> list[int]:
        return [i for i in range(start, stop) if self.items[i].kind not in LAYOUT]

    def text(self, start: int, stop: int) -> str:
        """Return a range's text, with single spaces and without line markers."""
        text = "".join(item.text for item in self.items[start:stop] if item.kind != "marker")
        return " ".join(text.split())

    def closing(self, position: int, opening: str, closing: str) -> int:
        """Find the bracket that closes the one at `position`."""
        depth = 0
        for i in range(position, len(self.items)):
            if self.items[i].kind != "sign":
                continue
            depth += (self.items[i].text == opening) - (self.items[i].text == closing)
            if not depth:
                return i
        raise RewriteError(f"[{self.where(position)}] needed {closing}, got the end of the text.")

    def opening(self, position: int, opening: str, closing: str) -> int:
        """Find the bracket that opens the one at `position`; -1 when there is none."""
        depth = 0
        while position >= 0:
            depth += (self[position] == closing) - (self[position] == opening)
            if not depth:
                return position
            position -= 1
        return -1

    def closing_angle(self, position: int) -> int:
        """Find the `>` of the template arguments that begin here; -1 when it is a comparison."""
        depth = 0
        while position < len(self.items):
            text = self[position]
            if text == "(":
                position = self.closing(position, "(", ")")
            elif text in (";", "{", "}"):
                return -1
            depth += (text == "<") - (text == ">")
            if not depth:
                return position
            position += 1
        return -1

    def erase(self, start: int, stop: int) -> None:
        """Blank a range, but keep its line ends."""
        for item in self.items[start:stop]:
            if item.kind not in ("marker", "end"):
                item.kind, item.text = "space", ""

    def where(self, position: int) -> str:
        """Return the file and line of a token, following line markers."""
        file, line = "kernel", 1
        for item in self.items[:position]:
            if item.kind == "marker" and (match := MARKER.match(item.text)):
                file, line = match.group(2), int(match.group(1)) - 1
            elif item.kind == "end":
                line += 1
        return f"{file}:{line}"
