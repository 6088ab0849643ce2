"""What holds for every request before it is routed: host, origin and key. Answers are counted."""

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import HLWQError
from .limits import Limits, cors_headers

KEY = "hlwq_key"  # of the scope: the API key that a request brought


class Gate:
    """Lets requests pass that may ask; `refuse` answers the others, `count` gets every status."""

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        refuse: Callable[[str, HLWQError], Response],
        count: Callable[[str, int], None],
    ) -> None:
        self._app = app
        self._limits = limits
        self._refuse = refuse
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, answer a browser's question whether it may, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        added = self._added(headers)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope["path"], message["status"])
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        response = self._app
        try:
            self._limits.require_host(headers)
            self._limits.require_origin(headers)
            if scope["method"] == "OPTIONS":
                response = Response(status_code=204)
            else:
                scope[KEY] = self._limits.require_key(scope["path"], headers)
        except HLWQError as problem:
            response = self._refuse(scope["path"], problem)
        await response(scope, receive, counted)

    def _added(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        origin = headers.get("origin")
        if origin is None or not self._limits.is_allowed(origin):
            return []
        cors = cors_headers(origin, headers.get("access-control-request-headers"))
        return [(name.encode(), value.encode("latin-1")) for name, value in cors.items()]
