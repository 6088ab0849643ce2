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
NOTICED_S = 10


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
    """Return the one line with an error of ours, of a process that ends by itself.

    MLX's ring may be about to say something on the same line.
    """
    _, text = process.communicate(timeout=60)
    assert process.returncode == control.EXIT_LOST, text
    [line] = [each for each in text.decode().splitlines() if "error: " in each]
    return line


def test_another_version_is_refused_by_name(ranks):
    leader = ranks.run(0)
    with ranks.stand_in() as connection:
        say(connection, rank=1, hello={**start.hello(), "hlwq_mlx": "0.0.1"})
        line = told(leader)
    assert "rank 1 (127.0.0.1)" in line and "hlwq_mlx 0.0.1" in line


def test_code_that_differs_is_another_version(tmp_path, monkeypatch):
    here = start.hello()
    assert start.hello() == here
    for name, text in (("a.py", "x = 1"), ("b.py", "y = 2")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(start, "PACKAGE", tmp_path)
    told = {start.hello()["hlwq_mlx"]}
    (tmp_path / "b.py").write_text("y = 3")
    told.add(start.hello()["hlwq_mlx"])
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    told.add(start.hello()["hlwq_mlx"])
    assert len(told | {here["hlwq_mlx"]}) == 4


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
    lost = time.monotonic()
    assert "rank 1 (127.0.0.1)" in told(leader)
    assert time.monotonic() - lost < NOTICED_S


@pytest.mark.slow
def test_a_rank_that_falls_silent_ends_the_group(ranks):
    endless = ("--temp", "9")
    leader, other = ranks.run(0, *endless), ranks.run(1, *endless)
    leader.stdout.read(1)
    other.send_signal(signal.SIGSTOP)
    lost = time.monotonic()
    assert "rank 1 (127.0.0.1)" in told(leader)
    assert time.monotonic() - lost < NOTICED_S


def test_a_port_that_is_taken_is_told_of(ranks):
    with socket.create_server((HOST, ranks.port + 2)):
        line = told(ranks.run(0))
    assert "rank 0 (127.0.0.1)" in line and "in use" in line and "rank 1" not in line


def test_the_system_gives_up_what_is_not_answered():
    """A link that is cut while parts are loaded: beats wait for an answer, so nothing is probed."""
    name = getattr(socket, "TCP_USER_TIMEOUT", None)
    if name is None:
        pytest.skip("this system has another option")
    with socket.create_server((HOST, 0)) as server:
        peer = control.Peer(socket.create_connection(server.getsockname()))
        limit = peer._connection.getsockopt(socket.IPPROTO_TCP, name)
        assert 0 < limit < 1000 * NOTICED_S
        peer._connection.close()


def test_options_that_a_group_cannot_follow_are_refused(ranks):
    leader = ranks.run(0, "--draft", "model")
    _, text = leader.communicate(timeout=60)
    assert leader.returncode == 2 and "--draft model" in text.decode()


@pytest.mark.slow
def test_a_host_that_is_not_there_is_named(ranks):
    line = told(ranks.run(0))
    assert "rank 1 (127.0.0.1)" in line and "within 8 s" in line
