"""Serve a model whose words are chosen, and record what its clients send and get.

    python scripts/clients/forced_server.py RECORDS --port N --model FOLDER ...

All is the real server's, with its options, but for the constraint of answers: one to a request that
offers a tool of CALLS and has no result yet is a call of that tool, any other one is a short text,
with a thought before it where the client wants thoughts. Requests with a schema are left alone.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hlwq_mlx import cli, serve
from hlwq_mlx.dialog import grammar, messages, values
from hlwq_mlx.engine.constraint import Constraint
from hlwq_mlx.server import start
from hlwq_mlx.server.prompts import Ready
from hlwq_mlx.server.request import ChatRequest
from hlwq_mlx.server.service import Answers, Service
from hlwq_mlx.server.site import Site

RESULT = "hlwq-was-here"
COMMAND = "printf 'hlwq-%s-here\\n' was"  # the result is nowhere in it
SHELL = {"command": COMMAND, "description": "Print a line"}
CALLS: dict[str, dict[str, Any]] = {
    "Bash": SHELL,  # Claude Code's
    "bash": SHELL,  # opencode's
    "exec_command": {"cmd": COMMAND},  # Codex's
    "find_mark": {},  # the function that llm is given
}
THOUGHT = f"{grammar.CHANNEL}{grammar.THOUGHT_NAME}A line is to be printed.\n{grammar.CHANNEL_END}"
TEXT_END, CALLS_END = "<turn|>", "<|tool_response>"


class Script:
    """The constraint of an answer that is known; V vocabulary."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._at = 0

    def mask(self, scores: mx.array) -> mx.array:
        """Return the scores with -inf for all but the next token. Shapes: [1, V] -> [1, V]."""
        return mx.where(mx.arange(scores.shape[-1]) == self._ids[self._at], scores, -mx.inf)

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""
        self._at = min(self._at + 1, len(self._ids) - 1)


def words(request: ChatRequest, ready: Ready) -> str:
    """Return the answer to a request, as the model would write it."""
    thought = THOUGHT if ready.may_think else ""
    has_result = any(message.get("role") == "tool" for message in request.messages)
    offered = {function["name"] for _, function in messages.named_functions(request.tools)}
    for name in () if has_result else CALLS.keys() & offered:
        arguments = values.print_arguments(CALLS[name])
        return f"{thought}{grammar.CALL}call:{name}{arguments}{grammar.CALL_END}{CALLS_END}"
    return f"{thought}The line was printed.{TEXT_END}"


class Recorder:
    """Writes each exchange of an application to a file of its own, as it ends."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self._app = app
        self._folder = folder
        self._count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and record both."""
        if scope["type"] != "http" or scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        self._count += 1
        path = self._folder / f"{self._count:03}.json"
        sent, got = bytearray(), bytearray()
        query = scope["query_string"].decode()
        exchange = {"method": scope["method"], "path": scope["path"], "query": query, "status": 0}
        begun = time.monotonic()

        async def recorded_receive() -> Message:
            message = await receive()
            sent.extend(message.get("body", b""))
            return message

        async def recorded_send(message: Message) -> None:
            exchange["status"] = message.get("status", exchange["status"])
            got.extend(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, recorded_receive, recorded_send)
        finally:
            exchange["seconds"] = round(time.monotonic() - begun, 2)
            exchange |= {"bytes": len(sent), "request": readable(sent), "answer": readable(got)}
            path.write_text(json.dumps(exchange, indent=1, ensure_ascii=False) + "\n")


def readable(body: bytes) -> Any:
    """Return a body as JSON if it is, as text otherwise."""
    text = body.decode(errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        return text


class ForcedService(Service):
    """Answers in the words of this file."""

    def submit(
        self,
        request: ChatRequest,
        ready: Ready,
        constraints: Sequence[Constraint | None] = (None,),
        salt: str = "",
    ) -> Answers:
        """Give the engine a request with the constraint of its words."""
        if request.schema is None:
            ids = self.tokenizer.encode(words(request, ready), add_special_tokens=False)
            constraints = [Script(ids) for _ in range(request.count)]
        return super().submit(request, ready, constraints, salt)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until told to end."""
    own = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    own.add_argument("records", type=Path, help="folder of the exchanges")
    chosen, others = own.parse_known_args(argv)
    arguments = serve.make_parser().parse_args(others)
    chosen.records.mkdir(parents=True, exist_ok=True)
    make_app = start.make_app

    def make_recorded(site: Site) -> ASGIApp:
        return Recorder(make_app(site), chosen.records)

    with (
        cli.tuned(),
        mock.patch.object(start, "Service", ForcedService),
        mock.patch.object(start, "make_app", make_recorded),
    ):
        serve.serve(arguments)


if __name__ == "__main__":
    sys.exit(cli.run(main))
