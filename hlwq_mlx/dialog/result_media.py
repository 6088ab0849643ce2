"""Put media of tools' results where Gemma 4's newest template has them: behind the result.

Older templates leave them out. So a result is rendered as its text with a slot for each medium, a
letter that stands nowhere else, and the slots become placeholders where the result ends.
"""

import re

from .parts import Normal
from .placeholders import MARKERS

RESULT_END = "<tool_response|>"


class Slots:
    """The media in the results of one prompt; `letter` stands nowhere in it."""

    def __init__(self, letter: str) -> None:
        self._letter = letter
        self._kinds: list[str] = []

    def take(self, message: Normal) -> Normal:
        """Return a message without media, if it is a tool's result: with a slot for each."""
        content = message["content"]
        if message["role"] != "tool" or not isinstance(content, list):
            return message
        kinds = [part["type"] for part in content if "text" not in part]
        self._kinds += kinds
        text = "".join(part.get("text", "") for part in content)
        return {**message, "content": text + self._letter * len(kinds)}

    def fill(self, prompt: str) -> str:
        """Return a rendered prompt with placeholders behind the results."""
        if not self._kinds:
            return prompt
        kinds = iter(self._kinds)

        def behind(found: re.Match[str]) -> str:
            return found[2] + "".join(MARKERS.get(next(kinds, ""), "") for _ in found[1])

        letter, end = re.escape(self._letter), re.escape(RESULT_END)
        return re.sub(f"({letter}+)(.*?{end})", behind, prompt, flags=re.DOTALL)
