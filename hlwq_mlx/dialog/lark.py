"""Write grammars in Lark, as llguidance reads them.

A rule is a name with a body; bodies are joined by spaces and `|`. Control tokens, which no text can
spell, stand as they are: `<|tool_call>`.
Source: docs/syntax.md of llguidance 1.9.
"""

import re
from collections.abc import Iterable

from ..errors import RequestError

NO_TEXT = '""'
MOST_LETTERS = 2000  # every step of an answer spells all that is certain to come
_UNSAFE = re.compile("[^A-Za-z0-9 _]")


class Rules:
    """The rules of one grammar; equal bodies share a rule."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def rule(self, body: str) -> str:
        """Return the name of a rule, which parses."""
        return self._names.setdefault(body, f"rule_{len(self._names)}")

    def terminal(self, body: str) -> str:
        """Return the name of a regular expression, which only it may use `&` and `~`."""
        return self._names.setdefault(body, f"TEXT_{len(self._names)}")

    def grammar(self, start: str) -> str:
        """Return the grammar that begins with a body."""
        lines = [f"{name}: {body}" for body, name in self._names.items()]
        return "\n".join([f"start: {start}", *lines, ""])


def either(bodies: Iterable[str]) -> str:
    """Return the body of any one of several."""
    return " | ".join(dict.fromkeys(bodies))


def require_short(text: str) -> None:
    """Refuse a text that an answer must not be made to repeat.

    Raises: RequestError.
    """
    if len(text) > MOST_LETTERS:
        raise RequestError(
            f"[schema] needed names, values and patterns of at most {MOST_LETTERS:,} letters, got "
            f"{len(text):,}. Shorten them."
        )


def literal(text: str) -> str:
    """Return the body of one text alone.

    Raises: RequestError as `require_short`.
    """
    require_short(text)
    return f"/{escaped(text)}/" if text else NO_TEXT


def escaped(text: str) -> str:
    """Return the regular expression of one text alone."""
    return _UNSAFE.sub(lambda letter: f"\\x{{{ord(letter[0]):x}}}", text)


def without(*texts: str) -> str:
    """Return the terminal of any text that holds none of some texts."""
    return f"/(?s:.*)/ & ~/(?s:.*)({'|'.join(map(escaped, texts))})(?s:.*)/"
