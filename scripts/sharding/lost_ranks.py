"""Kill a rank of a group in the middle of its life, and print how the others end.

    python scripts/sharding/lost_ranks.py [--sizes 2 4]

Each line is a group of processes on this machine's loopback, with the demo: what it did, and which
rank was ended by SIGKILL; then after how many seconds the last process had ended, with which codes,
and what rank 0 said.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from hlwq_mlx.sharding import launched
from scripts.sharding.parity import free_ports

HOST = "127.0.0.1"
SIZES = (2, 4)
READY = "weights read by"  # of what rank 0 says when all have loaded
STARTED_S, ENDED_S = 120.0, 60.0
ENDLESS = ("--temp", "9", "--seed", "6", "-m", "400")  # no answer, and no end of one
COLUMNS = ("command", "processes", "killed", "seconds", "exit codes", "rank 0 says")


class Group:
    """The processes of a command, of which rank 0 talks."""

    def __init__(self, folder: Path, size: int, command: Sequence[str]) -> None:
        first = free_ports(size + 2)
        self.port = first + size + 1
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"{HOST}:{first + rank}"] for rank in range(size)]))
        self.lines: list[str] = []
        self.is_ready = threading.Event()
        self.ranks = [self._start(rank, hosts, command) for rank in range(size)]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _start(self, rank: int, hosts: Path, command: Sequence[str]) -> "subprocess.Popen[str]":
        name, *options = command
        return subprocess.Popen(
            [sys.executable, "-m", f"hlwq_mlx.{name}", *options, *self._port_of(name)],
            env={**os.environ, launched.RANK: str(rank), launched.HOSTS: str(hosts)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )

    def _port_of(self, name: str) -> Sequence[str]:
        return ("--port", str(self.port)) if name == "serve" else ()

    def _listen(self) -> None:
        stderr = self.ranks[0].stderr
        assert stderr is not None
        for line in stderr:
            self.lines.append(line.strip())
            if READY in line:
                self.is_ready.set()

    def said(self) -> str:
        """Return the lines of an error that rank 0 wrote, without their advice."""
        self._thread.join(ENDED_S)
        told = [line.partition("error: ")[2] for line in self.lines if "error: " in line]
        return " / ".join(line.partition(". ")[0] for line in told)


def talk(group: Group) -> None:
    """Wait until rank 0 writes an answer."""
    stdout = group.ranks[0].stdout
    assert stdout is not None
    stdout.read(1)


def ask_chat(group: Group) -> None:
    """Say something to a chat, and wait until it answers."""
    stdin = group.ranks[0].stdin
    assert stdin is not None
    stdin.write("Tell me a story\n")
    stdin.flush()
    talk(group)


def ask_server(group: Group) -> None:
    """Ask a server twice, and wait until both requests are being answered."""
    question = {"messages": [{"role": "user", "content": "Tell me a story"}], "stream": True}
    how = {"temperature": 2.0, "max_tokens": 400, "seed": 6}
    body = json.dumps({"model": "any", **question, **how}).encode()
    url = f"http://{HOST}:{group.port}/v1/chat/completions"
    for _ in range(2):
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        answer = urllib.request.urlopen(request, timeout=STARTED_S)
        answer.readline()
        threading.Thread(target=read_out, args=(answer,), daemon=True).start()


def read_out(answer: HTTPResponse) -> None:
    """Take what comes, until nothing does."""
    with suppress(OSError, HTTPException):
        answer.read()


def wait(group: Group) -> None:
    """Let a group be idle for a while."""
    time.sleep(2)


CASES: dict[str, tuple[Sequence[str], Callable[[Group], None]]] = {
    "generate, answering": (("generate", *ENDLESS), talk),
    "chat, idle": (("chat", *ENDLESS), wait),
    "chat, answering": (("chat", *ENDLESS), ask_chat),
    "serve, idle": (("serve",), wait),
    "serve, two requests in flight": (("serve",), ask_server),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args(argv)
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for size in arguments.sizes:
        for name in CASES:
            for killed in (size - 1, 0):
                print(line(name, size, killed), flush=True)


def line(name: str, size: int, killed: int) -> str:
    """Return a line of the table."""
    command, until_busy = CASES[name]
    with started(size, command) as group:
        if not group.is_ready.wait(STARTED_S):
            raise SystemExit(f"{name}: not ready\n" + "\n".join(group.lines))
        until_busy(group)
        group.ranks[killed].send_signal(signal.SIGKILL)
        began = time.monotonic()
        left = [rank for at, rank in enumerate(group.ranks) if at != killed]
        codes = [str(rank.wait(ENDED_S)) for rank in left]
        took = time.monotonic() - began
        cells = [name, str(size), f"rank {killed}", f"{took:.1f}", ", ".join(codes), group.said()]
    return f"| {' | '.join(cells)} |"


@contextmanager
def started(size: int, command: Sequence[str]) -> Iterator[Group]:
    """Start a group, of which nothing is left behind the block."""
    with tempfile.TemporaryDirectory() as folder:
        group = Group(Path(folder), size, command)
        try:
            yield group
        finally:
            for rank in group.ranks:
                rank.kill()
                rank.wait()


if __name__ == "__main__":
    main()
