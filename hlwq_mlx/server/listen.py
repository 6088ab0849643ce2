"""Listen on a socket and run the application until it is told to end.

uvicorn's part in it is kept to what its documentation names, but for the protocol's class.
"""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import DeviceError

BACKLOG = 1024
KEEP_ALIVE_S = 75
OLLAMA_PORT = 11434
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, but a connection must bring each request within a time.

    Without that, clients whose headers dribble would keep connections for ever.
    """

    header_s = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """Take data; where a further request begins with it, wait for the rest of its head."""
        super().data_received(data)
        if self.cycle is not None and self.cycle.response_complete:
            self._await_request()

    def _await_request(self) -> None:
        self.loop.call_later(self.header_s, self._require_request, self.cycle)

    def _require_request(self, before: object) -> None:
        if self.cycle is before and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, but a signal ends it with success; a second one ends it at once.

    `on_signal` is called in a thread of its own when the first one comes.
    """

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if not self.should_exit:
            threading.Thread(target=self._on_signal, name="drain", daemon=True).start()
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Within the block, let SIGINT, SIGTERM and SIGHUP drain the server, if they are heeded."""
        if threading.current_thread() is not threading.main_thread():
            yield  # as in a test: only the main thread may listen for signals
            return
        heeded = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self.handle_exit) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, so that what is wrong with it is known before any work.

    Raises: DeviceError when it cannot be bound.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with contextlib.ExitStack() as failing:
            bound = failing.enter_context(socket.socket(family))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host, port))
            failing.pop_all()
    except (OSError, OverflowError) as problem:
        raise _taken(host, port, problem) from problem
    return bound


def _taken(host: str, port: int, problem: Exception) -> DeviceError:
    reason = problem.strerror if isinstance(problem, OSError) else problem
    ollama = " Ollama may have it: end that first." if port == OLLAMA_PORT else ""
    return DeviceError(
        f"[serve] needed to listen on port {port} of {host}, got '{reason}'. "
        f"Choose another --port, or end the program that has it.{ollama}"
    )


def run(app: ASGIApp, bound: socket.socket, drain: Callable[[], object], patience_s: float) -> None:
    """Serve until a signal ends it; then call `drain`, which ends the answers under way.

    Connections that are still open after `patience_s` are closed.
    Raises: DeviceError when another program that had bound the port, too, listens there by now.
    """
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(patience_s)),
    )
    server = Server(config, drain)
    with server.capture_signals():  # before a client is let in: from then on it ends with success
        _listen(bound)
        asyncio.run(server.serve(sockets=[bound]))


def _listen(bound: socket.socket) -> None:
    host, port = bound.getsockname()[:2]
    try:
        bound.listen(BACKLOG)
    except OSError as problem:
        raise _taken(host, port, problem) from problem


def address(bound: socket.socket) -> str:
    """Return a bound socket's address, as a client writes it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
