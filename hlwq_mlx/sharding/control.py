"""Plain sockets beside MLX's: rank 0 tells the others what to do, and all watch over each other.

A collective waits for a lost machine as long as the network lets it, and nothing interrupts it.
So each end says once a second that it lives, on a thread of its own, and a process whose other end
falls silent ends itself; rank 0 says why, in one line. While parts are loaded a thread may be kept
from speaking, so until then the system's own probes watch, and two minutes of silence end the wait.
Messages are lines of JSON.
"""

import json
import os
import queue
import select
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from .launched import Launched

EXIT_LOST = 3
REACHED_S = 8.0  # for all machines of a group to be there
BEAT_S, SILENCE_S = 1.0, 8.0
LOADING_S = 120.0
# The system probes a silent connection from the second second on, every second, and gives up at
# the eighth: options by the names that Linux and macOS have for them.
PROBES = {"TCP_KEEPIDLE": 2, "TCP_KEEPALIVE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 6}
# It probes no connection on which something waits for an answer, as a beat does once the link is
# cut; for those Linux has a limit in milliseconds, and macOS one in seconds that Python has no name
# for (TCP_RXT_CONNDROPTIME).
PROBES["TCP_USER_TIMEOUT"] = 8000
DROP_ON_MACOS = (0x80, 8)
WAITING = 64  # who connected and did not say who they are; the first of more are let go
LONGEST_LINE = 1 << 26  # the ids of the longest prompt are far less
CHUNK = 1 << 16
_BEAT = {"beat": True}

Message = Mapping[str, Any]


class Peer:
    """The other end of a connection: messages in and out, and its beat."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in PROBES.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if sys.platform == "darwin":
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, *DROP_ON_MACOS)
        connection.settimeout(LOADING_S)
        self._connection = connection
        self._within_s = REACHED_S
        self._unread = b""
        self._lock = threading.Lock()
        self.inbox: queue.Queue[Message] = queue.Queue()
        self.sent = 0
        self.is_done = False  # whether the other end said that there is no more to do

    def fileno(self) -> int:
        """Return what `select` waits for."""
        return self._connection.fileno()

    def close(self) -> None:
        """Have no more to do with the other end."""
        self._connection.close()

    def expect(self, within_s: float) -> None:
        """Count on hearing of the other end so often from now on."""
        self._within_s = within_s

    def send(self, message: Message) -> None:
        """Send a message. Raises: OSError when the other end is gone."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._connection.sendall(line)
            self.sent += len(line)

    def read(self) -> Message:
        """Return the next message.

        Raises: OSError when the other end is gone or silent; ValueError for what is no message.
        """
        while (message := self.arrived()) is None:
            self._wait()
            self.receive()
        return message

    def receive(self) -> None:
        """Take in some bytes, of which there are some. Raises: OSError as `read`."""
        taken = self._connection.recv(CHUNK)
        if not taken or len(self._unread) > LONGEST_LINE:
            raise ConnectionResetError("its connection was closed")
        self._unread += taken

    def arrived(self) -> Message | None:
        """Return a message that is here whole. Raises: ValueError as `read`."""
        if b"\n" not in self._unread:
            return None
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            message = json.loads(line)
        except RecursionError as problem:
            raise ValueError("what it sent is nested too deeply") from problem
        if not isinstance(message, dict):
            raise ValueError("what it sent is no message")
        return message

    def _wait(self) -> None:
        """Wait for something to read, in short waits: a clock jumps while this machine sleeps.

        What is expected may change meanwhile.
        """
        silent_s = 0.0
        while silent_s < self._within_s:
            if select.select([self._connection], [], [], BEAT_S)[0]:
                return
            silent_s += BEAT_S
        raise TimeoutError

    def beat(self) -> None:
        """Send signs of life until the other end is gone."""
        with suppress(OSError):
            while True:
                self.send(_BEAT)
                time.sleep(BEAT_S)

    def watch(self) -> Exception:
        """Put messages into the inbox; return why that ended, as the other end tells if it can."""
        try:
            while True:
                message = self.read()
                if "problem" in message:
                    return RuntimeError(message["problem"])
                if message != _BEAT:
                    self.is_done = self.is_done or message.get("do") == "end"
                    self.inbox.put(message)
        except TimeoutError:
            return TimeoutError("it fell silent")
        except (OSError, ValueError) as problem:
            return problem


def leave(line: str | None = None, code: int = EXIT_LOST) -> NoReturn:
    """End the process at once, whatever its other threads wait for, with our own exit code."""
    if line is not None:
        with suppress(OSError):
            sys.stderr.write(f"error: {line}\n")
            sys.stderr.flush()
    os._exit(code)


class Leader:
    """Rank 0's ends of all connections."""

    def __init__(self, place: Launched) -> None:
        self.place = place
        self.peers: dict[int, Peer] = {}
        self._failing = threading.Lock()
        self._is_over = False

    def gather(self, hello: Message) -> None:
        """Wait for the other ranks, and refuse one whose `hello` is another; leave if one lacks."""
        try:
            with self._listening() as server:
                self._admit_all(server, hello, time.monotonic() + REACHED_S)
        except BaseException as problem:  # noqa: BLE001 - SIGTERM too: mlx.launch met it first
            self._leave_unreached(problem)
        for rank, peer in self.peers.items():
            threading.Thread(target=self._watch, args=(rank, peer), daemon=True).start()
            threading.Thread(target=peer.beat, daemon=True).start()

    def _listening(self) -> socket.socket:
        try:
            return socket.create_server((self.place.host, self.place.port))
        except (OSError, OverflowError) as problem:  # the latter for a port behind the last one
            why = problem.strerror if isinstance(problem, OSError) else problem
            self.fail(
                f"[{self.place.name(0)}] needed to listen at {self.place.host}:{self.place.port}, "
                f"got {why}. Check that the address is this machine's, or give "
                "mlx.launch another --starting-port."
            )

    def tell(self, message: Message) -> None:
        """Send a message to every other rank; leave if one is gone."""
        for rank, peer in self.peers.items():
            try:
                peer.send(message)
            except OSError as problem:
                self.lose(rank, problem)

    def hear(self) -> dict[int, Message]:
        """Return the next message of every other rank; leave if one is gone."""
        return {rank: peer.inbox.get() for rank, peer in self.peers.items()}

    def begin(self) -> None:
        """Begin with the work: every part is loaded."""
        self.tell({"do": "begin"})
        for peer in self.peers.values():
            peer.expect(SILENCE_S)

    def fail(self, line: str) -> NoReturn:
        """End all processes: this one says why."""
        with self._failing:  # for good: the others wait here for the end of the process
            leave(line)

    def lose(self, rank: int, problem: Exception) -> NoReturn:
        """Leave, because of a rank."""
        if isinstance(problem, RuntimeError):  # its own words
            self.fail(f"{self.place.name(rank)}: {problem}")
        self.fail(
            f"[{self.place.name(rank)}] needed its part of the answer, got none: {problem}. Look "
            "whether that machine is up and connected, then start again."
        )

    def give_up(self, problem: BaseException) -> NoReturn:
        """Leave, because a pass that all took part in cannot be finished."""
        time.sleep(BEAT_S)  # what the collective complains of, the watch may know by name
        self.fail(
            f"[group] needed a pass of all machines, got {type(problem).__name__}: {problem}. "
            "Start again."
        )

    def end(self) -> None:
        """Let the other ranks end, for the work is done."""
        self._is_over = True
        for peer in self.peers.values():
            with suppress(OSError):
                peer.send({"do": "end"})

    def _admit_all(self, server: socket.socket, hello: Message, until: float) -> None:
        """Hear all who connect at once, as slow or silent as some are. Raises: TimeoutError."""
        heard: list[Peer] = []
        server.setblocking(False)
        try:
            while self._lacking():
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                both: list[socket.socket | Peer] = [server, *heard]
                ready, _, _ = select.select(both, [], [], left)
                heard = [peer for peer in heard if peer not in ready or self._is_open(peer, hello)]
                if server in ready:
                    with suppress(OSError):  # it is gone again
                        heard += self._accept(server)
                if len(heard) > WAITING:
                    heard.pop(0).close()
        finally:
            for peer in heard:
                peer.close()

    def _accept(self, server: socket.socket) -> list[Peer]:
        """Return who connected, unless it is a stranger. Raises: OSError."""
        connection, address = server.accept()
        if self.place.hosts and address[0] not in self.place.hosts:
            connection.close()
            return []
        return [Peer(connection)]

    def _is_open(self, peer: Peer, hello: Message) -> bool:
        """Read on of who somebody is; return whether that is still open."""
        try:
            peer.receive()
            told = peer.arrived()
            if told is None:
                return True
            is_ours = self._admit(peer, told, hello)
        except (OSError, ValueError):
            is_ours = False  # and no reason to end
        if not is_ours:
            peer.close()
        return False

    def _lacking(self) -> list[int]:
        return [rank for rank in range(1, self.place.size) if rank not in self.peers]

    def _admit(self, peer: Peer, told: Message, hello: Message) -> bool:
        """Take in a rank that is lacking; leave if its `hello` is another."""
        rank, theirs = told.get("rank"), told.get("hello")
        if type(rank) is not int or rank not in self._lacking() or not isinstance(theirs, dict):
            return False
        if theirs != hello:
            with suppress(OSError):  # it may be gone, and is another all the same
                peer.send({"do": "end"})
            self.fail(self._difference(rank, hello, theirs))
        peer.send({"do": "stay"})
        peer.expect(LOADING_S)
        self.peers[rank] = peer
        return True

    def require_same(self, what: str, own: Any, others: Mapping[int, Any], advice: str) -> None:
        """Leave if a rank has another one of something than this rank."""
        for rank, other in others.items():
            if other != own:
                self.fail(
                    f"[{self.place.name(rank)}] needed {what} {own} as rank 0 has, got {other}. "
                    f"{advice}"
                )

    def _difference(self, rank: int, own: Message, other: Message) -> str:
        keys: Iterable[str] = own.keys() | other.keys()
        told = [key for key in sorted(keys) if own.get(key) != other.get(key)]
        here, there = (", ".join(f"{key} {each.get(key)}" for key in told) for each in (own, other))
        return (
            f"[{self.place.name(rank)}] needed {here} as rank 0 has, got {there}. Install the same "
            "code on every machine."
        )

    def _watch(self, rank: int, peer: Peer) -> None:
        problem = peer.watch()
        if not self._is_over:
            self.lose(rank, problem)

    def _leave_unreached(self, problem: BaseException) -> NoReturn:
        names = " and ".join(map(self.place.name, self._lacking()))
        why = f" ({problem})" if str(problem) else ""
        self.fail(
            f"[{names}] needed at {self.place.host}:{self.place.port} within {REACHED_S:.0f} s, "
            f"got nothing{why}. Look whether ssh reaches that machine and the command runs there."
        )


class Follower:
    """Another rank's end of its connection to rank 0."""

    def __init__(self, place: Launched) -> None:
        self.place = place

    def join(self, hello: Message) -> None:
        """Connect to rank 0; leave if it is not there, or does not want this rank."""
        self.peer = self._connect()
        try:
            self.peer.send({"rank": self.place.rank, "hello": hello})
            answer = self.peer.read()
        except (OSError, ValueError):
            leave()
        if answer.get("do") != "stay":
            leave()
        self.peer.expect(LOADING_S)
        threading.Thread(target=self._watch, daemon=True).start()
        threading.Thread(target=self.peer.beat, daemon=True).start()

    def tell(self, message: Message) -> None:
        """Send a message to rank 0; leave if it is gone."""
        try:
            self.peer.send(message)
        except OSError:
            leave()

    def hear(self) -> Message:
        """Return what rank 0 says next."""
        return self.peer.inbox.get()

    def fail(self, line: str) -> NoReturn:
        """Have rank 0 say why this rank cannot go on, and end."""
        self.tell({"problem": line})
        time.sleep(SILENCE_S)  # rank 0 ends first: closing a connection drops what was not read
        leave()

    def _watch(self) -> None:
        self.peer.watch()
        time.sleep(BEAT_S)  # the main thread may be about to end, the work being done
        leave(code=0 if self.peer.is_done else EXIT_LOST)

    def _connect(self) -> Peer:
        until = time.monotonic() + REACHED_S
        while True:
            try:
                address = self.place.host, self.place.port
                return Peer(socket.create_connection(address, timeout=BEAT_S))
            except OSError as problem:
                if time.monotonic() > until:
                    leave(
                        f"[{self.place.name(0)}] needed at {self.place.host}:{self.place.port}, "
                        f"got {problem}. Check the addresses in the file of hosts."
                    )
                time.sleep(0.05)
