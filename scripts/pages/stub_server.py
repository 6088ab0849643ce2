"""A server on loopback that has the page and answers as the last message asks; no model.

It knows the words of `ANSWERS`, and "busy", "wait", "tool", "think" and others; whatever else it
gets, it says what it got. `python scripts/pages/stub_server.py` serves it to be looked at.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hlwq_mlx.server.app import PAGE, PAGE_HEADERS

TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
KEY = "sesame"
HOSTILE = (
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
    "<a href='javascript:window.pwned=1'>raw</a> [md](javascript:window.pwned=1) "
    "[tab](java\tscript:window.pwned=1) [data](data:text/html,<script>window.pwned=1</script>) "
    "![picture](javascript:window.pwned=1) <javascript:window.pwned=1>"
)
MARKDOWN = (Path(__file__).parent / "sample.md").read_text()
CALL = {"name": "get_weather", "arguments": '{"city":"Oslo","days":3}'}
ANSWERS = {
    "markdown": MARKDOWN,
    "xss": HOSTILE,
    "```": f"```<img src=x>\n{HOSTILE}\n```\n\n| {HOSTILE} |\n|--|\n| {HOSTILE} |",
    "wide": f"| {'wide' * 20} | b |\n|--|--|\n| a | b |",
    "forever": "word " * 4000,
}
Chunk = dict[str, Any]


def delta(fields: Chunk, finish: str | None = None) -> Chunk:
    """Return a chunk of a stream."""
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "choices": [choice]}


def pieces(text: str, size: int = 9) -> list[str]:
    """Return a text in the pieces that a stream brings."""
    return [text[at : at + size] for at in range(0, len(text), size)]


def called() -> Iterator[Chunk]:
    """Yield the chunks of a call."""
    head = {"index": 0, "id": "call_1", "type": "function"}
    yield delta({"tool_calls": [{**head, "function": {"name": CALL["name"], "arguments": ""}}]})
    for piece in pieces(CALL["arguments"]):
        yield delta({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    yield delta({}, "tool_calls")


def said(text: str, thought: str = "") -> Iterator[Chunk]:
    """Yield the chunks of a thought and a text."""
    for piece in pieces(thought):
        yield delta({"reasoning_content": piece})
    for piece in pieces(text):
        yield delta({"content": piece})
    yield delta({}, "stop")


def last_text(messages: list[Chunk]) -> str:
    """Return the text of the last message."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content if part["type"] == "text")


def seen(body: Chunk) -> str:
    """Return what a request held, to be read in the page."""
    content = body["messages"][-1]["content"]
    kinds = [] if isinstance(content, str) else [part["type"] for part in content]
    facts = {
        "text": last_text(body["messages"]),
        "kinds": kinds,
        "keys": sorted({key for part in content for key in part}) if kinds else [],
        "roles": [message["role"] for message in body["messages"]],
        "effort": body.get("reasoning_effort"),
        "temperature": body.get("temperature"),
        "tools": len(body.get("tools", [])),
    }
    return f"I got `{json.dumps(facts)}`"


class Stub(ThreadingHTTPServer):
    """The server, the name of its model, and the requests it was sent."""

    daemon_threads = True

    def __init__(self, model: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model = model
        self.bodies: list[Chunk] = []
        self.is_left = threading.Event()  # a client left before the end of its answer

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Stub

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        """Send the page, or what the server tells of itself."""
        path = self.path.partition("?")[0]
        if path == "/props":
            self.send_json(
                {
                    "model": self.server.model,
                    "variant": "PQ5",
                    "context_length": 131072,
                    "memory_bytes": 5_720_000_000,
                    "version": "0.1.0",
                    "capabilities": ["completion", "tools", "thinking", "vision", "audio"],
                }
            )
        elif path == "/v1/models":
            self.send_json({"object": "list", "data": [{"id": self.server.model}]})
        else:
            self.send_file(PAGE / ("index.html" if path == "/" else Path(path).name))

    def send_file(self, path: Path) -> None:
        """Send a file of the page under the policy that the server has."""
        if not path.is_file():
            self.send_json({"error": {"message": f"no {path.name}"}}, 404)
            return
        self.send_body(path.read_bytes(), TYPES[path.suffix], PAGE_HEADERS)

    def send_json(self, value: Chunk, status: int = 200, **headers: str) -> None:
        """Send an object."""
        self.send_body(json.dumps(value).encode(), "application/json", headers, status)

    def send_body(self, body: bytes, kind: str, headers: dict[str, str], status: int = 200) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Answer messages as the last one asks."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        asked = last_text(body["messages"])
        if asked == "locked" and self.headers["Authorization"] != f"Bearer {KEY}":
            self.send_json({"error": {"message": "[Authorization] needed the key"}}, 401)
        elif asked == "busy":
            self.send_json({"error": {"message": f"Busy. {HOSTILE}"}}, 429, Retry_After="7")
        else:
            self.stream(asked, body)

    def stream(self, asked: str, body: Chunk) -> None:
        """Send an answer in pieces."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        pause_s = 0.03 if asked in ("forever", "slow") else 0.002
        try:
            self.send_events(asked, body, pause_s)
        except OSError:
            self.server.is_left.set()

    def send_events(self, asked: str, body: Chunk, pause_s: float) -> None:
        """Send the events of an answer; three requests spoil them."""
        self.wfile.write(b": keep-alive\n\n")
        self.event(delta({"role": "assistant", "content": ""}))
        time.sleep(2 if asked == "wait" else 0)
        count = 0
        for count, chunk in enumerate(self.chunks(asked, body), 1):
            if asked == "broken" and count == 3:
                self.event({"error": {"message": f"It broke. {HOSTILE}"}})
                return
            if asked == "dropped" and count == 3:
                return
            if asked == "nonsense" and count == 3:
                self.event(None)
            self.event(chunk)
            time.sleep(pause_s)
        usage = {
            "prompt_tokens": 1204,
            "completion_tokens": count,
            "total_tokens": 1204 + count,
            "prompt_tokens_details": {"cached_tokens": 1180},
        }
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def chunks(self, asked: str, body: Chunk) -> Iterator[Chunk]:
        """Return the chunks of an answer."""
        if asked == "tool":
            return called()
        if asked == "think":
            return said(
                "The answer is **42**.",
                "The user wants to know.\n\n- First thought\n- Second thought\n" * 3,
            )
        return said(ANSWERS.get(asked, seen(body)))

    def event(self, value: Chunk | None) -> None:
        """Send one event."""
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()


if __name__ == "__main__":
    stub = Stub("gemma-4-E4B-it-HLWQ", int(sys.argv[1]) if sys.argv[1:] else 8321)
    print(stub.url)
    stub.serve_forever()
