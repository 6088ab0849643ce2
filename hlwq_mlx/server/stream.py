"""Send an answer as it comes, and notice at once when its client leaves."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
Answer = TypeVar("Answer")


class Gone(Exception):
    """The client left before its answer was complete."""


class Stream(Response):
    """A response whose bytes come from an iterator, which is closed when the client leaves.

    `at_end` is called in any case: an iterator that was never begun is closed without a trace.
    """

    def __init__(
        self, pieces: AsyncGenerator[bytes], media_type: str, at_end: Callable[[], None]
    ) -> None:
        self._pieces = pieces
        self._at_end = at_end
        self.status_code = 200
        self.background = None
        self.media_type = media_type
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces, unless the client leaves first."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                with contextlib.suppress(OSError):  # the client left while it was sent to
                    sending.result()
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            self._at_end()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async with contextlib.aclosing(self._pieces) as pieces:
            async for piece in pieces:
                if piece:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(request: Request, answer: Awaitable[Answer]) -> Answer:
    """Return an answer that is made while its client waits.

    Raises: Gone if the client leaves first; making the answer is then cancelled.
    """
    making = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({making, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not making.done():
            raise Gone
        return making.result()
    finally:
        for task in (making, leaving):
            task.cancel()
        await asyncio.gather(making, leaving, return_exceptions=True)


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
