"""What goes wrong with another machine is one line on rank 0, soon, and our own exit code."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from hlwq_mlx.errors import GroupError
from hlwq_mlx.sharding import control, launched, start
from scripts.sharding.parity import free_ports

HOST = "127.0.0.1"
NOTICED_S = 10
ENDLESS = ("--temp", "9", "--seed", "6")  # no answer, and no end of one


class Ranks:
    """Processes of a group, started without mlx.launch."""

    def __init__(self, folder, size):
        self.port = free_ports(size + 1)
        self.hosts = folder / "hosts.json"
        nodes = [[f"{HOST}:{self.port + rank}"] for rank in range(size)]
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
def ranks(request, tmp_path):
    found = Ranks(tmp_path, getattr(request, "param", 2))
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


def test_who_drips_or_is_silent_holds_no_start(ranks, monkeypatch):
    """A byte now and then is no reason to wait on, and a rank that is there is heard meanwhile."""
    monkeypatch.setattr(control, "REACHED_S", 2.0)
    leader = control.Leader(launched.Launched(0, 3, "ring", HOST, ranks.port + 2))
    dripping, silent, own = (socket.socket() for _ in range(3))
    lines, is_over = [], threading.Event()

    def connect():
        for each in (dripping, silent, own):
            each.connect((HOST, ranks.port + 2))
        say(own, rank=1, hello={})
        with suppress(OSError):
            while not is_over.wait(0.1):
                dripping.sendall(b" ")

    def failed(line):
        lines.append(line)
        raise SystemExit

    monkeypatch.setattr(leader, "fail", failed)
    began = time.monotonic()
    threading.Timer(0.2, connect).start()
    with pytest.raises(SystemExit):
        leader.gather({})
    took = time.monotonic() - began
    is_over.set()
    assert json.loads(own.recv(100)) == {"do": "stay"}
    assert lines[0].startswith("[rank 2] needed") and 2.0 <= took < NOTICED_S
    for each in (dripping, silent, own, *leader.peers.values()):
        each.close()


def test_a_crowd_that_says_nothing_shuts_no_rank_out(monkeypatch):
    monkeypatch.setattr(control, "WAITING", 3)
    crowd, own = [socket.socket() for _ in range(6)], socket.socket()
    with socket.create_server((HOST, 0)) as server:
        address = server.getsockname()
        leader = control.Leader(launched.Launched(0, 2, "ring", *address))

        def connect():
            for each in (*crowd, own):
                each.connect(address)
            say(own, rank=1, hello={})

        threading.Timer(0.2, connect).start()
        leader._admit_all(server, {}, time.monotonic() + NOTICED_S)
    assert list(leader.peers) == [1]
    assert json.loads(own.recv(100)) == {"do": "stay"}
    assert crowd[0].recv(1) == b""  # it was let go
    for each in (*crowd, own, *leader.peers.values()):
        each.close()


@pytest.mark.parametrize(("words", "code"), [(b'{"do":"end"}\n', 0), (b"", control.EXIT_LOST)])
def test_a_follower_ends_well_if_and_only_if_it_was_told_to(words, code):
    """However long its own end takes: the main thread is still busy when the connection closes."""
    program = (
        "import sys, time; from hlwq_mlx.sharding import control, launched\n"
        "place = launched.Launched(1, 2, 'ring', sys.argv[1], int(sys.argv[2]))\n"
        "control.Follower(place).join({}); time.sleep(60)"
    )
    with socket.create_server((HOST, 0)) as server:
        command = [sys.executable, "-c", program, HOST, str(server.getsockname()[1])]
        process = subprocess.Popen(command)
        connection, _ = server.accept()
        connection.sendall(b'{"do":"stay"}\n' + words)
        connection.shutdown(socket.SHUT_WR)
        assert process.wait(timeout=30) == code
        connection.close()


def test_who_falls_silent_as_the_work_begins_is_given_no_more_time(monkeypatch):
    """The wait that is under way was to last as long as loading may."""
    monkeypatch.setattr(control, "BEAT_S", 0.1)
    with socket.create_server((HOST, 0)) as server:
        peer = control.Peer(socket.create_connection(server.getsockname()))
        peer.expect(60.0)
        threading.Timer(0.3, peer.expect, [0.2]).start()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            peer.read()
        assert time.monotonic() - began < NOTICED_S
        peer.close()


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
    leader, other = ranks.run(0, *ENDLESS), ranks.run(1, *ENDLESS)
    assert leader.stdout is not None
    leader.stdout.read(1)
    other.send_signal(signal.SIGKILL)
    lost = time.monotonic()
    assert "rank 1 (127.0.0.1)" in told(leader)
    assert time.monotonic() - lost < NOTICED_S


@pytest.mark.slow
def test_a_rank_that_falls_silent_ends_the_group(ranks):
    leader, other = ranks.run(0, *ENDLESS), ranks.run(1, *ENDLESS)
    leader.stdout.read(1)
    other.send_signal(signal.SIGSTOP)
    lost = time.monotonic()
    assert "rank 1 (127.0.0.1)" in told(leader)
    assert time.monotonic() - lost < NOTICED_S


def test_a_port_that_is_taken_is_told_of(ranks):
    with socket.create_server((HOST, ranks.port + 2)):
        line = told(ranks.run(0))
    assert "rank 0 (127.0.0.1)" in line and "in use" in line and "rank 1" not in line


def test_a_port_behind_the_last_one_is_told_of(ranks):
    ranks.hosts.write_text(json.dumps([[f"{HOST}:65535"], [f"{HOST}:65534"]]))
    assert "needed to listen at 127.0.0.1:65536" in told(ranks.run(0))


@pytest.mark.parametrize("nodes", ["", "{", "{}", "[]", "[[]]", "[[1]]", '[["127.0.0.1"]]'])
def test_a_file_of_hosts_that_mlx_launch_never_makes_is_refused(ranks, nodes):
    ranks.hosts.write_text(nodes)
    environment = {launched.RANK: "0", launched.HOSTS: str(ranks.hosts)}
    if not nodes:  # of one host alone
        assert launched.launched(environment) is None
        return
    with pytest.raises(GroupError, match=r"needed the environment that mlx\.launch makes"):
        launched.launched(environment)


def test_another_version_is_named_though_its_rank_is_gone(ranks, monkeypatch):
    def gone(message):
        raise BrokenPipeError

    lines = []
    leader = control.Leader(launched.Launched(0, 2, "ring", HOST, ranks.port))
    monkeypatch.setattr(leader, "fail", lambda line: sys.exit(lines.append(line)))
    with pytest.raises(SystemExit):
        told = {"rank": 1, "hello": {"mlx": "0"}}
        leader._admit(SimpleNamespace(send=gone), told, {"mlx": "1"})
    assert "[rank 1] needed mlx 1 as rank 0 has, got mlx 0" in lines[0]


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


@pytest.mark.parametrize("ranks", [3], indirect=True)
def test_no_rank_ends_well_where_rank_0_refuses_the_plan(ranks):
    leader, *others = (ranks.run(rank, "--split", "tensors") for rank in range(3))
    _, text = leader.communicate(timeout=60)
    assert leader.returncode == 2 and "needed 2 or 4 machines" in text.decode()
    assert [each.wait(timeout=NOTICED_S) for each in others] == 2 * [control.EXIT_LOST]


@pytest.mark.slow
def test_a_host_that_is_not_there_is_named(ranks):
    line = told(ranks.run(0))
    assert "rank 1 (127.0.0.1)" in line and "within 8 s" in line
