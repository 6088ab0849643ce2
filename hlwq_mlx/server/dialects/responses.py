"""OpenAI's Responses: POST /v1/responses, without memory: each request brings all of its items.

Accepted without effect, since they change nothing that an answer says: store, include, metadata,
prompt_cache_key, service_tier, user, the summary of a thought (it is told as it is). Neither does
`text.verbosity`, which Codex sends whatever the model.
Source: the types of the `openai` client 3.57; requests of Codex 0.171.0.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from ...errors import HLWQError, RequestError
from ..events import Content, Event, Thought, Whole
from ..request import ChatRequest
from .dialect import JSON, Meta
from .fields import (
    Alternatives,
    Body,
    Flag,
    Integer,
    Object,
    Share,
    Temperature,
    Unserved,
    given,
    read_fields,
    refuse,
)
from .openai_chat import NO_THOUGHT, Effort
from .openai_form import Form
from .openai_messages import image_tokens
from .openai_options import STREAM_TYPE, error_body
from .responses_history import additional_tools, messages_of
from .responses_stream import ResponseWriter
from .responses_tools import Offered, offered, read_allowed

stream_type = STREAM_TYPE
SCORES = "message.output_text.logprobs"

_STATELESS = Unserved("Nothing is stored here: send all items of the conversation in input.")
UNSERVED = {
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "prompt": _STATELESS,
    "background": Unserved("An answer is written while its client waits.", (False,)),
    "truncation": Unserved("A prompt is never cut: shorten the input.", ("disabled",)),
}


class Thinking(Body):
    """How much the model thinks before it answers."""

    effort: Effort | None = None


class Format(Body):
    """What the text of an answer must be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    definition: Object | None = Field(None, validation_alias="schema")


class Text(Body):
    """How the text of an answer looks."""

    format: Format | None = None

    def schema_wanted(self) -> Mapping[str, Any] | None:
        """Return what the text must satisfy: {} for any object, None for any text.

        Raises: RequestError if the schema is missing.
        """
        if self.format is None or self.format.type == "text":
            return None
        if self.format.type == "json_schema" and self.format.definition is None:
            raise RequestError(
                "[text.format.schema] needed a JSON schema, got none. Give one, or ask for "
                "json_object."
            )
        return self.format.definition or {}


class ResponsesBody(Body):
    """The fields of a request."""

    model: str = ""
    input: Any
    instructions: str = ""
    tools: list[Object] = Field(default_factory=list)
    tool_choice: Any = None
    parallel_tool_calls: Flag = True
    text: Text = Text()
    reasoning: Thinking = Thinking()
    max_output_tokens: Integer | None = Field(None, ge=1)
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: Alternatives | None = None
    include: list[str] = Field(default_factory=list)
    stream: Flag = False


def read(body: JSON) -> ChatRequest:
    """Return the request in a body.

    Raises: RequestError that names the field at fault.
    """
    refuse(body, UNSERVED)
    asked = read_fields(ResponsesBody, body)
    tools, choice = read_allowed(asked.tool_choice, _offered(asked.tools, asked.input))
    messages = messages_of(asked.instructions, asked.input)
    effort = asked.reasoning.effort
    wants_scores = asked.top_logprobs is not None or SCORES in asked.include
    return ChatRequest(
        model=asked.model,
        messages=messages,
        tools=[tool.form for tool in tools.values()],
        tool_choice=choice,
        parallel_calls=asked.parallel_tool_calls,
        thinking=None if effort is None else effort not in NO_THOUGHT,
        sampling=given(temp=asked.temperature, top_p=asked.top_p),
        max_tokens=asked.max_output_tokens,
        schema=asked.text.schema_wanted(),
        logprobs=(asked.top_logprobs or 0) if wants_scores else None,
        is_streamed=asked.stream,
        image_tokens=image_tokens(messages),
        body=body,
    )


def _offered(tools: Sequence[Mapping[str, Any]], items: Any) -> dict[str, Offered]:
    return offered([*tools, *additional_tools(items)])


def writer(request: ChatRequest, meta: Meta) -> ResponseWriter:
    """Return what writes a streamed answer."""
    tools = _offered(request.body.get("tools") or [], request.body.get("input"))
    return ResponseWriter(request, tools, meta)


def whole(request: ChatRequest, answers: Sequence[Whole], meta: Meta) -> JSON:
    """Return a whole answer: the response that the last event of a stream would tell."""
    write = writer(request, meta)
    *_, last = (each for event in _events(answers[0]) for each in write.events(event))
    told: Form = last["response"]
    return told


def _events(answer: Whole) -> Iterator[Event]:
    if answer.thought:
        yield Thought(answer.thought)
    if answer.content:
        yield Content(answer.content, answer.scores)
    yield from answer.calls
    yield answer.done


def error(problem: HLWQError, status: int) -> JSON:
    """Return the body of an error."""
    return error_body(problem, status, {*ResponsesBody.model_fields, *UNSERVED})
