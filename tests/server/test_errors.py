"""What errors are to HTTP: one status, one type, one code each."""

import pytest

from hlwq_mlx.errors import (
    BusyError,
    CheckpointError,
    ContextError,
    DeviceError,
    HLWQError,
    RequestError,
    ShapeError,
    SourceError,
    UnsupportedError,
)
from hlwq_mlx.server.errors import Refused, describe, headers_of, status_of

INVALID = "invalid_request_error"
EXPECTED = [
    (RequestError("[n] needed more."), 400, INVALID, None),
    (ContextError(9, 8), 400, INVALID, "context_length_exceeded"),
    (SourceError("[http://host] needed an answer."), 400, INVALID, None),
    (Refused(401, "[Authorization] needed a key."), 401, "authentication_error", "invalid_api_key"),
    (Refused(403, "[Host] needed another."), 403, "permission_error", None),
    (Refused(404, "[/x] needed a path."), 404, INVALID, "unknown_url"),
    (Refused(405, "[/x] needed POST."), 405, INVALID, "method_not_allowed"),
    (Refused(408, "[body] needed more."), 408, INVALID, None),
    (Refused(413, "[body] needed less."), 413, INVALID, "request_too_large"),
    (BusyError("[queue] needed room.", 3), 429, "rate_limit_error", "rate_limit_exceeded"),
    (CheckpointError("[x] needed y."), 500, "server_error", None),
    (ShapeError("[x] needed y."), 500, "server_error", None),
    (HLWQError("[x] needed y."), 500, "server_error", None),
    (UnsupportedError("[x] needed y."), 501, "not_supported_error", "not_supported"),
    (DeviceError("[memory] needed more."), 503, "server_error", None),
]


@pytest.mark.parametrize(("problem", "status", "kind", "code"), EXPECTED)
def test_every_error_has_its_status_type_and_code(problem, status, kind, code):
    assert status_of(problem) == status
    told = describe(problem, status)
    assert (told.message, told.type, told.field, told.code) == (str(problem), kind, None, code)


def test_busy_says_when_to_come_back():
    assert headers_of(BusyError("[queue] needed room.", 3)) == {"retry-after": "3"}
    assert headers_of(RequestError("[n] needed more.")) == {}


@pytest.mark.parametrize(
    ("where", "field"),
    [
        ("stop", "stop"),
        ("stop[1]", "stop[1]"),
        ("messages[0].content[2].image_url", "messages[0].content[2].image_url"),
        ("logit_bias.-1", "logit_bias.-1"),
        ("messages[0].$ref", "messages[0].$ref"),
        ("data URL", None),
        ("template", None),
        ("http://host/stop", None),
    ],
)
def test_the_field_at_fault_is_told_if_it_is_one(where, field):
    problem = RequestError(f"[{where}] needed x, got y.")
    assert describe(problem, 400, {"stop", "messages", "logit_bias"}).field == field


def test_a_failure_in_a_stream_is_told_by_its_status():
    assert describe(CheckpointError("[x] needed y."), 500).type == "server_error"
    assert describe(RequestError("[x] needed y."), 500).type == "server_error"
