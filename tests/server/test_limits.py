"""Who may ask, and how much."""

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from hlwq_mlx.errors import RequestError
from hlwq_mlx.server.errors import Refused
from hlwq_mlx.server.gate import Gate
from hlwq_mlx.server.limits import Limits, host_name, parse_json


def status(check, *arguments):
    try:
        check(*arguments)
    except Refused as problem:
        return problem.status
    return 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("LOCALHOST", 200),
        ("evil.example", 403),
        ("localhost.evil.example:8080", 403),
        ("", 403),
        ("127.0.0.1.evil", 403),
    ],
)
def test_only_names_of_this_machine_are_hosts(host, expected):
    assert status(Limits().require_host, Headers({"host": host})) == expected


def test_other_hosts_can_be_allowed():
    assert status(Limits(hosts=["Mac.local"]).require_host, Headers({"host": "mac.local:1"})) == 200
    assert status(Limits(hosts=["*"]).require_host, Headers({"host": "any"})) == 200
    assert host_name("[fe80::1]") == "fe80::1"


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost:3000", 200),
        ("app://obsidian.md", 200),
        ("vscode-webview://abc", 200),
        ("http://mac.local:8080", 200),  # our own page
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("null", 403),
    ],
)
def test_pages_from_elsewhere_may_not_ask(origin, expected):
    headers = Headers({"origin": origin, "host": "mac.local:8080"})
    assert status(Limits().require_origin, headers) == expected


def test_origins_can_be_allowed():
    limits = Limits(origins=["https://chat.example"])
    assert limits.is_allowed("https://chat.example")
    assert limits.is_allowed("https://chat.example:444")
    assert not limits.is_allowed("https://chat.example.evil")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": "Bearer secret"}, 200),
        ({"x-api-key": "secret"}, 200),
        ({"authorization": "Bearer other"}, 401),
        ({"authorization": "Bearer sécret"}, 401),
        ({}, 401),
    ],
)
def test_a_key_is_asked_for(headers, expected):
    limits = Limits(api_key="secret")
    assert status(limits.require_key, "/v1/models", Headers(headers)) == expected
    assert status(limits.require_key, "/health", Headers(headers)) == 200


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x"])
def test_what_a_page_could_send_unasked_is_no_request(kind):
    with pytest.raises(Refused, match="application/json") as problem:
        parse_json(b"{}", kind)
    assert problem.value.status == 415


@pytest.mark.parametrize("body", [b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b'"a"', b"nul"])
def test_a_body_that_is_no_object(body):
    with pytest.raises(RequestError, match=r"\[body\]"):
        parse_json(body, "application/json")


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999"])
def test_a_number_without_bounds_is_refused(number):
    with pytest.raises(RequestError, match=r"\[body\].*no finite number"):
        parse_json(b'{"metadata": {"a": [' + number + b"]}}", "application/json")
    assert parse_json(b'{"a": 1.5e-3}', "application/json") == {"a": 0.0015}


def test_a_lone_surrogate_is_repaired():
    assert parse_json(b'{"stop": "\\ud800"}', "application/json") == {"stop": "\ufffd"}


class Asked:
    """One request to an application, without a socket."""

    def __init__(self, app, method="GET", path="/v1/models", **headers):
        self.sent = []
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
        }
        asyncio.run(app(scope, self._receive, self._send))
        self.status = self.sent[0]["status"]
        self.headers = {k.decode(): v.decode() for k, v in self.sent[0]["headers"]}

    async def _receive(self):
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message):
        self.sent.append(message)


@pytest.fixture(scope="module")
def gate():
    async def models(request):
        return PlainTextResponse("ok")

    counted = []

    def refuse(path, problem):
        return PlainTextResponse(str(problem), problem.status)

    app = Gate(
        Starlette(routes=[Route("/v1/models", models)]),
        Limits(api_key="k"),
        refuse,
        lambda *each: counted.append(each),
    )
    app.counted = counted
    return app


def test_a_preflight_of_a_local_page_is_answered_without_a_key(gate):
    asked = Asked(
        gate,
        "OPTIONS",
        host="localhost",
        origin="http://localhost:3000",
        access_control_request_headers="authorization, x-odd",
    )
    assert asked.status == 204
    assert asked.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert asked.headers["access-control-allow-headers"] == "authorization, x-odd"
    assert asked.headers["access-control-allow-private-network"] == "true"


def test_a_foreign_page_gets_neither_answer_nor_headers(gate):
    asked = Asked(gate, "OPTIONS", host="localhost", origin="https://evil.example")
    assert asked.status == 403
    assert "access-control-allow-origin" not in asked.headers


def test_every_answer_is_counted(gate):
    gate.counted.clear()
    Asked(gate, host="localhost")
    Asked(gate, host="localhost", x_api_key="k")
    assert gate.counted == [("/v1/models", 401), ("/v1/models", 200)]
