"""What OpenAI's endpoints have in common: options, usage, errors and the form of a stream."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic import AliasChoices, Field

from ...errors import HLWQError
from ..errors import describe
from ..events import Done, Event, Failed, Usage, Waiting
from ..request import ChatRequest
from .fields import (
    JSON,
    Bias,
    Body,
    Chosen,
    Flag,
    Integer,
    MaxTokens,
    Repetition,
    Unserved,
    limit,
)

STREAM_TYPE = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"
# One for all answers: with it, equal requests with a seed have equal answers.
FINGERPRINT = "hlwq_mlx"
DONE = b"data: [DONE]\n\n"
MOST_CHOICES = 16  # each is a row of the batch
LEAST_LOGPROB = -9999.0  # JSON has no infinity

_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_OTHER_MODEL = "This server has the model that it was started with and no other."
_GRAMMAR = "Use response_format with a JSON schema."
# Options of OpenAI's, mlx-lm's, llama.cpp's and vLLM's servers that would change the answer.
UNSERVED = {
    "adapters": Unserved(_OTHER_MODEL),
    "draft_model": Unserved(_OTHER_MODEL, ("default_model",)),
    "grammar": Unserved(_GRAMMAR, ("",)),
    "guided_choice": Unserved(_GRAMMAR),
    "guided_grammar": Unserved(_GRAMMAR),
    "guided_json": Unserved(_GRAMMAR),
    "guided_regex": Unserved(_GRAMMAR),
    "structured_outputs": Unserved(_GRAMMAR),
    "xtc_probability": Unserved("Use min_p.", (0,)),
    "typical_p": Unserved("Use top_p.", (1, 0)),
    "repetition_context_size": Unserved("Penalties have one reach; leave it out."),
    "presence_context_size": Unserved("Penalties have one reach; leave it out."),
    "frequency_context_size": Unserved("Penalties have one reach; leave it out."),
    "stop_token_ids": Unserved("Give the text in stop.", ([],)),
    "ignore_eos": Unserved("Answers end where the model ends them.", (False,)),
}


class StreamOptions(Body):
    """What a streamed answer tells beside the answer."""

    include_usage: Flag = False


class Options(Chosen):
    """Options that chat and raw completions share."""

    model: str = ""
    repetition_penalty: Repetition = Field(
        1.0, validation_alias=AliasChoices("repetition_penalty", "repeat_penalty")
    )
    logit_bias: Bias = Field(default_factory=dict)
    n: Integer = Field(1, ge=1, le=MOST_CHOICES)
    max_tokens: MaxTokens | None = None
    stream: Flag = False
    stream_options: StreamOptions = StreamOptions()

    def shared(self) -> dict[str, Any]:
        """Return the fields of a ChatRequest that these options decide."""
        return {
            **self.chosen(self.repetition_penalty),
            "model": self.model,
            "logit_bias": self.logit_bias,
            "max_tokens": limit(self.max_tokens),
            "count": self.n,
            "is_streamed": self.stream,
            "with_usage": self.stream_options.include_usage if self.stream else True,
        }


def usage_of(usages: Sequence[Usage]) -> dict[str, Any]:
    """Return what the choices of one request took together: their prompt is one."""
    prompt = usages[0].prompt
    completion = sum(usage.completion for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usages[0].cached},
        "completion_tokens_details": {"reasoning_tokens": sum(usage.reasoning for usage in usages)},
    }


def error_body(problem: HLWQError, status: int, fields: Collection[str] = ()) -> dict[str, Any]:
    """Return an error in OpenAI's envelope; `fields` are those that a request may have."""
    told = describe(problem, status, fields)
    return {
        "error": {
            "message": told.message,
            "type": told.type,
            "param": told.field,
            "code": told.code,
        }
    }


def server_event(data: JSON) -> bytes:
    """Return a JSON object as one event of a stream."""
    return _event_of(to_json(data))


def _event_of(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


def to_json(value: Mapping[str, Any]) -> str:
    """Return compact JSON in letters as they are."""
    return _compact.encode(value)


def logprob(value: float) -> float:
    """Return a log probability that JSON can hold."""
    return max(value, LEAST_LOGPROB)


class ChoicesWriter:
    """Writes the choices of one streamed answer; how an endpoint writes pieces is a subclass's."""

    def __init__(self, request: ChatRequest, head: JSON) -> None:
        self._request = request
        self._head = to_json(head).removesuffix("}")  # once: every event begins with it
        self._usages: dict[int, Usage] = {}
        self._has_failed = False

    def __call__(self, event: Event, choice: int = 0) -> bytes:
        """Return the bytes of an event; nothing behind an error."""
        if self._has_failed:
            return b""
        if isinstance(event, Waiting):
            return KEEP_ALIVE
        if isinstance(event, Failed):
            self._has_failed = True
            return server_event(error_body(event.problem, event.status))
        if isinstance(event, Done):
            self._usages[choice] = event.usage
        return b"".join(self._event([piece]) for piece in self._pieces(event, choice))

    def close(self) -> bytes:
        """Return the usage, if it is wanted, and the end; nothing behind an error."""
        if self._has_failed:
            return b""
        if not self._request.with_usage or not self._usages:
            return DONE
        usages = [self._usages[choice] for choice in sorted(self._usages)]
        return self._event([], usage=usage_of(usages)) + DONE

    def _pieces(self, event: Event, choice: int) -> Iterable[JSON]:
        """Yield pieces of a choice, each for an event of its own."""
        raise NotImplementedError

    def _event(self, choices: Sequence[JSON], **more: Any) -> bytes:
        rest = to_json({"choices": choices, **more}).removeprefix("{")
        return _event_of(f"{self._head},{rest}")
