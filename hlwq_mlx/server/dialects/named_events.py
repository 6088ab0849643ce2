"""Write events that have names, as the streams of Anthropic and of Responses do."""

from .dialect import JSON
from .openai_options import server_event


def named_event(data: JSON) -> bytes:
    """Return an object as one event, named after its type."""
    return f"event: {data['type']}\n".encode() + server_event(data)
