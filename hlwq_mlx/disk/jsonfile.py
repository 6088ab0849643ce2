"""Read a JSON object from a file that may be damaged or hostile.

More is refused than the standard library would: two keys of one name, of which it would take the
last; NaN and infinities, which are no JSON; and what only a hostile file is: nested deeper than
any reader goes, or so large that its values would fill the memory.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import SourceError
from . import failures

MOST_BYTES = 8 << 20  # a config.json, an index or a manifest of 60 layers has less than 1 MB
MOST_LEVELS = 64
_TOO_DEEP = f"values nested deeper than {MOST_LEVELS} levels"


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file of at most so many bytes.

    Raises: SourceError naming the file when it is not one.
    """
    failures.require_file(path)
    with failures.reading(path), path.open("rb") as file:
        content = file.read(most_bytes + 1)
    return parse_json(content, path.name, path, most_bytes)


def parse_json(
    content: bytes, name: str, origin: object, most_bytes: int = MOST_BYTES
) -> dict[str, Any]:
    """Read a JSON object of a model; `origin` is where it lies.

    Raises: SourceError when it is not one.
    """
    try:
        if len(content) > most_bytes:
            raise ValueError(f"more than {most_bytes:,} bytes")
        value = json.loads(
            content.decode("utf-8-sig"),
            parse_float=_finite,
            parse_constant=_finite,
            object_pairs_hook=_single,
        )
        _check_levels(value)
        got = f"a {type(value).__name__}"
    except ValueError as problem:
        value, got = None, str(problem)
    except RecursionError:
        value, got = None, _TOO_DEEP
    if not isinstance(value, dict):
        raise SourceError(
            f"[{name}] needed a JSON object in {origin}, got {got}. "
            "Download it again, or ask its publisher for a whole one."
        )
    return value


def _finite(spelled: str) -> float:
    number = float(spelled)
    if not math.isfinite(number):
        raise ValueError(f"{spelled[:20]}, which is no finite number")
    return number


def _single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"the key {twice[:60]!r} twice in one object")
    return found


def _check_levels(value: Any) -> None:
    """Raise ValueError for values nested too deep, without recursion of its own."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MOST_LEVELS:
            raise ValueError(_TOO_DEEP)
        nested = [each for each in level if isinstance(each, dict | list)]
        level = [
            inner
            for each in nested
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
