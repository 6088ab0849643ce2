"""What Ollama's endpoints have in common: options, durations, the form of a stream and of errors.

Accepted without effect: what tells Ollama how to load a model, and `num_ctx`. A prompt is never cut
to a smaller context; one that is too long for the model's own is refused.
Source: ollama api/types.go; the types of the `ollama` client 0.6.
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from reprlib import repr as brief
from typing import Annotated, Any

from pydantic import BeforeValidator

from ...errors import HLWQError, RequestError
from ..errors import describe
from ..events import Done, TokenScore
from .dialect import JSON, Meta
from .fields import (
    Alternatives,
    Body,
    Chosen,
    Flag,
    Integer,
    Repetition,
    Unserved,
    refuse,
)
from .openai_form import Form, picture_part
from .openai_options import to_json
from .scores import scores_of

STREAM_TYPE = "application/x-ndjson"
NS = 1_000_000_000
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
DEFAULT_REPEAT_LAST_N = 64
LEVELS = ("low", "medium", "high", "max")
UNSERVED = {
    "options.mirostat": Unserved("Use temperature and top_p.", (0,)),
    "options.tfs_z": Unserved("Use top_p.", (1,)),
    "options.typical_p": Unserved("Use top_p.", (1, 0)),
    "options.repeat_last_n": Unserved(
        "Penalties see the whole answer.", (-1, DEFAULT_REPEAT_LAST_N)
    ),
    "options.draft_num_predict": Unserved("Answers are not predicted here."),
}

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_PIECE = re.compile(rf"({_NUMBER})({'|'.join(sorted(UNITS, key=len, reverse=True))})")
_PLAIN = re.compile(rf"-?(?:{_NUMBER})")


def _as_think(value: Any) -> Any:
    """Return whether the model thinks; how much it does cannot be chosen."""
    if not isinstance(value, bool) and value not in LEVELS:
        raise ValueError(f"true, false, {' or '.join(LEVELS)}")
    return value in (True, *LEVELS)


Think = Annotated[bool, BeforeValidator(_as_think)]


class Options(Chosen):
    """How an answer is chosen."""

    repeat_penalty: Repetition = 1.0
    num_predict: Integer = -1


class Asked(Body):
    """The fields that all requests for an answer share."""

    model: str = ""
    stream: Flag = True
    options: Options = Options()
    format: Any = None
    keep_alive: Any = None
    think: Think | None = None
    logprobs: Flag = False
    top_logprobs: Alternatives = 0

    def shared(self) -> dict[str, Any]:
        """Return the fields of a ChatRequest that these decide.

        Raises: RequestError that names the field at fault.
        """
        options = self.options
        return {
            **options.chosen(options.repeat_penalty),
            "model": self.model,
            "max_tokens": options.num_predict if options.num_predict > 0 else None,
            "schema": read_format(self.format),
            "logprobs": self.top_logprobs if self.logprobs else None,
            "thinking": self.think,
            "is_streamed": self.stream,
            "keep_alive_s": read_duration(self.keep_alive),
        }


def refuse_options(body: JSON) -> None:
    """Refuse options that would be accepted and ignored.

    Raises: RequestError that names the option.
    """
    options = body.get("options")
    if isinstance(options, Mapping):
        refuse({f"options.{name}": value for name, value in options.items()}, UNSERVED)


def read_format(value: Any) -> Mapping[str, Any] | None:
    """Return what an answer must satisfy: {} for any object, None for any text.

    Raises: RequestError for what is no format.
    """
    if value is None or value == "":
        return None
    if value == "json":
        return {}
    if isinstance(value, Mapping):
        return value
    raise RequestError(f'[format] needed "json" or a JSON schema, got {brief(value)}. Correct it.')


def read_duration(value: Any) -> float | None:
    """Return seconds of a number of them, or of a text like 1h30m; all time for a negative one.

    Raises: RequestError for anything else.
    """
    if value is None or value == "":
        return None
    seconds = _seconds(str(value)) if isinstance(value, str | int | float) else None
    if seconds is None or isinstance(value, bool) or math.isnan(seconds):
        raise RequestError(
            f"[keep_alive] needed seconds or a duration like 5m, got {brief(value)}. Correct it."
        )
    return seconds if seconds >= 0 else math.inf


def _seconds(text: str) -> float | None:
    if _PLAIN.fullmatch(text):
        return float(text)
    pieces = _PIECE.findall(text)
    if not pieces or "".join(map("".join, pieces)) != text.lstrip("-"):
        return None
    total = sum(float(number) * UNITS[unit] for number, unit in pieces)
    return -total if text.startswith("-") else total


def picture_parts(images: Sequence[str]) -> list[Form]:
    """Return parts that are pictures, given in base64 or, by some clients, as data URLs."""
    return [
        picture_part(each) if each.startswith("data:") else {"type": "image", "base64": each}
        for each in images
    ]


def line(told: JSON) -> bytes:
    """Return an object as one line of a stream."""
    return to_json(told).encode() + b"\n"


def head(meta: Meta) -> Form:
    """Return what each line begins with."""
    return {"model": meta.model, "created_at": rfc3339(meta.created)}


class LinesWriter:
    """Writes the lines of a streamed answer; which ones is a subclass's."""

    def __init__(self, meta: Meta) -> None:
        self._head = head(meta)

    def close(self) -> bytes:
        """Return nothing: the last line ends the stream."""
        return b""

    def _line(self, told: JSON) -> bytes:
        return line({**self._head, "done": False, **told})


def rfc3339(seconds: float) -> str:
    """Return a time as Ollama writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def scored(scores: Sequence[TokenScore]) -> Form:
    """Return the scores of a line, if there are any."""
    return {"logprobs": scores_of(scores)} if scores else {}


def ending(done: Done) -> Form:
    """Return what the last line tells of the answer; durations are in nanoseconds."""
    usage = done.usage
    return {
        "done": True,
        "done_reason": "length" if done.reason == "length" else "stop",
        "total_duration": round((usage.load_s + usage.prompt_s + usage.answer_s) * NS),
        "load_duration": round(usage.load_s * NS),
        "prompt_eval_count": usage.prompt,
        "prompt_eval_duration": round(usage.prompt_s * NS),
        "eval_count": usage.completion,
        "eval_duration": round(usage.answer_s * NS),
    }


def loaded(keep_alive_s: float | None) -> Form:
    """Return the end of an answer to a request that only loads the model, or unloads it."""
    return {"done": True, "done_reason": "unload" if keep_alive_s == 0 else "load"}


def error(problem: HLWQError, status: int) -> JSON:
    """Return the body of an error, which is also how a stream tells one."""
    return {"error": describe(problem, status).message}
