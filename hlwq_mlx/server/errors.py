"""What every error is to HTTP, and to a client: a status, a type and a code, said once.

A dialect puts them into its own envelope.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from ..errors import (
    BusyError,
    ContextError,
    DeviceError,
    HLWQError,
    RequestError,
    SourceError,
    UnsupportedError,
)


class Refused(HLWQError):
    """A request that is refused for who sends it, or how; `status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# The first class that an error is an instance of counts; any other error is a failure of ours.
STATUSES: tuple[tuple[type[HLWQError], int], ...] = (
    (UnsupportedError, 501),
    (RequestError, 400),
    (SourceError, 400),  # of a medium that the client named
    (BusyError, 429),
    (DeviceError, 503),
)
FAILURE = 500
# OpenAI's words.
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "server_error",
}
CODES = {
    401: "invalid_api_key",
    404: "unknown_url",
    405: "method_not_allowed",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    501: "not_supported",
}
TOO_LONG = "context_length_exceeded"

_FIELD = re.compile(r"\[([A-Za-z_]\w*)((?:\[\d+\]|\.[\w$-]+)*)\] ")


@dataclass(frozen=True)
class Described:
    """An error as a client reads it; `field` is the path of the field at fault, if one is."""

    message: str
    type: str
    field: str | None
    code: str | None


def status_of(problem: HLWQError) -> int:
    """Return the status of HTTP that an error has before an answer has begun."""
    if isinstance(problem, Refused):
        return problem.status
    return next((status for kind, status in STATUSES if isinstance(problem, kind)), FAILURE)


def headers_of(problem: HLWQError) -> dict[str, str]:
    """Return the headers that an error's answer has."""
    if isinstance(problem, BusyError):
        return {"retry-after": str(problem.retry_after_s)}
    return {}


def describe(problem: HLWQError, status: int, fields: Collection[str] = ()) -> Described:
    """Return an error as a client reads it; `fields` are those of the dialect's requests."""
    found = _FIELD.match(str(problem)) if isinstance(problem, RequestError) else None
    field = found.group(1) + found.group(2) if found and found.group(1) in fields else None
    code = TOO_LONG if isinstance(problem, ContextError) else CODES.get(status)
    return Described(str(problem), TYPES.get(status, "invalid_request_error"), field, code)
