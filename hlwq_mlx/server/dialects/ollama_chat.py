"""Ollama's chat: POST /api/chat.

A request without messages loads the model, or unloads it: see `only_loads`.
Source: the server's specification, section 2.4.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from ..events import Begun, Call, Content, Done, Event, Failed, Thought, Waiting, Whole
from ..request import ChatRequest
from . import ollama_options as shared
from .dialect import JSON, Meta
from .fields import Body, Object, read_fields
from .ollama_options import error
from .openai_form import Form, join_messages, joined, text_part

__all__ = ["error", "load", "only_loads", "read", "stream_type", "whole", "writer"]

stream_type = shared.STREAM_TYPE


class Function(Body):
    """What was called, and with what."""

    name: str
    arguments: Any = None  # an object, but for some clients its JSON text


class ToolCall(Body):
    """An earlier call."""

    id: str | None = None
    function: Function


class Message(Body):
    """A message."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str = ""
    images: list[str] = Field(default_factory=list)
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_name: str | None = None
    name: str | None = None
    tool_call_id: str | None = None

    def in_openai_form(self) -> Form:
        """Return the message with all that it has."""
        pictures = shared.picture_parts(self.images)
        text = [text_part(self.content)] if self.content else []
        told: Form = {
            "role": self.role,
            "content": joined([*pictures, *text]),
            "reasoning_content": self.thinking,
            "tool_calls": [each.model_dump(exclude_none=True) for each in self.tool_calls],
            "name": self.tool_name or self.name,
            "tool_call_id": self.tool_call_id,
        }
        return {key: value for key, value in told.items() if value or key == "content"}


class ChatBody(shared.Asked):
    """The fields of a request."""

    messages: list[Message] = Field(default_factory=list)
    tools: list[Object] = Field(default_factory=list)


def read(body: JSON) -> ChatRequest:
    """Return the request in a body.

    Raises: RequestError that names the field at fault.
    """
    shared.refuse_options(body)
    asked = read_fields(ChatBody, body)
    messages = join_messages(message.in_openai_form() for message in asked.messages)
    return ChatRequest(messages=messages, tools=asked.tools, **asked.shared())


def only_loads(request: ChatRequest) -> bool:
    """Return whether a request wants no answer, only the model loaded or unloaded."""
    return not request.messages and request.raw is None


def load(request: ChatRequest, meta: Meta) -> JSON:
    """Return the answer to a request that only loads the model, or unloads it."""
    return {**shared.head(meta), **_message(), **shared.loaded(request.keep_alive_s)}


class ChatWriter(shared.LinesWriter):
    """Writes the lines of a streamed answer."""

    def __call__(self, event: Event, choice: int = 0) -> bytes:
        """Return the bytes of an event."""
        match event:
            case Begun():
                return b""
            case Waiting():
                return self._line(_message())
            case Thought(text):
                return self._line(_message(thinking=text))
            case Content(text, scores):
                return self._line(_message(text) | shared.scored(scores))
            case Call():
                return self._line(_message(tool_calls=[_call(event)]))
            case Done():
                return self._line(_message() | shared.ending(event))
            case Failed(problem, status):
                return shared.line(error(problem, status))


def writer(request: ChatRequest, meta: Meta) -> ChatWriter:
    """Return what writes a streamed answer."""
    return ChatWriter(meta)


def whole(request: ChatRequest, answers: Sequence[Whole], meta: Meta) -> JSON:
    """Return a whole answer."""
    answer = answers[0]
    told = {"thinking": answer.thought, "tool_calls": [_call(each) for each in answer.calls]}
    message = _message(answer.content, **{key: value for key, value in told.items() if value})
    ending = shared.ending(answer.done)
    return {**shared.head(meta), **message, **shared.scored(answer.scores), **ending}


def _message(content: str = "", **told: Any) -> Form:
    return {"message": {"role": "assistant", "content": content, **told}}


def _call(call: Call) -> Form:
    function = {"index": call.index, "name": call.name, "arguments": call.arguments}
    return {"id": call.id, "function": function}
