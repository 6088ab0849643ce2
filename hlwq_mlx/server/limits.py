"""Who may ask, and how much: hosts, origins, the key, the size of a body and the time it takes.

A page that a browser shows may send requests to this machine, and its name may lead here (DNS
rebinding): so the `Host` must be one of ours, and an `Origin` one that is allowed.
"""

import asyncio
import hmac
import json
import math
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ..dialog.readable import readable
from ..errors import RequestError
from .errors import Refused

LOOPBACK = ("localhost", "127.0.0.1", "::1")
# What runs on this machine: local pages, desktop shells and editors.
LOCAL_ORIGINS = (
    *("http://localhost", "http://127.0.0.1", "http://[::1]"),
    *("https://localhost", "https://127.0.0.1", "https://[::1]"),
    *("app://*", "tauri://*", "vscode-webview://*", "vscode-file://*", "file://*"),
)
OPEN_PATHS = ("/", "/health")  # and the page's files: what a browser and a watcher need first
PAGE = "/page/"
FORM_TYPE = "multipart/form-data"
JSON_TYPES = (
    "application/json",
    "application/x-www-form-urlencoded",
    "",
)  # curl's -d is the second


@dataclass(frozen=True)
class Limits:
    """What a server takes; `hosts` and `origins` are allowed beside those of this machine."""

    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    api_key: str | None = None
    body_bytes: int = 512 << 20
    header_s: float = 30.0
    body_s: float = 60.0  # without a further byte
    _origin: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_origin", _pattern([*LOCAL_ORIGINS, *self.origins]))

    def require_host(self, headers: Headers) -> None:
        """Refuse a Host that is no name of this machine, nor one that was allowed."""
        stated = headers.get("host", "")
        if "*" in self.hosts or host_name(stated) in (*LOOPBACK, *map(str.lower, self.hosts)):
            return
        raise Refused(
            403,
            f"[Host] needed {', '.join([*LOOPBACK, *self.hosts])}, got {stated[:80]!r}. "
            "Start the server with --allowed-hosts to allow another name.",
        )

    def require_origin(self, headers: Headers) -> None:
        """Refuse an Origin that is neither our own page nor allowed."""
        origin = headers.get("origin")
        if origin is None or self.is_allowed(origin) or is_own(origin, headers.get("host", "")):
            return
        raise Refused(
            403,
            f"[Origin] needed one that is allowed, got {origin[:80]!r}. "
            "Start the server with --allowed-origins to allow it.",
        )

    def is_allowed(self, origin: str) -> bool:
        """Return whether pages of an origin may call us."""
        return "*" in self.origins or self._origin.fullmatch(origin) is not None

    def require_key(self, path: str, headers: Headers) -> str:
        """Return the key that a request brings, if only to tell its prompts from those of others.

        Raises: Refused when a key is needed and it is another; the key is never shown.
        """
        given = key_in(headers)
        if self.api_key is None or path in OPEN_PATHS or path.startswith(PAGE):
            return given
        if not hmac.compare_digest(given.encode(), self.api_key.encode()):
            raise Refused(
                401,
                f"[Authorization] needed the server's API key, got {'another' if given else 'none'}"
                ". Give it as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
            )
        return given


def key_in(headers: Headers) -> str:
    """Return the key that a request brings, "" if it brings none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def host_name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    return name.strip("[]").lower() if name else host.lower()


def is_own(origin: str, host: str) -> bool:
    """Return whether an origin is the very host that was asked."""
    return origin.partition("://")[2].lower() == host.lower() and bool(host)


def _pattern(origins: Sequence[str]) -> re.Pattern[str]:
    """Return what matches allowed origins: any port, and anything for a star."""
    spelled = (re.escape(origin).replace(r"\*", ".*") + r"(:\d+)?" for origin in origins)
    return re.compile("|".join(spelled), re.IGNORECASE)


def cors_headers(origin: str, asked: str | None) -> dict[str, str]:
    """Return the headers that let a page of an allowed origin read an answer."""
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": "GET, POST, HEAD, DELETE, OPTIONS",
        "access-control-allow-headers": asked or "*",
        "access-control-allow-private-network": "true",
        "access-control-max-age": "600",
        "vary": "Origin",
    }


async def read_body(request: Request, limits: Limits) -> bytes:
    """Read a body, chunked or not.

    Raises: as `body_chunks`.
    """
    return b"".join([chunk async for chunk in body_chunks(request, limits)])


async def body_chunks(request: Request, limits: Limits) -> AsyncGenerator[bytes]:
    """Yield a body as it comes.

    Raises: Refused for one that is too long or stops coming; RequestError if the client left.
    """
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > limits.body_bytes:
        raise _too_long(stated, limits)
    length = 0
    chunks = request.stream()
    try:
        while True:
            try:
                chunk = await asyncio.wait_for(anext(chunks), limits.body_s)
            except StopAsyncIteration:
                return
            length += len(chunk)
            if length > limits.body_bytes:
                raise _too_long(f"{length} or more", limits)
            yield chunk
    except TimeoutError as problem:
        raise Refused(
            408,
            f"[body] needed more of it within {limits.body_s:.0f} seconds, got {length} bytes. "
            "Send it again.",
        ) from problem
    except ClientDisconnect as problem:
        raise RequestError("[body] needed all of it, got a part. Send it again.") from problem


def _too_long(got: str, limits: Limits) -> Refused:
    return Refused(
        413, f"[body] needed at most {limits.body_bytes} bytes, got {got}. Send less at once."
    )


def _finite(number: str) -> float:
    """Return a number that JSON can hold, as answers repeat what requests say."""
    if not math.isfinite(float(number)):
        raise ValueError(f"{number[:40]} is no finite number")
    return float(number)


def parse_json(body: bytes, content_type: str) -> dict[str, Any]:
    """Return the JSON object in a body, its text readable.

    Raises: Refused for another type, as a page could send one without being asked; RequestError
    for what is no JSON object.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in JSON_TYPES:
        raise Refused(415, f"[Content-Type] needed application/json, got {kind[:80]!r}. Send JSON.")
    try:
        parsed = json.loads(body or b"{}", parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as problem:
        raise RequestError(
            f"[body] needed a JSON object, got: {str(problem)[:200]}. Correct it."
        ) from problem
    if not isinstance(parsed, dict):
        raise RequestError(
            f"[body] needed a JSON object, got {str(parsed)[:60]!r}. Name each option."
        )
    try:
        return dict(readable(parsed))
    except RecursionError as problem:
        raise RequestError(
            "[body] needed values within fewer others, got a body nested too deep. Flatten it."
        ) from problem


async def read_form(request: Request, limits: Limits) -> dict[str, Any]:
    """Return the fields of a multipart form; a file is its bytes.

    Raises: Refused for another type of body; RequestError for a form that is damaged; as
    `body_chunks`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM_TYPE:
        raise Refused(415, f"[Content-Type] needed {FORM_TYPE}, got {kind[:80]!r}. Send a form.")
    chunks = body_chunks(request, limits)
    try:
        form = await MultiPartParser(request.headers, chunks, max_files=1, max_fields=64).parse()
    except MultiPartException as problem:
        raise RequestError(
            f"[body] needed a form, got: {problem.message[:200]}. Correct it."
        ) from problem
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        fields[name] = value if isinstance(value, str) else await value.read()
    await form.close()
    return dict(readable(fields))
