"""A server command as a person starts it, and OpenAI's client to speak with it."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import openai

DEADLINE_S = 120


OURS = ("-m", "hlwq_mlx.serve")


@contextmanager
def served(folder: Path, server: Sequence[str] = OURS) -> Iterator[Any]:
    """Serve a model by arguments of Python's; yield a client."""
    port = free_port()
    with (
        tempfile.TemporaryFile("w+") as log,  # a pipe that nobody reads would fill
        subprocess.Popen(
            [sys.executable, *server, "--model", str(folder), "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        ) as process,
    ):
        try:
            wait_until_open(port, process, log)
            with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
                yield client
        finally:
            process.terminate()


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
