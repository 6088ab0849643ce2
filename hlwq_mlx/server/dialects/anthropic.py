"""Anthropic's Messages: /v1/messages and /v1/messages/count_tokens.

Accepted without effect, since they change nothing that an answer says: metadata, cache_control,
context_management, service_tier, effort and the budget of a thought; unknown betas.
Source: the types of the `anthropic` client 2.14; requests of Claude Code 2.1.197.
"""

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from ...errors import ContextError, HLWQError
from ..errors import describe
from ..events import Begun, Call, Content, Done, Event, Failed, Thought, Usage, Waiting, Whole
from ..request import ChatRequest
from .anthropic_history import messages_of, tools_of
from .dialect import JSON, Meta
from .fields import (
    Body,
    Flag,
    Integer,
    Object,
    Share,
    Temperature,
    Texts,
    TopK,
    Unserved,
    given,
    read_fields,
    refuse,
)
from .named_events import named_event
from .openai_form import Form
from .openai_messages import read_choice
from .openai_options import STREAM_TYPE, to_json

stream_type = STREAM_TYPE
SIGNATURE = "aGx3cQ=="  # clients want one; it is not checked
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}
UNSERVED = {
    "container": Unserved("No code is executed here."),
    "mcp_servers": Unserved("Connect to them yourself, and send their tools.", ([],)),
}


class Turn(Body):
    """A message."""

    role: Literal["user", "assistant", "system"]
    content: Any = None


class Thinking(Body):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "adaptive", "disabled"]


class Choice(Body):
    """Which tools may be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: Flag = False

    def in_openai_form(self) -> Any:
        """Return the choice as OpenAI's clients word it."""
        if self.type == "tool":
            return {"type": "function", "name": self.name}
        return "required" if self.type == "any" else self.type


class Format(Body):
    """A schema that the answer has to satisfy."""

    type: Literal["json_schema"]
    definition: Object = Field(validation_alias="schema")


class OutputConfig(Body):
    """How the answer shall look."""

    format: Format | None = None


class MessagesBody(Body):
    """The fields of a request."""

    model: str = ""
    messages: list[Turn] = Field(min_length=1)
    system: Any = None
    max_tokens: Integer | None = Field(None, ge=1)
    stop_sequences: Texts = Field(default_factory=list)
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    stream: Flag = False
    thinking: Thinking = Thinking(type="disabled")
    tools: list[Object] = Field(default_factory=list)
    tool_choice: Choice = Choice(type="auto")
    output_config: OutputConfig = OutputConfig()
    output_format: Format | None = None


def read(body: JSON) -> ChatRequest:
    """Return the request in a body; one that only counts tokens needs no max_tokens.

    Raises: RequestError that names the field at fault.
    """
    refuse(body, UNSERVED)
    asked = read_fields(MessagesBody, body)
    tools = tools_of(asked.tools)
    wanted = asked.output_config.format or asked.output_format
    return ChatRequest(
        model=asked.model,
        messages=messages_of(asked.system, [turn.model_dump() for turn in asked.messages]),
        tools=tools,
        tool_choice=read_choice(asked.tool_choice.in_openai_form(), tools),
        parallel_calls=not asked.tool_choice.disable_parallel_tool_use,
        thinking=asked.thinking.type != "disabled",
        sampling=given(temp=asked.temperature, top_p=asked.top_p, top_k=asked.top_k),
        max_tokens=asked.max_tokens,
        stop=asked.stop_sequences,
        schema=wanted.definition if wanted else None,
        is_streamed=asked.stream,
    )


def writer(request: ChatRequest, meta: Meta) -> "MessageWriter":
    """Return what writes a streamed answer."""
    return MessageWriter(meta)


def whole(request: ChatRequest, answers: Sequence[Whole], meta: Meta) -> JSON:
    """Return a whole answer."""
    answer = answers[0]
    thought = {"type": "thinking", "thinking": answer.thought, "signature": SIGNATURE}
    text = {"type": "text", "text": answer.content}
    content = [
        *([thought] if answer.thought else []),
        *([text] if answer.content else []),
        *({**_tool_use(each), "input": each.arguments} for each in answer.calls),
    ]
    usage = answer.done.usage
    return _message(meta, content, _usage(usage.prompt, usage.cached, usage)) | _end(answer.done)


def error(problem: HLWQError, status: int) -> JSON:
    """Return the body of an error."""
    return {**_error(problem, status), "request_id": f"req_{secrets.token_hex(12)}"}


def count(prompt: int) -> JSON:
    """Return the answer of /v1/messages/count_tokens: how many tokens the prompt has."""
    return {"input_tokens": prompt}


class MessageWriter:
    """Writes the events of a streamed answer: its blocks, one after another."""

    def __init__(self, meta: Meta) -> None:
        self._meta = meta
        self._index = 0
        self._open: str | None = None  # the type of the block that is being written

    def __call__(self, event: Event, choice: int = 0) -> bytes:
        """Return the bytes of an event."""
        return b"".join(named_event(each) for each in self._events(event))

    def close(self) -> bytes:
        """Return nothing: the last event ends the stream."""
        return b""

    def _events(self, event: Event) -> Iterator[JSON]:
        match event:
            case Begun(prompt, cached):
                message = _message(self._meta, [], _usage(prompt, cached))
                yield {"type": "message_start", "message": message}
                yield {"type": "ping"}
            case Waiting():
                yield {"type": "ping"}
            case Thought(text):
                yield from self._enter("thinking", {"thinking": "", "signature": ""})
                yield self._delta("thinking_delta", "thinking", text)
            case Content(text):
                yield from self._enter("text", {"text": ""})
                yield self._delta("text_delta", "text", text)
            case Call():
                yield from self._call(event)
            case Done(_, usage):
                yield from self._leave()
                told = _usage(usage.prompt, usage.cached, usage)
                yield {"type": "message_delta", "delta": _end(event), "usage": told}
                yield {"type": "message_stop"}
            case Failed(problem, status):
                yield _error(problem, status)

    def _call(self, call: Call) -> Iterator[JSON]:
        yield from self._leave()
        yield from self._enter("tool_use", {**_tool_use(call), "input": {}})
        yield self._delta("input_json_delta", "partial_json", "")
        yield self._delta("input_json_delta", "partial_json", to_json(call.arguments))
        yield from self._leave()

    def _enter(self, kind: str, empty: Form) -> Iterator[JSON]:
        """Begin a block, unless it is being written."""
        if self._open == kind:
            return
        yield from self._leave()
        self._open = kind
        block = {"type": kind, **empty}
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, kind: str, key: str, value: str) -> JSON:
        delta = {"type": kind, key: value}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _leave(self) -> Iterator[JSON]:
        """End the block that is being written, if one is."""
        if self._open == "thinking":
            yield self._delta("signature_delta", "signature", SIGNATURE)
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._index}
            self._open = None
            self._index += 1


def _message(meta: Meta, content: Sequence[JSON], usage: JSON) -> Form:
    return {
        "id": f"msg_{meta.token}",
        "type": "message",
        "role": "assistant",
        "model": meta.model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "usage": usage,
    }


def _tool_use(call: Call) -> Form:
    return {"type": "tool_use", "id": call.id, "name": call.name}


def _usage(prompt: int, cached: int, spent: Usage | None = None) -> Form:
    """Return what an answer took; what was known of the prompt is no input here."""
    spent = spent or Usage()
    return {
        "input_tokens": prompt - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": spent.completion,
        "output_tokens_details": {"thinking_tokens": spent.reasoning},
    }


def _end(done: Done) -> Form:
    reason = "stop_sequence" if done.stop is not None else STOP_REASONS[done.reason]
    return {"stop_reason": reason, "stop_sequence": done.stop, "stop_details": None}


def _error(problem: HLWQError, status: int) -> Form:
    message = describe(problem, status).message
    if isinstance(problem, ContextError):  # by these words Claude Code knows to compact its history
        message = f"prompt is too long: {problem.needed} tokens > {problem.room} maximum. {message}"
    default = "invalid_request_error" if status < 500 else "api_error"
    return {"type": "error", "error": {"type": TYPES.get(status, default), "message": message}}
