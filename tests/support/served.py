"""A server command as a person starts it, and clients to speak with it."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import openai

DEADLINE_S = 120
OURS = ("-m", "hlwq_mlx.serve")


@dataclass
class Served:
    """A running server: its process, and where it is."""

    process: Any
    port: int
    log: TextIO

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, api_key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Send a body as it is, NaN too; return status and answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask(path, data, **{"Content-Type": "application/json"} | headers)

    def ask(self, path: str, data: bytes | None = None, **headers: str) -> tuple[int, Any]:
        """Send a request; return status and answer, parsed if it is JSON."""
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
                return response.status, parsed(response.read())
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, parsed(refused.read())

    def metric(self, name: str) -> float:
        """Return a number of /metrics."""
        lines = self.ask("/metrics")[1].splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"hlwq_{name} "))

    def said(self) -> str:
        """Return what the server has printed so far."""
        self.log.seek(0)
        return self.log.read()


def parsed(body: bytes) -> Any:
    text = body.decode()
    try:
        return json.loads(text)
    except ValueError:
        return text


@contextmanager
def running(
    folder: Path, *arguments: str, server: Sequence[str] = OURS, **variables: str
) -> Iterator[Served]:
    """Serve a model by arguments of Python's, and wait until it can answer."""
    port = free_port()
    with (
        tempfile.TemporaryFile("w+") as log,  # a pipe that nobody reads would fill
        subprocess.Popen(
            [
                *(sys.executable, *server, "--model", str(folder)),
                *("--port", str(port), *arguments),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"} | variables,
        ) as process,
    ):
        try:
            made = Served(process, port, log)
            wait_until_open(port, process, log)
            yield made
        finally:
            process.terminate()


@contextmanager
def served(folder: Path, server: Sequence[str] = OURS) -> Iterator[Any]:
    """Serve a model; yield OpenAI's client."""
    with running(folder, server=server) as made, made.openai() as client:
        yield client


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_open(port: int, process: Any, log: TextIO) -> None:
    for _ in range(10 * DEADLINE_S):
        if process.poll() is not None:
            log.seek(0)
            raise AssertionError(f"the server ended:\n{log.read()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"the server did not listen within {DEADLINE_S} s")
