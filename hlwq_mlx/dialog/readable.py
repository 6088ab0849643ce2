"""Replace lone surrogates, so that a tokenizer, a file and a terminal can take the text.

A lone surrogate is half of a character, which no encoding can write. It comes from a JSON escape
that was cut in two, or from a command line that is not UTF-8.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

REPLACEMENT = "\ufffd"
_SURROGATES = re.compile("[\ud800-\udfff]")

logger = logging.getLogger("hlwq_mlx")


def readable(value: Any) -> Any:
    """Return text, or a value of JSON, with U+FFFD for lone surrogates; warn where there is one."""
    mended, count = _mend(value)
    if count:
        logger.warning(
            "warning: [text] needed Unicode, got %d lone surrogates. They are read as %s.",
            count,
            REPLACEMENT,
        )
    return mended


def _mend(value: Any) -> tuple[Any, int]:
    """Return the mended value and how many surrogates it held."""
    if isinstance(value, str):
        return _SURROGATES.subn(REPLACEMENT, value)
    if isinstance(value, list):
        parts = [_mend(part) for part in value]
        return [part for part, _ in parts], sum(count for _, count in parts)
    if isinstance(value, Mapping):
        pairs = [(_mend(key), _mend(part)) for key, part in value.items()]
        count = sum(of_key + of_part for (_, of_key), (_, of_part) in pairs)
        return {key: part for (key, _), (part, _) in pairs}, count
    return value, 0
