"""Ollama's chat: requests of Home Assistant are read, and the official client reads answers."""

import json
import math
from contextlib import contextmanager

import ollama
import pytest
from support.answer_events import FULL, META, SCORES, TEXT, USAGE, written
from support.canned import Canned, canned

from hlwq_mlx.dialog.messages import normalize_messages
from hlwq_mlx.errors import BusyError, RequestError
from hlwq_mlx.server.dialects import ollama_chat
from hlwq_mlx.server.dialects.dialect import Dialect
from hlwq_mlx.server.events import Begun, Content, Done, Failed, Usage, join
from hlwq_mlx.server.request import ChatRequest, Penalties

DIALECT: Dialect = ollama_chat
USER = {"role": "user", "content": "Hi"}
TIMES = Usage(9, 4, 5, 1, load_s=1.0, prompt_s=2.0, answer_s=3.5)


def read(*messages, **body):
    return DIALECT.read({"model": "m", "messages": list(messages) or [USER], **body})


def lines(events):
    return [
        json.loads(line) for line in written(DIALECT, ChatRequest(), events).decode().splitlines()
    ]


@contextmanager
def asking(content, kind="application/x-ndjson", status=200):
    with canned(Canned(content, kind, status)) as url:
        client = ollama.Client(host=url)
        try:
            yield client
        finally:
            client._client.close()


def streamed(events):
    """Return the answers that the client makes of a stream."""
    with asking(written(DIALECT, ChatRequest(), events)) as client:
        return list(client.chat("m", [USER], stream=True))


def told(events):
    """Return the answer that the client makes of a whole one."""
    whole = DIALECT.whole(ChatRequest(), [join(events)], META)
    with asking(json.dumps(whole).encode(), "application/json") as client:
        return client.chat("m", [USER])


def test_a_stream_has_its_lines_in_order():
    found = lines([*FULL[:-1], Done("tool_calls", TIMES)])
    for line in found:
        assert (line["model"], line["created_at"]) == ("gemma", "2026-09-21T14:13:20.700000Z")
        assert line["message"]["role"] == "assistant"
    messages = [{**line["message"]} for line in found]
    for message in messages:
        del message["role"]
    function = {"index": 0, "name": "now", "arguments": {"zone": "Wien", "at": [1, None]}}
    assert messages == [
        {"content": ""},
        {"content": "", "thinking": "hm"},
        {"content": ""},
        {"content": "Hé"},
        {"content": "llo"},
        {"content": "", "tool_calls": [{"id": "call_a", "function": function}]},
        {
            "content": "",
            "tool_calls": [
                {"id": "call_b", "function": {"index": 1, "name": "list:all", "arguments": {}}}
            ],
        },
        {"content": ""},
    ]
    assert [line["done"] for line in found] == [False] * 7 + [True]
    del found[-1]["message"], found[-1]["model"], found[-1]["created_at"]
    assert found[-1] == {
        "done": True,
        "done_reason": "stop",
        "total_duration": 6_500_000_000,
        "load_duration": 1_000_000_000,
        "prompt_eval_count": 9,
        "prompt_eval_duration": 2_000_000_000,
        "eval_count": 5,
        "eval_duration": 3_500_000_000,
    }


def test_the_client_reads_a_stream_as_it_reads_the_whole():
    whole = told(FULL)
    pieces = streamed(FULL)
    assert "".join(piece.message.content for piece in pieces) == whole.message.content == "Héllo"
    thoughts = [piece.message.thinking for piece in pieces if piece.message.thinking]
    assert "".join(thoughts) == whole.message.thinking == "hm"
    calls = [call for piece in pieces for call in piece.message.tool_calls or []]
    assert calls == whole.message.tool_calls
    assert calls[0].function.arguments == {"zone": "Wien", "at": [1, None]}
    assert pieces[-1].eval_count == whole.eval_count == 5
    assert (whole.done, whole.done_reason) == (True, "stop")
    assert told(TEXT).message.tool_calls is None


def test_the_end_by_length_is_told():
    events = [Begun(9, 4), Content("x"), Done("length", USAGE)]
    assert streamed(events)[-1].done_reason == told(events).done_reason == "length"


def test_a_failure_within_a_stream_is_raised_by_the_client():
    events = [Begun(9, 4), Content("Hi"), Failed(BusyError("[queue] full.", 2), 429)]
    assert lines(events)[-1] == {"error": "[queue] full."}
    with pytest.raises(ollama.ResponseError, match="queue"):
        streamed(events)


def test_an_error_is_raised_by_the_client():
    error = DIALECT.error(RequestError("[messages] needed x, got y. Do z."), 400)
    with asking(json.dumps(error).encode(), "application/json", 400) as client:
        with pytest.raises(ollama.ResponseError, match="Do z") as caught:
            client.chat("m", [USER])
        assert caught.value.status_code == 400


def test_scores_are_told_where_they_are_wanted():
    assert streamed(TEXT)[0].logprobs[0].token == "Hé"
    assert len(told(TEXT).logprobs) == len(SCORES)
    assert read(logprobs=True, top_logprobs=3).logprobs == 3
    assert read(top_logprobs=3).logprobs is None


def test_what_was_streamed_is_history_that_dialog_takes():
    pieces = [piece.message for piece in streamed(FULL)]
    history = [message.model_dump(exclude_none=True) for message in pieces]
    results = [
        {"role": "tool", "tool_name": "now", "content": "noon"},
        {"role": "tool", "tool_name": "list:all", "content": "none"},
    ]
    _, answer, *tools = normalize_messages(read(USER, *history, *results).messages)
    assert (answer["reasoning_content"], answer["content"]) == ("hm", "Héllo")
    assert [call["function"]["arguments"] for call in answer["tool_calls"]] == [
        *({"zone": "Wien", "at": [1, None]}, {})
    ]
    assert [(tool["name"], tool["content"]) for tool in tools] == [
        ("now", "noon"),
        ("list:all", "none"),
    ]


def test_a_request_of_home_assistant_is_read():
    tool = {"type": "function", "function": {"name": "HassTurnOn", "parameters": {}}}
    request = read(
        {"role": "system", "content": "You control a home.", "images": None},
        USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "HassTurnOn", "arguments": {"name": "lamp"}}}],
        },
        {"role": "tool", "content": '{"success": true}', "tool_name": "HassTurnOn"},
        tools=[tool],
        stream=True,
        think=False,
        keep_alive="-1",
        options={"num_ctx": 8192},
        format=None,
    )
    roles = [each["role"] for each in normalize_messages(request.messages)]
    assert roles == ["system", "user", "assistant", "tool"]
    assert (request.thinking, request.keep_alive_s, request.tools) == (False, math.inf, [tool])


def test_arguments_may_be_text_and_must_be_an_object():
    def called(arguments):
        call = {"function": {"name": "f", "arguments": arguments}}
        return normalize_messages(read(USER, {"role": "assistant", "tool_calls": [call]}).messages)

    assert called('{"a": [1]}')[1]["tool_calls"][0]["function"]["arguments"] == {"a": [1]}
    with pytest.raises(RequestError, match=r"\[messages\[1\].tool_calls\[0\].function.arguments\]"):
        called([1])


def test_pictures_are_parts():
    content = read(USER | {"images": ["AAAA", "data:image/png;base64,AA"]}).messages[0]["content"]
    assert content == [
        {"type": "image", "base64": "AAAA"},
        {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64,AA", "detail": None},
        },
        {"type": "text", "text": "Hi"},
    ]
    first, *_ = normalize_messages(read(USER | {"images": ["AAAA"]}).messages)[0]["content"]
    assert first.source == "data:;base64,AAAA"


def test_options_are_read():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    request = read(
        format=schema,
        options={
            "temperature": 0.5,
            "top_k": 40,
            "top_p": 0.9,
            "min_p": 0.1,
            "seed": 7,
            "num_predict": 5,
            "stop": ["END"],
            "repeat_penalty": 1.1,
            "presence_penalty": 0.2,
            "frequency_penalty": 0.3,
            "num_gpu": 1,
            "mirostat": 0,
            "repeat_last_n": 64,
        },
    )
    assert request.sampling == {"temp": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.1}
    assert request.penalties == Penalties(1.1, 0.2, 0.3)
    assert (request.seed, request.max_tokens, request.stop) == (7, 5, ["END"])
    assert (request.schema, read(format="json").schema, read(format="").schema) == (
        *(schema, {}, None),
    )
    assert read(options={"stop": "END", "seed": -1}).stop == ["END"]
    assert [read(options={"num_predict": each}).max_tokens for each in (-1, -2, 0)] == [None] * 3


@pytest.mark.parametrize(
    ("think", "thinking"),
    [(None, None), (True, True), (False, False), *((level, True) for level in ("low", "high"))],
)
def test_thinking_is_chosen(think, thinking):
    assert read(think=think).thinking is thinking


@pytest.mark.parametrize(
    ("stated", "seconds"),
    [
        (None, None),
        ("", None),
        (0, 0),
        ("0", 0),
        (-1, math.inf),
        ("-1m", math.inf),
        (300, 300),
        (1.5, 1.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("300s", 300),
    ],
)
def test_how_long_the_model_is_kept(stated, seconds):
    assert read(keep_alive=stated).keep_alive_s == seconds


def test_streams_are_what_is_asked_for_unless_refused():
    assert read().is_streamed
    assert not read(stream=False).is_streamed


@pytest.mark.parametrize(
    ("keep_alive", "reason"), [(None, "load"), ("5m", "load"), (0, "unload"), ("0s", "unload")]
)
def test_a_request_without_messages_only_loads(keep_alive, reason):
    for body in ({}, {"messages": None}, {"messages": []}):
        request = DIALECT.read({"model": "m", "keep_alive": keep_alive, **body})
        assert ollama_chat.only_loads(request)
    answer = ollama.ChatResponse(**ollama_chat.load(request, META))
    assert (answer.done, answer.done_reason, answer.message.content) == (True, reason, "")
    assert not ollama_chat.only_loads(read(USER))


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"messages": "Hi"}, r"\[messages\]"),
        ({"messages": [{"role": "robot"}]}, r"\[messages\[0\]\.role\]"),
        ({"messages": [USER | {"content": ["x"]}]}, r"\[messages\[0\]\.content\]"),
        ({"messages": [USER | {"images": [5]}]}, r"\[messages\[0\]\.images\[0\]\]"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
            r"\[messages\[0\]\.tool_calls\[0\]\.function\.name\]",
        ),
        ({"format": "xml"}, r"\[format\] needed .json."),
        ({"think": "deep"}, r"\[think\] needed true, false, low"),
        ({"think": 1}, r"\[think\]"),
        ({"keep_alive": "soon"}, r"\[keep_alive\]"),
        ({"keep_alive": "5m!"}, r"\[keep_alive\]"),
        ({"keep_alive": True}, r"\[keep_alive\]"),
        ({"options": {"temperature": -1}}, r"\[options\.temperature\]"),
        ({"options": {"temperature": "hot"}}, r"\[options\.temperature\]"),
        ({"options": {"mirostat": 2}}, r"\[options\.mirostat\]"),
        ({"options": {"typical_p": 0.5}}, r"\[options\.typical_p\]"),
        ({"options": {"repeat_last_n": 5}}, r"\[options\.repeat_last_n\]"),
        ({"stream": "yes"}, r"\[stream\]"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(body, where):
    with pytest.raises(RequestError, match=where):
        DIALECT.read({"model": "m", "messages": [USER], **body})
