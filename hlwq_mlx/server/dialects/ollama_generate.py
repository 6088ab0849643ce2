"""Ollama's completion of one prompt: POST /api/generate.

A request without a prompt loads the model, or unloads it: see `ollama_chat.only_loads`.
Source: the server's specification, section 2.4.
"""

from collections.abc import Sequence

from pydantic import Field

from ...errors import RequestError
from ..events import Begun, Call, Content, Done, Event, Failed, Thought, Waiting, Whole
from ..request import ChatRequest
from . import ollama_options as shared
from .dialect import JSON, Meta
from .fields import Flag, Unserved, read_fields, refuse
from .ollama_options import error
from .openai_form import Form, joined, text_part

__all__ = ["error", "load", "read", "stream_type", "whole", "writer"]

stream_type = shared.STREAM_TYPE

UNSERVED = {
    "suffix": Unserved("This model writes on; it does not fill gaps.", ("",)),
    "template": Unserved("The checkpoint's own template is used: send raw true instead.", ("",)),
    "context": Unserved("Send the conversation to /api/chat.", ([],)),
}


class GenerateBody(shared.Asked):
    """The fields of a request."""

    prompt: str = ""
    system: str = ""
    images: list[str] = Field(default_factory=list)
    raw: Flag = False

    def messages(self) -> list[Form]:
        """Return the prompt as messages; none if there is none."""
        if not self.prompt:
            return []
        content = joined([*shared.picture_parts(self.images), text_part(self.prompt)])
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]


def read(body: JSON) -> ChatRequest:
    """Return the request in a body.

    Raises: RequestError that names the field at fault.
    """
    refuse(body, UNSERVED)
    shared.refuse_options(body)
    asked = read_fields(GenerateBody, body)
    if not asked.raw:
        return ChatRequest(messages=asked.messages(), **asked.shared())
    for name in ("system", "images"):
        if getattr(asked, name):
            raise RequestError(
                f"[{name}] needed nothing beside a raw prompt, got some. "
                "Write it into the prompt, or send raw false."
            )
    return ChatRequest(raw=asked.prompt or None, **asked.shared())


def load(request: ChatRequest, meta: Meta) -> JSON:
    """Return the answer to a request that only loads the model, or unloads it."""
    return {**shared.head(meta), "response": "", **shared.loaded(request.keep_alive_s)}


class GenerateWriter(shared.LinesWriter):
    """Writes the lines of a streamed answer."""

    def __call__(self, event: Event, choice: int = 0) -> bytes:
        """Return the bytes of an event."""
        match event:
            case Begun() | Call():  # no tools are offered here
                return b""
            case Waiting():
                return self._line({"response": ""})
            case Thought(text):
                return self._line({"response": "", "thinking": text})
            case Content(text, scores):
                return self._line({"response": text, **shared.scored(scores)})
            case Done():
                return self._line({"response": "", "context": [], **shared.ending(event)})
            case Failed(problem, status):
                return shared.line(error(problem, status))


def writer(request: ChatRequest, meta: Meta) -> GenerateWriter:
    """Return what writes a streamed answer."""
    return GenerateWriter(meta)


def whole(request: ChatRequest, answers: Sequence[Whole], meta: Meta) -> JSON:
    """Return a whole answer."""
    answer = answers[0]
    return {
        **shared.head(meta),
        "response": answer.content,
        **({"thinking": answer.thought} if answer.thought else {}),
        **shared.scored(answer.scores),
        "context": [],
        **shared.ending(answer.done),
    }
