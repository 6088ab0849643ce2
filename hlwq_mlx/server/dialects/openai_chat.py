"""OpenAI's chat completions: POST /v1/chat/completions.

Source: the server's specification, section 2.1; OpenAI's API reference.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from ...errors import HLWQError, RequestError
from ..events import (
    Begun,
    Call,
    Content,
    Done,
    Event,
    Thought,
    TokenScore,
    Whole,
)
from ..request import ChatRequest
from . import openai_messages as shapes
from .dialect import JSON, Meta
from .fields import Alternatives, Body, Flag, MaxTokens, Object, Unserved, read_fields, refuse
from .openai_options import (
    FINGERPRINT,
    STREAM_TYPE,
    UNSERVED,
    ChoicesWriter,
    Options,
    error_body,
    to_json,
    usage_of,
)
from .scores import scores_of

stream_type = STREAM_TYPE

_SPEECH = Unserved("This model writes; it does not speak.")
_STATELESS = Unserved("Nothing is stored here: send the whole conversation.")
NOT_SERVED = UNSERVED | {
    "audio": _SPEECH,
    "modalities": _SPEECH._replace(harmless=(["text"], [])),
    "store": _STATELESS._replace(harmless=(False,)),
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "prediction": Unserved("Answers are not predicted here; leave it out."),
    "web_search_options": Unserved("Offer a search as a tool, and run it yourself."),
    "verbosity": Unserved("Ask for a short or long answer in words.", ("medium",)),
    "json_schema": Unserved("Give the schema in response_format."),
}
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
NO_THOUGHT = ("none", "minimal")
# The renderer's own arguments, and what the template takes from the tokenizer.
NO_VARIABLES = {
    *("messages", "tools", "documents", "chat_template", "tokenize", "add_generation_prompt"),
    *("continue_final_message", "padding", "truncation", "max_length", "return_tensors"),
    *("return_dict", "tokenizer_kwargs", "return_assistant_tokens_mask"),
    *("bos_token", "eos_token", "pad_token", "unk_token"),
}


@dataclass(frozen=True)
class FunctionsRequest(ChatRequest):
    """A request with `functions`, as they were before tools: its answer has one function_call."""


class Reasoning(Body):
    """How OpenRouter's clients ask for a thought."""

    effort: Effort | None = None
    enabled: Flag | None = None


class Schema(Body):
    """A JSON schema and what the client calls it."""

    definition: Object | None = Field(None, validation_alias="schema")


class ResponseFormat(Body):
    """What the content of an answer must be; llama.cpp's clients put a schema beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None
    definition: Object | None = Field(None, validation_alias="schema")

    def schema_wanted(self) -> Mapping[str, Any] | None:
        """Return what the content must satisfy: {} for any object, None for any text.

        Raises: RequestError if the schema is missing.
        """
        if self.type == "text":
            return None
        found = self.json_schema.definition if self.json_schema else self.definition
        if self.type == "json_schema" and found is None:
            raise RequestError(
                "[response_format.json_schema.schema] needed a JSON schema, got none. Give one, or "
                "ask for json_object."
            )
        return found or {}


class ChatBody(Options):
    """The body of a request."""

    messages: list[Object] = Field(min_length=1)
    tools: list[Object] = Field(default_factory=list)
    functions: list[Object] = Field(default_factory=list)
    tool_choice: Any = None
    function_call: Any = None
    parallel_tool_calls: Flag = True
    response_format: ResponseFormat | None = None
    logprobs: Flag = False
    top_logprobs: Alternatives | None = None
    reasoning_effort: Effort | None = None
    reasoning: Reasoning = Reasoning()
    chat_template_kwargs: Object = Field(default_factory=dict)
    max_completion_tokens: MaxTokens | None = None

    def thinking(self) -> bool | None:
        """Return whether the model shall think first; None if the client does not say.

        Raises: RequestError if a template's variable says neither yes nor no.
        """
        stated = self.chat_template_kwargs.get("enable_thinking")
        if stated is not None and not isinstance(stated, bool):
            raise RequestError(
                "[chat_template_kwargs.enable_thinking] needed true or false, got "
                f"{str(stated)[:80]!r}. Correct it."
            )
        effort = self.reasoning_effort or self.reasoning.effort
        if stated is None and effort is not None:
            return effort not in NO_THOUGHT
        return self.reasoning.enabled if stated is None else stated

    def template_options(self) -> dict[str, Any]:
        """Return the other variables of the template.

        Raises: RequestError for what is no variable.
        """
        refused = sorted(self.chat_template_kwargs.keys() & NO_VARIABLES)
        if refused:
            raise RequestError(
                f"[chat_template_kwargs] needed variables of the template, got "
                f"{', '.join(refused)}. Leave these out."
            )
        given = self.chat_template_kwargs.items()
        return {name: value for name, value in given if name != "enable_thinking"}

    def alternatives(self) -> int | None:
        """Return how many alternatives of each token are told, None for no scores at all.

        Raises: RequestError for alternatives without scores.
        """
        if self.top_logprobs and not self.logprobs:
            raise RequestError(
                f"[top_logprobs] needed logprobs to be true, got {self.top_logprobs} without. "
                "Set logprobs."
            )
        return (self.top_logprobs or 0) if self.logprobs else None


def read(body: JSON) -> ChatRequest:
    """Return the request in a body.

    Raises: RequestError that names the field at fault.
    """
    refuse(body, NOT_SERVED)
    asked = read_fields(ChatBody, body)
    if asked.max_completion_tokens is not None:
        asked.max_tokens = asked.max_completion_tokens
    is_old = bool(asked.functions) and not asked.tools
    tools = asked.functions if is_old else shapes.read_tools(asked.tools)
    choice, field = asked.tool_choice, "tool_choice"
    if choice is None:
        choice, field = asked.function_call, "function_call"
    kind = FunctionsRequest if is_old else ChatRequest
    return kind(
        **asked.shared(),
        messages=shapes.read_messages(asked.messages),
        tools=tools,
        tool_choice=shapes.read_choice(choice, tools, field),
        parallel_calls=asked.parallel_tool_calls and not is_old,
        thinking=asked.thinking(),
        schema=asked.response_format.schema_wanted() if asked.response_format else None,
        logprobs=asked.alternatives(),
        template_options=asked.template_options(),
        image_tokens=shapes.image_tokens(asked.messages),
    )


def error(problem: HLWQError, status: int) -> JSON:
    """Return the body of an error."""
    return error_body(problem, status, {*ChatBody.model_fields, *NOT_SERVED})


class ChatWriter(ChoicesWriter):
    """Writes the choices of one streamed answer."""

    def __init__(self, request: ChatRequest, meta: Meta) -> None:
        super().__init__(request, _head("chat.completion.chunk", meta))
        self._call = _function_deltas if _is_old(request) else _call_deltas

    def _pieces(self, event: Event, choice: int) -> Iterator[JSON]:
        for delta in self._deltas(event):
            piece: dict[str, Any] = {"index": choice, "delta": delta, "finish_reason": None}
            if isinstance(event, Done):
                piece["finish_reason"] = _reason(self._request, event.reason)
            if isinstance(event, Content) and event.scores and self._request.logprobs is not None:
                piece["logprobs"] = _logprobs(event.scores)
            yield piece

    def _deltas(self, event: Event) -> list[JSON]:
        match event:
            case Begun():
                return [{"role": "assistant", "content": ""}]
            case Thought(text):
                return [_thought(text)]
            case Content(text):
                return [{"content": text}]
            case Call():
                return self._call(event)
        return [{}]


def writer(request: ChatRequest, meta: Meta) -> ChatWriter:
    """Return what writes a streamed answer."""
    return ChatWriter(request, meta)


def whole(request: ChatRequest, answers: Sequence[Whole], meta: Meta) -> JSON:
    """Return a whole answer."""
    return {
        **_head("chat.completion", meta),
        "choices": [_choice(request, answer, index) for index, answer in enumerate(answers)],
        "usage": usage_of([answer.done.usage for answer in answers]),
    }


def _choice(request: ChatRequest, answer: Whole, index: int) -> JSON:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.content or (None if answer.calls else ""),
        "refusal": None,
    }
    if answer.thought:
        message |= _thought(answer.thought)
    if answer.calls and _is_old(request):
        message["function_call"] = _function(answer.calls[0])
    elif answer.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": _function(call)}
            for call in answer.calls
        ]
    scores = None if request.logprobs is None else _logprobs(answer.scores)
    return {
        "index": index,
        "message": message,
        "logprobs": scores,
        "finish_reason": _reason(request, answer.done.reason),
    }


def _head(kind: str, meta: Meta) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{meta.token}",
        "object": kind,
        "created": int(meta.created),
        "model": meta.model,
        "system_fingerprint": FINGERPRINT,
    }


def _thought(text: str) -> dict[str, str]:
    """Return a thought under both names that clients look for."""
    return {"reasoning_content": text, "reasoning": text}


def _function(call: Call) -> dict[str, str]:
    return {"name": call.name, "arguments": to_json(call.arguments)}


def _is_old(request: ChatRequest) -> bool:
    return isinstance(request, FunctionsRequest)


def _reason(request: ChatRequest, reason: str) -> str:
    """Return why an answer ended, in the words that its client knows."""
    return "function_call" if reason == "tool_calls" and _is_old(request) else reason


def _function_deltas(call: Call) -> list[JSON]:
    """Return the deltas of a call for a client that knows no tools."""
    begun = {"name": call.name, "arguments": ""}
    return [{"function_call": begun}, {"function_call": {"arguments": to_json(call.arguments)}}]


def _call_deltas(call: Call) -> list[JSON]:
    """Return the deltas of a call: its name first, then its arguments."""
    begun = {
        "index": call.index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": ""},
    }
    arguments = {"index": call.index, "function": {"arguments": to_json(call.arguments)}}
    return [{"tool_calls": [begun]}, {"tool_calls": [arguments]}]


def _logprobs(scores: Sequence[TokenScore]) -> JSON:
    return {"content": scores_of(scores), "refusal": None}
