"""An answer with everything in it, as events, for the writers of all dialects."""

import json

from hlwq_mlx.server.dialects.dialect import Meta
from hlwq_mlx.server.events import (
    Alternative,
    Begun,
    Call,
    Content,
    Done,
    Thought,
    TokenScore,
    Usage,
    Waiting,
)

META = Meta("gemma", "abc123", 1790000000.7)
USAGE = Usage(prompt=9, cached=4, completion=5, reasoning=1)
SCORES = [
    TokenScore("Hé".encode(), -0.25, [Alternative("Hé".encode(), -0.25), Alternative(b"\xf0", -2)]),
    TokenScore(b"\xe2\x82", float("-inf"), []),
]
FULL = [
    Waiting(),
    Begun(9, 4),
    Thought("hm"),
    Waiting(),
    Content("Hé", SCORES[:1]),
    Content("llo", SCORES[1:]),
    Call(0, "call_a", "now", {"zone": "Wien", "at": [1, None]}),
    Call(1, "call_b", "list:all", {}),
    Done("tool_calls", USAGE),
]
TEXT = [Begun(9, 4), Content("Hé", SCORES[:1]), Content("llo", SCORES[1:]), Done("stop", USAGE)]


def written(dialect, request, events, choice=0):
    """Return the bytes of a stream with one choice."""
    writer = dialect.writer(request, META)
    return b"".join([*(writer(event, choice) for event in events), writer.close()])


def chunks(data):
    """Return the JSON objects of a stream, and whether it ended well."""
    blocks = data.decode().split("\n\n")
    assert blocks.pop() == ""
    events = [block for block in blocks if not block.startswith(":")]
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    is_done = events[-1] == "data: [DONE]"
    return [json.loads(event[6:]) for event in events[: -1 if is_done else None]], is_done
