"""What goes wrong with another machine is one line on rank 0, soon, and our own exit code."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from hlwq_mlx.sharding import control, launched, start
from scripts.sharding.parity import free_ports

HOST = "127.0.0.1"


class Ranks:
    """Processes of a group of two, started without mlx.launch."""

    def __init__(self, folder):
        self.port = free_ports(3)
        self.hosts = folder / "hosts.json"
        nodes = [[f"{HOST}:{self.port}"], [f"{HOST}:{self.port + 1}"]]
        self.hosts.write_text(json.dumps(nodes))
        self.started = []

    def run(self, rank, *options):
        place = {launched.RANK: str(rank), launched.HOSTS: str(self.hosts)}
        command = [sys.executable, "-m", "hlwq_mlx.generate", "-m", "400", *options]
        process = subprocess.Popen(
            command, env={**os.environ, **place}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.started.append(process)
        return process

    def stand_in(self):
        """Connect as rank 1, with nothing behind it."""
        until = time.monotonic() + 60
        while True:
            try:
                return socket.create_connection((HOST, self.port + 2))
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.05)


@pytest.fixture
def ranks(tmp_path):
    found = Ranks(tmp_path)
    yield found
    for process in found.started:
        process.kill()
        process.communicate()


def say(connection, **message):
    connection.sendall(json.dumps(message).encode() + b"\n")


def told(process):
    """Return the one line that begins with error, of a process that ends by itself."""
    _, text = process.communicate(timeout=60)
    assert process.returncode == control.EXIT_LOST, text
    [line] = [each for each in text.decode().splitlines() if each.startswith("error: ")]
    return line


def test_another_version_is_refused_by_name(ranks):
    leader = ranks.run(0)
    with ranks.stand_in() as connection:
        say(connection, rank=1, hello={**start.hello(), "hlwq_mlx": "0.0.1"})
        line = told(leader)
    assert "rank 1 (127.0.0.1)" in line and "hlwq_mlx 0.0.1" in line


def test_another_folder_is_refused_by_name(ranks):
    leader = ranks.run(0)
    with ranks.stand_in() as connection:
        say(connection, rank=1, hello=start.hello())
        say(connection, folder="of another model", limit=1 << 33)
        line = told(leader)
    assert "rank 1 (127.0.0.1)" in line and "of another model" in line


def test_what_another_rank_cannot_do_rank_0_tells(ranks):
    leader = ranks.run(0)
    with ranks.stand_in() as connection:
        say(connection, rank=1, hello=start.hello())
        say(connection, problem="[ple.safetensors] needed the row store, got no such file.")
        line = told(leader)
    assert "rank 1 (127.0.0.1)" in line and "got no such file" in line


def test_a_rank_that_is_killed_ends_the_group(ranks):
    endless = ("--temp", "9")  # no answer, and no end of one
    leader, other = ranks.run(0, *endless), ranks.run(1, *endless)
    assert leader.stdout is not None
    leader.stdout.read(1)
    other.send_signal(signal.SIGKILL)
    assert "rank 1 (127.0.0.1)" in told(leader)


def test_options_that_a_group_cannot_follow_are_refused(ranks):
    leader = ranks.run(0, "--draft", "model")
    _, text = leader.communicate(timeout=60)
    assert leader.returncode == 2 and "--draft model" in text.decode()


@pytest.mark.slow
def test_a_host_that_is_not_there_is_named(ranks):
    line = told(ranks.run(0))
    assert "rank 1 (127.0.0.1)" in line and "within 8 s" in line
