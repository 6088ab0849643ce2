"""OpenAI's transcriptions and translations: POST /v1/audio/transcriptions and /translations.

A form becomes one message with the sound and an instruction; `file` holds the sound's bytes.
Source: OpenAI's API reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from ...errors import HLWQError, RequestError
from ..events import Content, Done, Event, Failed, Usage, Waiting, Whole
from ..request import ChatRequest
from .dialect import JSON, Meta
from .fields import Body, Unserved, read_fields, refuse
from .openai_options import KEEP_ALIVE, STREAM_TYPE, error_body, server_event

PLAIN = "text"
_TIMES = Unserved("This model hears what is said, but not when, nor by whom.")
_SCORES = Unserved("Ask /v1/chat/completions with input_audio and logprobs.")
NOT_SERVED = {
    "response_format": _TIMES._replace(harmless=("json", PLAIN)),
    "timestamp_granularities": _TIMES,
    "timestamp_granularities[]": _TIMES,
    "known_speaker_names": _TIMES,
    "known_speaker_names[]": _TIMES,
    "known_speaker_references": _TIMES,
    "known_speaker_references[]": _TIMES,
    "chunking_strategy": Unserved("Sounds are cut as the model hears them.", ("auto",)),
    "include": _SCORES,
    "include[]": _SCORES,
}


class Form(Body):
    """The fields of a form, which come as text."""

    file: Annotated[bytes, Field(strict=True)]
    model: str = ""
    language: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z _-]{0,39}$")] | None = None
    prompt: str = ""
    response_format: str = "json"
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    stream: bool = False


@dataclass(frozen=True)
class AudioDialect:
    """One of the two endpoints; `instruction` says what becomes of what is heard."""

    instruction: str
    stream_type: str = STREAM_TYPE

    def read(self, body: JSON) -> ChatRequest:
        """Return the request in a form.

        Raises: RequestError that names the field at fault.
        """
        given = {name: value for name, value in body.items() if value != ""}
        refuse(given, NOT_SERVED)
        form = read_fields(Form, given)
        if form.stream and form.response_format == PLAIN:
            raise RequestError(
                "[response_format] needed json for a stream, got text. Leave out one of the two."
            )
        sound = {"type": "audio", "audio": form.file}
        text = {"type": "text", "text": " ".join(self._words(form))}
        return ChatRequest(
            model=form.model,
            messages=[{"role": "user", "content": [sound, text]}],
            thinking=False,
            sampling={"temp": form.temperature},
            is_streamed=form.stream,
        )

    def _words(self, form: Form) -> list[str]:
        words = [self.instruction]
        if form.language:
            words.append(f"The language of the recording is {form.language}.")
        if form.prompt:
            words.append(f"Names, terms and style are as in this text: {form.prompt}")
        return words

    def writer(self, request: ChatRequest, meta: Meta) -> "AudioWriter":
        """Return what writes a streamed answer."""
        return AudioWriter()

    def whole(self, request: ChatRequest, answers: Sequence[Whole], meta: Meta) -> JSON:
        """Return a whole answer; its `text` alone is what a plain answer is."""
        return {"text": answers[0].content.strip(), "usage": _usage(answers[0].done.usage)}

    def error(self, problem: HLWQError, status: int) -> JSON:
        """Return the body of an error."""
        return error_body(problem, status, {*Form.model_fields, *NOT_SERVED})


transcriptions = AudioDialect(
    "Write down word for word what is said in this recording, in the language that is spoken. "
    "Answer with these words alone."
)
translations = AudioDialect(
    "Translate what is said in this recording into English. Answer with the translation alone."
)


def is_plain(body: JSON) -> bool:
    """Return whether a form asks for an answer that is text, not JSON."""
    return body.get("response_format") == PLAIN


class AudioWriter:
    """Writes the events of one streamed answer."""

    def __init__(self) -> None:
        self._text = ""

    def __call__(self, event: Event, choice: int = 0) -> bytes:
        """Return the bytes of an event."""
        match event:
            case Waiting():
                return KEEP_ALIVE
            case Content(text):
                self._text += text
                return server_event({"type": "transcript.text.delta", "delta": text})
            case Done(_, usage):
                done = {"type": "transcript.text.done", "text": self._text.strip()}
                return server_event({**done, "usage": _usage(usage)})
            case Failed(problem, status):
                return server_event(error_body(problem, status))
        return b""

    def close(self) -> bytes:
        """Return nothing: the last event says that it is the last."""
        return b""


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "type": "tokens",
        "input_tokens": usage.prompt,
        "output_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }
