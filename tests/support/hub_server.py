"""A hub on 127.0.0.1 as huggingface_hub asks it, with the faults that a test wants.

Serves model info, trees and files with ranges; large files from another host as its CDN does.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = ".safetensors"


@dataclass
class Fault:
    """What goes wrong with requests whose path `pattern` finds, so many times.

    Without a status the first `sent` bytes of the right answer go out; then the server hangs up, or
    does so once `hold` is set.
    """

    pattern: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    sent: int = 0
    times: int = 1
    hold: threading.Event | None = None


@dataclass(frozen=True)
class Request:
    """What the server was asked."""

    method: str
    path: str
    range: str | None
    has_token: bool

    @property
    def is_content(self) -> bool:
        """Whether it asks for a file's bytes."""
        is_file = "/resolve/" in self.path and not self.path.endswith(LARGE)
        return self.method == "GET" and (is_file or self.path.startswith("/cdn/"))


class Hub(ThreadingHTTPServer):
    """The server, its repositories and a record of what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.renamed: dict[str, str] = {}
        self.states_hashes = True
        self.faults: list[Fault] = []
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def publish(self, name: str, root: Path) -> None:
        """Serve a folder as a repository."""
        self.repositories[name] = {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }

    def served(self) -> set[str]:
        """The files whose content was asked for, in any part."""
        paths = [request.path for request in self.requests if request.is_content]
        return {path.split(f"/{COMMIT}/")[1] for path in paths}

    def ranges(self, name: str) -> list[str | None]:
        """The Range headers of the requests for a file's content."""
        asked = [request for request in self.requests if request.is_content]
        return [request.range for request in asked if request.path.endswith(name)]

    def take_fault(self, path: str) -> Fault | None:
        """Return the fault that is due for a path."""
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, path):
                fault.times -= 1
                return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that hung up, as tests make them."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request; see Hub."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked, has_token = self.headers.get("Range"), "Authorization" in self.headers
        self.server.requests.append(Request(self.command, path, asked, has_token))
        self.fault = self.server.take_fault(path)
        if self.fault and self.fault.status:
            return self.answer(self.fault.status, b"", self.fault.headers)
        if path.startswith("/api/models/"):
            return self.answer_api(path.removeprefix("/api/models/"))
        owner, name, *rest = path.removeprefix("/cdn").strip("/").split("/")
        return self.answer_file(f"{owner}/{name}", rest, path.startswith("/cdn/"))

    do_HEAD = do_GET

    def answer_api(self, path: str) -> None:
        owner, name, *rest = path.split("/")
        repository = self.find(f"{owner}/{name}")
        if repository is None:
            return None
        files = [facts(*item) for item in repository.items()]
        is_tree = rest[:1] == ["tree"]
        if not is_tree and not self.server.states_hashes:
            files = [{"rfilename": path} for path in repository]
        info = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": files}
        content = json.dumps(files if is_tree else info).encode()
        return self.answer(200, content, {"Content-Type": "application/json"})

    def answer_file(self, name: str, rest: list[str], is_cdn: bool) -> None:
        repository = self.find(name)
        if repository is None:
            return None
        path = "/".join(rest[1:] if is_cdn else rest[2:])
        if path not in repository:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = repository[path]
        headers = {
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
            "ETag": f'"{etag(path, content)}"',
        }
        if path.endswith(LARGE) and not is_cdn:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(content))}
            cdn = f"http://localhost:{self.server.server_port}/cdn"
            return self.answer(302, b"", {"Location": f"{cdn}/{name}/{COMMIT}/{path}", **headers})
        asked = self.headers.get("Range")
        first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(content)) + 1, len(content))
        if asked is None or (start, stop) == (0, len(content)):
            return self.answer(200, content, headers)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self.answer(206, content[start:stop], headers)

    def find(self, name: str) -> dict[str, bytes] | None:
        """Return a repository's files, or answer that it has moved or is none."""
        if name in self.server.renamed:
            moved = self.path.replace(name, self.server.renamed[name], 1)
            self.answer(307, b"", {"Location": moved})
        elif name not in self.server.repositories:
            self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        return self.server.repositories.get(name)

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        is_cut = self.fault is not None and not self.fault.status
        if self.command == "GET":
            self.wfile.write(content[: self.fault.sent] if is_cut else content)
        if is_cut:
            if self.fault.hold is not None:
                self.fault.hold.wait()
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing, since requests are recorded."""


def etag(path: str, content: bytes) -> str:
    """A large file's sha256, a small one's git hash."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def facts(path: str, content: bytes) -> dict[str, Any]:
    """A file in model info and in a tree listing, which spell the same facts differently."""
    entry = {"rfilename": path, "path": path, "size": len(content), "type": "file"}
    entry["blobId"] = entry["oid"] = etag("", content)
    if path.endswith(LARGE):
        digest = etag(path, content)
        entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 130}
    return entry


def stand_in(running: Hub, monkeypatch: Any, folder: Path) -> None:
    """Point this process at a local hub, with an empty cache and no login."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", running.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # before huggingface_hub retries
    monkeypatch.delenv("HF_TOKEN", raising=False)


@contextmanager
def running() -> Iterator[Hub]:
    """Run a hub for as long as the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


@contextmanager
def standing_in(name: str, root: Path, monkeypatch: Any, folder: Path) -> Iterator[Hub]:
    """Run a hub with one repository, as `stand_in` makes this process take it for the hub."""
    with running() as hub:
        hub.publish(name, root)
        stand_in(hub, monkeypatch, folder)
        yield hub
