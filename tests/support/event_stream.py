"""Streams of named events, as Anthropic's and Responses' are."""

import json


def sent(stream):
    """Return the objects of a stream, each named after its type."""
    blocks = stream.decode().split("\n\n")
    assert blocks.pop() == ""
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events
