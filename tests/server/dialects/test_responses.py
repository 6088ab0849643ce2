"""Responses: the official client reads the answer, and every stream ends as Codex wants it."""

import json
from contextlib import contextmanager

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from support.answer_events import FULL, META, SCORES, TEXT, USAGE, written
from support.canned import Canned, canned
from support.event_stream import sent

from hlwq_mlx.dialog.messages import normalize_messages
from hlwq_mlx.errors import BusyError, CheckpointError, ContextError, RequestError
from hlwq_mlx.server.dialects import responses
from hlwq_mlx.server.dialects.dialect import Dialect
from hlwq_mlx.server.events import Begun, Call, Content, Done, Failed, Thought, Waiting, join

DIALECT: Dialect = responses
ASKED = {"model": "m", "input": "Hello"}
CUSTOM = {"type": "custom", "name": "apply_patch", "description": "Edit files."}
SPACE = {
    "type": "namespace",
    "name": "agents",
    "description": "",
    "tools": [{"type": "function", "name": "close", "parameters": {"type": "object"}}],
}
REASONING = ("output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta")
REASONED = ("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done")
CALLED = ("output_item.added", "{}.delta", "{}.done", "output_item.done")


def streamed(events, **body):
    """Return the events of a stream, each of the client's own type."""
    found = sent(written(DIALECT, DIALECT.read(ASKED | body), events))
    types = TypeAdapter(ResponseStreamEvent)
    for event in found:
        types.validate_python(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def told(events, **body):
    """Return a whole answer."""
    return DIALECT.whole(DIALECT.read(ASKED | body), [join(events)], META)


@contextmanager
def asking(content, kind="text/event-stream", status=200):
    with (
        canned(Canned(content, kind, status)) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        yield client


def final(events, **body):
    """Return the response that the client makes of a stream."""
    stream = written(DIALECT, DIALECT.read(ASKED | body), events)
    with asking(stream) as client, client.responses.stream(**ASKED) as received:
        return received.get_final_response()


def test_a_stream_has_its_events_in_order():
    types = [event["type"].removeprefix("response.") for event in streamed(FULL)]
    assert types == [
        *("created", "in_progress"),
        *REASONING,
        "in_progress",  # a sign of life
        *REASONED,
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *(name.format("function_call_arguments") for name in CALLED * 2),
        "completed",
    ]


def test_signs_of_life_are_events():
    types = [event["type"] for event in streamed([Waiting(), Waiting(), *TEXT])]
    assert types[:3] == ["response.created", *["response.in_progress"] * 2]
    begun = streamed(TEXT)
    assert [event["type"] for event in begun[:3]] == [*types[:2], "response.output_item.added"]


def test_the_client_reads_a_stream_as_it_reads_the_whole():
    with asking(json.dumps(told(FULL)).encode(), "application/json") as client:
        whole = client.responses.create(**ASKED)
    response = final(FULL)
    assert response.output_text == whole.output_text == "Héllo"
    assert [item.type for item in response.output] == [
        *("reasoning", "message", "function_call", "function_call")
    ]
    call = response.output[2]
    assert (call.call_id, call.name, call.status) == ("call_a", "now", "completed")
    assert json.loads(call.arguments) == {"zone": "Wien", "at": [1, None]}
    assert [item.id for item in response.output] == [item.id for item in whole.output]
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (9, 5, 14)
    assert usage.input_tokens_details.cached_tokens == 4
    assert usage.output_tokens_details.reasoning_tokens == 1
    last = streamed(FULL)[-1]["response"]
    assert last == told(FULL)
    Response.model_validate(last, strict=True)


def test_items_follow_the_model():
    events = [Thought("a"), Content("b"), Thought("c"), Call(0, "i", "f", {}), Done("stop", USAGE)]
    output = streamed(events)[-1]["response"]["output"]
    assert [item["type"] for item in output] == [
        *("reasoning", "message", "reasoning", "function_call")
    ]
    assert len({item["id"] for item in output}) == 4


def test_the_end_by_length_is_incomplete():
    last = streamed([Begun(9, 4), Content("x"), Done("length", USAGE)])[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"
    assert last["response"]["usage"]["total_tokens"] == 14


@pytest.mark.parametrize(
    ("problem", "status", "code"),
    [
        (CheckpointError("[engine] failed."), 500, "server_error"),
        (BusyError("[queue] full.", 2), 429, "rate_limit_exceeded"),
        (ContextError(9000, 4096), 400, "context_length_exceeded"),
    ],
)
def test_a_failure_is_the_last_event(problem, status, code):
    for before in ([], [Begun(9, 4), Content("Hi")]):
        stream = written(DIALECT, DIALECT.read(ASKED), [*before, Failed(problem, status)])
        first, *_, last = sent(stream)
        assert (first["type"], last["type"]) == ("response.created", "response.failed")
        error = last["response"]["error"]
        assert (error["code"], error["message"]) == (code, str(problem))
        assert last["response"]["status"] == "failed"


def test_scores_are_told_where_they_are_wanted():
    delta = next(each for each in streamed(TEXT) if each["type"].endswith("text.delta"))
    score, *_ = delta["logprobs"]
    assert (score["token"], score["logprob"]) == ("Hé", -0.25)
    assert score["top_logprobs"][1] == {"token": "\ufffd", "logprob": -2, "bytes": [0xF0]}
    part = told(TEXT)["output"][0]["content"][0]
    assert len(part["logprobs"]) == len(SCORES)
    assert DIALECT.read(ASKED).logprobs is None
    assert DIALECT.read(ASKED | {"include": [responses.SCORES]}).logprobs == 0
    assert DIALECT.read(ASKED | {"top_logprobs": 3}).logprobs == 3


def test_a_custom_tool_takes_text():
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}
    tools = [CUSTOM | {"format": grammar}]
    function = DIALECT.read(ASKED | {"tools": tools}).tools[0]["function"]
    assert function["parameters"]["required"] == ["input"]
    assert function["description"] == (
        'Edit files.\n\nThe input must follow this grammar:\nstart: "x"'
    )
    patch = "*** Begin Patch\n+é"
    events = [Call(0, "call_a", "apply_patch", {"input": patch}), Done("tool_calls", USAGE)]
    found = streamed(events, tools=tools)
    assert [event["type"].removeprefix("response.") for event in found[2:]] == [
        *(name.format("custom_tool_call_input") for name in CALLED),
        "completed",
    ]
    assert (found[3]["delta"], found[4]["input"]) == (patch, patch)
    item = final(events, tools=tools).output[0]
    assert (item.type, item.call_id, item.name, item.input) == (
        *("custom_tool_call", "call_a", "apply_patch", patch),
    )


@pytest.mark.parametrize("arguments", [{"patch": "x"}, {"input": 5}, {"input": "x", "more": 1}])
def test_no_argument_of_a_custom_tool_is_lost(arguments):
    events = [Call(0, "call_a", "apply_patch", arguments), Done("tool_calls", USAGE)]
    item = streamed(events, tools=[CUSTOM])[-1]["response"]["output"][0]
    assert json.loads(item["input"]) == arguments


def test_a_name_space_is_flat_for_the_model_alone():
    tools = DIALECT.read(ASKED | {"tools": [SPACE]}).tools
    assert [tool["function"]["name"] for tool in tools] == ["agents.close"]
    events = [Call(0, "call_a", "agents.close", {"id": "x"}), Done("tool_calls", USAGE)]
    item = final(events, tools=[SPACE]).output[0].to_dict()
    assert (item["name"], item["namespace"]) == ("close", "agents")
    history = [item, {"type": "function_call_output", "call_id": "call_a", "output": "ok"}]
    _, result = normalize_messages(DIALECT.read(ASKED | {"input": history}).messages)
    assert result["name"] == "agents.close"


def test_what_was_streamed_is_history_that_dialog_takes():
    events = [
        *FULL[:-1],
        Call(2, "call_c", "apply_patch", {"input": "+x"}),
        Done("tool_calls", USAGE),
    ]
    output = [item.to_dict() for item in final(events, tools=[CUSTOM]).output]
    results = [
        {"type": "function_call_output", "call_id": "call_a", "output": "noon"},
        {
            "type": "function_call_output",
            "call_id": "call_b",
            "output": [{"type": "input_text", "text": "none"}],
        },
        {"type": "custom_tool_call_output", "call_id": "call_c", "output": "done"},
    ]
    items = [{"role": "user", "content": "Hello"}, *output, *results]
    request = DIALECT.read({"input": items, "tools": [CUSTOM]})
    _, answer, *tools = normalize_messages(request.messages)
    assert (answer["reasoning_content"], answer["content"]) == ("hm", "Héllo")
    assert [each["function"]["arguments"] for each in answer["tool_calls"]] == [
        *({"zone": "Wien", "at": [1, None]}, {}, {"input": "+x"})
    ]
    assert [tool["content"] for tool in tools] == ["noon", "none", "done"]


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (400, openai.BadRequestError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
def test_an_error_is_raised_by_the_client(status, raised):
    error = DIALECT.error(RequestError("[input] needed x, got y. Do z."), status)
    with asking(json.dumps(error).encode(), "application/json", status) as client:
        with pytest.raises(raised, match="Do z") as caught:
            client.responses.create(**ASKED)
        assert caught.value.param == "input"
