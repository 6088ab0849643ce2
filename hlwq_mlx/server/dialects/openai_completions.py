"""OpenAI's raw completions: POST /v1/completions.

The prompt is continued as it is: no template, and control tokens in it are control tokens.
"""

from collections.abc import Iterator, Sequence
from reprlib import repr as brief
from typing import Annotated, Any

from pydantic import BeforeValidator

from ...errors import HLWQError, RequestError
from ..events import Alternative, Content, Done, Event, TokenScore, Whole
from ..request import ChatRequest
from .dialect import JSON, Meta
from .fields import Alternatives, Integer, Unserved, read_fields, refuse
from .openai_options import (
    FINGERPRINT,
    STREAM_TYPE,
    UNSERVED,
    ChoicesWriter,
    Options,
    error_body,
    logprob,
    usage_of,
)

stream_type = STREAM_TYPE
NOT_SERVED = UNSERVED | {
    "suffix": Unserved("This model was not taught to fill gaps; give the text before.", ("",)),
    "echo": Unserved("Put the prompt before the answer yourself.", (False,)),
    "response_format": Unserved("Ask /v1/chat/completions.", ({"type": "text"},)),
}


def _count(value: Any) -> Any:
    """Return how many alternatives are wanted where clients of mlx-lm say yes or no."""
    return (0 if value else None) if isinstance(value, bool) else value


class CompletionBody(Options):
    """The body of a request."""

    prompt: Any
    best_of: Integer | None = None
    logprobs: Annotated[Alternatives | None, BeforeValidator(_count)] = None


def read(body: JSON) -> ChatRequest:
    """Return the request in a body.

    Raises: RequestError that names the field at fault.
    """
    refuse(body, NOT_SERVED)
    asked = read_fields(CompletionBody, body)
    if asked.best_of is not None and asked.best_of != asked.n:
        raise RequestError(
            f"[best_of] needed {asked.n}, as n is, got {asked.best_of}. "
            "Ask for n answers and choose one."
        )
    return ChatRequest(**asked.shared(), raw=_one_prompt(asked.prompt), logprobs=asked.logprobs)


def _one_prompt(prompt: Any) -> str | list[int]:
    """Return the prompt, which may be the only one of a list."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(type(each) is int for each in prompt):
        return prompt
    raise RequestError(
        f"[prompt] needed one text or one list of token ids, got {brief(prompt)}. "
        "Send a request for each prompt."
    )


def error(problem: HLWQError, status: int) -> JSON:
    """Return the body of an error."""
    return error_body(problem, status, {*CompletionBody.model_fields, *NOT_SERVED})


class CompletionWriter(ChoicesWriter):
    """Writes the choices of one streamed answer; there are no thoughts and calls in raw ones."""

    def __init__(self, request: ChatRequest, meta: Meta) -> None:
        super().__init__(request, _head(meta))
        self._written: dict[int, int] = {}

    def _pieces(self, event: Event, choice: int) -> Iterator[JSON]:
        if isinstance(event, Done):
            yield _choice(choice, "", None, event.reason)
        elif isinstance(event, Content):
            begin = self._written.get(choice, 0)
            self._written[choice] = begin + len(event.text)
            is_told = event.scores and self._request.logprobs is not None
            yield _choice(choice, event.text, _logprobs(event.scores, begin) if is_told else None)


def writer(request: ChatRequest, meta: Meta) -> CompletionWriter:
    """Return what writes a streamed answer."""
    return CompletionWriter(request, meta)


def whole(request: ChatRequest, answers: Sequence[Whole], meta: Meta) -> JSON:
    """Return a whole answer."""
    choices = [
        _choice(
            index,
            answer.content,
            None if request.logprobs is None else _logprobs(answer.scores, 0),
            answer.done.reason,
        )
        for index, answer in enumerate(answers)
    ]
    usage = usage_of([answer.done.usage for answer in answers])
    return {**_head(meta), "choices": choices, "usage": usage}


def _choice(index: int, text: str, logprobs: JSON | None, ended: str | None = None) -> JSON:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": ended}


def _head(meta: Meta) -> dict[str, Any]:
    return {
        "id": f"cmpl-{meta.token}",
        "object": "text_completion",
        "created": int(meta.created),
        "model": meta.model,
        "system_fingerprint": FINGERPRINT,
    }


def _logprobs(scores: Sequence[TokenScore], offset: int) -> JSON:
    """Return scores in the form of this endpoint; the first token begins at `offset`."""
    offsets = []
    for score in scores:
        offsets.append(offset)
        offset += sum(byte & 0xC0 != 0x80 for byte in score.token)  # characters that begin in it
    return {
        "tokens": [_text(score) for score in scores],
        "token_logprobs": [logprob(score.logprob) for score in scores],
        "top_logprobs": [
            {_text(each): logprob(each.logprob) for each in score.top} for score in scores
        ],
        "text_offset": offsets,
    }


def _text(score: Alternative) -> str:
    return score.token.decode(errors="replace")
