"""The socket: bound early, and closed on clients that never come to the point."""

import asyncio
import socket
import subprocess
import sys
import threading
import time

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from hlwq_mlx.errors import DeviceError
from hlwq_mlx.server import listen


class Impatient(listen.PatientProtocol):
    header_s = 0.3


@pytest.fixture
def port():
    async def hello(request):
        return PlainTextResponse("hello")

    bound = listen.bind("127.0.0.1", 0)
    app = Starlette(routes=[Route("/", hello)])
    config = uvicorn.Config(app, http=Impatient, lifespan="off", log_config=None)
    server = listen.Server(config, lambda: None)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield bound.getsockname()[1]
    server.should_exit = True
    thread.join()


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def answer(connection):
    """Return a whole answer, in however many pieces it comes."""
    said = b""
    while not said.endswith(b"hello"):
        said += connection.recv(1024)
    return said


def test_a_client_whose_header_dribbles_is_left(port):
    with connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert connection.recv(1024) == b""


def test_a_client_whose_second_header_dribbles_is_left(port):
    with connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 200 OK")
        connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
        connection.settimeout(5)
        assert connection.recv(1024) == b""


def test_a_client_that_says_nothing_is_left(port):
    with connect(port) as connection:
        assert connection.recv(1024) == b""


def test_a_client_that_asks_is_answered(port):
    with connect(port) as connection:
        for _ in range(2):  # on one connection
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answer(connection).startswith(b"HTTP/1.1 200 OK")


def test_addresses_are_spelled_as_clients_do():
    with listen.bind("127.0.0.1", 0) as bound:
        assert listen.address(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 1 << 20), ("no.such.host.invalid", 0), ("192.0.2.1", 0)]
)
def test_what_cannot_be_bound_is_told(host, port):
    with pytest.raises(DeviceError, match=rf"\[serve\] needed to listen on port {port} of {host}"):
        listen.bind(host, port)


def test_of_two_that_have_bound_a_port_the_second_is_told():
    """Both may, as long as neither listens."""
    with listen.bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with listen.bind("127.0.0.1", port) as second:
            first.listen()
            with pytest.raises(DeviceError, match=f"needed to listen on port {port} of 127.0.0.1"):
                listen.run(Starlette(), second, lambda: None, 1)


def test_ollamas_port_has_its_own_advice():
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", listen.OLLAMA_PORT))
        except OSError:
            pytest.skip("the port is taken")
        taken.listen()
        with pytest.raises(DeviceError, match="Ollama may have it"):
            listen.bind("127.0.0.1", listen.OLLAMA_PORT)


ENDED_EARLY = """
import asyncio, os, signal, sys
from starlette.applications import Starlette
from hlwq_mlx.server import listen

started = asyncio.run
asyncio.run = lambda work: (os.kill(os.getpid(), signal.SIGTERM), started(work))[1]
with listen.bind("127.0.0.1", 0) as bound:
    listen.run(Starlette(), bound, lambda: print("drained", flush=True), 1)
"""


def test_an_end_between_listening_and_answering_is_success_too():
    """Where clients can connect, SIGTERM has to find the server's own handler."""
    ran = subprocess.run(
        [sys.executable, "-c", ENDED_EARLY], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "drained\n"), ran.stderr
