"""The requests of the stress run: random ones that have one right answer, in all four dialects.

A case is asked in a stream; `Heard` holds what of its answer has to be the same in any company.
"""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

DEADLINE_S = 600
LONGEST = 300  # words of a prompt
MOST_TOKENS = 60
SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "blue", "green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["color", "count"],
    "additionalProperties": False,
}
HEAD = (
    "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    "Connection: close\r\nContent-Length: {}\r\n\r\n"
)

Json = dict[str, Any]


@dataclass
class Heard:
    """An answer: its status, text, tokens with log probabilities, and why it ended, if it did."""

    status: int = 0
    text: str = ""
    scores: list[tuple[str, float]] = field(default_factory=list)
    count: int = 0
    end: str = ""

    def is_like(self, other: "Heard", tolerance: float) -> bool:
        """Return whether both are the same answer, but for rounding."""
        if (self.text, self.count, self.end) != (other.text, other.count, other.end):
            return False
        tokens = [[token for token, _ in each.scores] for each in (self, other)]
        return tokens[0] == tokens[1] and self.distance(other) <= tolerance

    def distance(self, other: "Heard") -> float:
        """Return the largest difference of log probabilities."""
        pairs = zip(self.scores, other.scores, strict=False)
        return max((abs(one[1] - two[1]) for one, two in pairs), default=0.0)


@dataclass(frozen=True)
class Case:
    """A request: its dialect and body."""

    dialect: "Dialect"
    body: Json


@dataclass(frozen=True)
class Dialect:
    """How a dialect is asked and read: `write` makes the body, `read` takes an object of it."""

    path: str
    write: Callable[[random.Random, str, int], Json]
    read: Callable[[Json, Heard], None]


def _openai_options(draw: random.Random) -> Json:
    if draw.random() < 0.5:
        return {"temperature": 0}
    return {"temperature": draw.choice([0.5, 1.0]), "seed": draw.randrange(1 << 40), "top_p": 0.9}


def _penalties(draw: random.Random) -> Json:
    chosen = draw.choice([{}, {"presence_penalty": 0.5}, {"frequency_penalty": 0.7}])
    return {**chosen, **draw.choice([{}, {"repetition_penalty": 1.2}])}


def _write_chat(draw: random.Random, prompt: str, tokens: int) -> Json:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    return {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": draw.choice([0, 3]),
        **_openai_options(draw),
        **_penalties(draw),
        **draw.choice([{}, {}, {"response_format": form}]),
    }


def _read_chat(found: Json, heard: Heard) -> None:
    if usage := found.get("usage"):
        heard.count = usage["completion_tokens"]
    for choice in found["choices"]:
        delta = choice["delta"]
        heard.text += (delta.get("reasoning_content") or "") + (delta.get("content") or "")
        heard.scores += _scores((choice.get("logprobs") or {}).get("content"))
        heard.end = choice["finish_reason"] or heard.end


def _write_response(draw: random.Random, prompt: str, tokens: int) -> Json:
    form = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}
    return {
        "input": prompt,
        "max_output_tokens": max(16, tokens),
        "stream": True,
        "temperature": 0,
        **draw.choice([{}, {}, {"text": form}]),
    }


def _read_response(found: Json, heard: Heard) -> None:
    heard.text += found["delta"] if found["type"].endswith("_text.delta") else ""
    if found["type"] in ("response.completed", "response.incomplete"):
        heard.end = found["type"]
        heard.count = found["response"]["usage"]["output_tokens"]


def _write_message(draw: random.Random, prompt: str, tokens: int) -> Json:
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    return {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": True,
        "temperature": 0,
        **draw.choice([{}, {}, {"output_config": form}]),
    }


def _read_message(found: Json, heard: Heard) -> None:
    delta = found.get("delta", {})
    heard.text += delta.get("text", "") + delta.get("thinking", "")
    if found["type"] == "message_delta":
        heard.end, heard.count = delta["stop_reason"], found["usage"]["output_tokens"]


def _write_ollama(draw: random.Random, prompt: str, tokens: int) -> Json:
    options = {"num_predict": tokens, **_openai_options(draw)}
    penalties = _penalties(draw)
    if "repetition_penalty" in penalties:
        penalties["repeat_penalty"] = penalties.pop("repetition_penalty")
    return {
        "model": "any",
        "messages": [{"role": "user", "content": prompt}],
        "options": options | penalties,
        "logprobs": True,
        **draw.choice([{}, {}, {"format": SCHEMA}]),
    }


def _read_ollama(found: Json, heard: Heard) -> None:
    message = found.get("message", {})
    heard.text += message.get("thinking", "") + message.get("content", "")
    heard.scores += _scores(found.get("logprobs"))
    if found["done"]:
        heard.end, heard.count = found["done_reason"], found["eval_count"]


def _scores(found: Any) -> list[tuple[str, float]]:
    return [(each["token"], each["logprob"]) for each in found or []]


DIALECTS = (
    Dialect("/v1/chat/completions", _write_chat, _read_chat),
    Dialect("/v1/responses", _write_response, _read_response),
    Dialect("/v1/messages", _write_message, _read_message),
    Dialect("/api/chat", _write_ollama, _read_ollama),
)


def draw_case(draw: random.Random, words: Sequence[str]) -> Case:
    """Draw a case; short prompts are the most frequent ones."""
    length = int(LONGEST ** draw.random())
    prompt = " ".join(draw.choices(words, k=length))
    dialect = draw.choice(DIALECTS)
    return Case(dialect, dialect.write(draw, prompt, draw.randint(1, MOST_TOKENS)))


async def lines(port: int, path: str, body: bytes) -> AsyncGenerator[bytes]:
    """Post a body; yield the lines of the answer, the status line first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        writer.write(HEAD.format(path, len(body)).encode() + body)
        async with asyncio.timeout(DEADLINE_S):
            async for line in reader:
                yield line
    finally:
        writer.close()


async def ask(port: int, case: Case, leave_after: int = 0, pause_s: float = 0.0) -> Heard:
    """Ask a case; `leave_after` so many lines, if not 0, or read with pauses."""
    heard, count = Heard(), 0
    body = json.dumps(case.body).encode()
    async with contextlib.aclosing(lines(port, case.dialect.path, body)) as found:
        async for line in found:
            count += 1
            if line.startswith(b"HTTP/"):
                heard.status = int(line.split()[1])
            elif heard.status != 200:
                heard.text = line.decode()
            elif line.startswith((b"{", b"data: {")):
                case.dialect.read(json.loads(line.removeprefix(b"data: ")), heard)
            if count == leave_after:
                break
            await asyncio.sleep(pause_s)
    return heard
