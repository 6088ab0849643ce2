"""Anthropic's dialect: what Claude Code sends is read, and the official client reads the answer."""

import json
from contextlib import contextmanager

import anthropic as client
import pytest
from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter
from support.answer_events import FULL, META, USAGE, written
from support.canned import Canned, canned
from support.event_stream import sent

from hlwq_mlx.dialog.messages import normalize_messages, normalize_tools
from hlwq_mlx.errors import BusyError, ContextError, DeviceError, RequestError
from hlwq_mlx.server.dialects import anthropic
from hlwq_mlx.server.dialects.dialect import Dialect
from hlwq_mlx.server.events import Begun, Content, Done, Failed, Thought, join
from hlwq_mlx.server.request import Calls, ChatRequest, ToolChoice

DIALECT: Dialect = anthropic

ASKED = {"role": "user", "content": "Hello"}
BODY = {"model": "m", "max_tokens": 9, "messages": [ASKED]}
NESTED = {"zone": "Wien", "at": [1, None]}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": None}}


def text(said):
    return {"type": "text", "text": said}


def used(id, name="f", **arguments):
    return {"type": "tool_use", "id": id, "name": name, "input": arguments}


def result(id, content, **others):
    return {"type": "tool_result", "tool_use_id": id, "content": content, **others}


def messages(*turns, **body):
    """Return the messages that turns become, which dialog must take."""
    read = DIALECT.read({**BODY, **body, "messages": list(turns)}).messages
    normalize_messages(read)
    return read


@contextmanager
def asking(content, kind="text/event-stream", status=200):
    with (
        canned(Canned(content, kind, status)) as url,
        client.Anthropic(base_url=url, api_key="none", max_retries=0) as asked,
    ):
        yield asked


def told(events):
    """Return the bytes of a whole answer."""
    return json.dumps(DIALECT.whole(ChatRequest(), [join(events)], META)).encode()


def streamed(events):
    """Return the message that the client makes of a stream."""
    stream = written(DIALECT, ChatRequest(), events)
    with asking(stream) as asked, asked.messages.stream(**BODY) as events:
        return events.get_final_message()


def test_a_stream_has_its_events_in_order():
    events = sent(written(DIALECT, ChatRequest(), FULL))
    assert [event["type"].removeprefix("content_") for event in events] == [
        *("ping", "message_start", "ping"),
        *("block_start", "block_delta", "ping", "block_delta", "block_stop"),
        *("block_start", "block_delta", "block_delta", "block_stop"),
        *("block_start", "block_delta", "block_delta", "block_stop") * 2,
        *("message_delta", "message_stop"),
    ]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert deltas[1] == {"type": "signature_delta", "signature": anthropic.SIGNATURE}
    assert deltas[4] == {"type": "input_json_delta", "partial_json": ""}
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [start["index"] for start in starts] == [0, 1, 2, 3]
    assert starts[2]["content_block"] == used("call_a", "now")
    assert events[1]["message"]["usage"]["input_tokens"] == 9 - 4
    types = TypeAdapter(RawMessageStreamEvent)
    for event in events:
        if event["type"] != "ping":
            types.validate_python(event)


def test_the_client_reads_a_stream_as_it_reads_the_whole():
    with asking(told(FULL), "application/json") as asked:
        whole = asked.messages.create(**BODY)
    message = streamed(FULL)
    assert [block.to_dict() for block in message.content] == [
        {"type": "thinking", "thinking": "hm", "signature": anthropic.SIGNATURE},
        text("Héllo"),
        used("call_a", "now", **NESTED),
        used("call_b", "list:all"),
    ]
    assert message.to_dict() == whole.to_dict()
    assert (message.stop_reason, message.stop_sequence) == ("tool_use", None)
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (5, 4, 5)


def test_what_was_streamed_is_history_that_dialog_takes():
    answer = streamed(FULL).to_dict()
    results = [result("call_a", "done"), result("call_b", [text("12:00")])]
    answered = {"role": "assistant", "content": answer["content"]}
    read = messages(ASKED, answered, {"role": "user", "content": results})
    _, told, *tools = normalize_messages(read)
    assert (told["reasoning_content"], told["content"]) == ("hm", "Héllo")
    assert told["tool_calls"][0]["function"] == {"name": "now", "arguments": NESTED}
    assert [(tool["name"], tool["content"]) for tool in tools] == [
        ("now", "done"),
        ("list:all", "12:00"),
    ]


def test_blocks_alternate_as_the_model_does():
    events = [Begun(1, 0), Thought("a"), Content("b"), Thought("c"), Done("stop", USAGE)]
    blocks = streamed(events).content
    assert [block.type for block in blocks] == ["thinking", "text", "thinking"]


@pytest.mark.parametrize(
    ("done", "reason"),
    [
        (Done("stop", USAGE), "end_turn"),
        (Done("stop", USAGE, "END"), "stop_sequence"),
        (Done("length", USAGE), "max_tokens"),
        (Done("tool_calls", USAGE), "tool_use"),
    ],
)
def test_why_an_answer_ended(done, reason):
    message = streamed([Begun(9, 4), Content("x"), done])
    assert (message.stop_reason, message.stop_sequence) == (reason, done.stop)
    assert json.loads(told([done]))["stop_reason"] == reason


def test_a_failure_within_a_stream_is_raised_by_the_client():
    failed = Failed(DeviceError("[engine] needed memory, got none. Wait."), 529)
    events = [Begun(9, 4), Content("Hi"), failed]
    assert sent(written(DIALECT, ChatRequest(), events))[-1]["error"]["type"] == "overloaded_error"
    with pytest.raises(client.APIStatusError, match="needed memory"):
        streamed(events)


@pytest.mark.parametrize(
    ("status", "kind", "raised"),
    [
        (400, "invalid_request_error", client.BadRequestError),
        (401, "authentication_error", client.AuthenticationError),
        (403, "permission_error", client.PermissionDeniedError),
        (404, "not_found_error", client.NotFoundError),
        (413, "request_too_large", client.APIStatusError),
        (429, "rate_limit_error", client.RateLimitError),
        (500, "api_error", client.InternalServerError),
        (503, "overloaded_error", client.InternalServerError),
        (529, "overloaded_error", client.InternalServerError),
    ],
)
def test_an_error_has_the_type_of_its_status(status, kind, raised):
    body = DIALECT.error(RequestError("[model] needed x, got y. Do z."), status)
    assert body["error"] == {"type": kind, "message": "[model] needed x, got y. Do z."}
    assert body["request_id"].startswith("req_")
    with (
        asking(json.dumps(body).encode(), "application/json", status) as asked,
        pytest.raises(raised, match="Do z"),
    ):
        asked.messages.create(**BODY)


def test_claude_code_is_told_in_its_words_that_a_prompt_is_too_long():
    message = DIALECT.error(ContextError(9000, 4096), 400)["error"]["message"]
    assert message.startswith("prompt is too long: 9000 tokens > 4096 maximum. [prompt] needed")
    assert DIALECT.error(BusyError("[queue] full", 2), 429)["error"]["message"] == "[queue] full"


def test_tokens_are_counted_of_a_request_without_a_limit():
    assert DIALECT.read({"model": "m", "messages": [ASKED]}).max_tokens is None
    assert anthropic.count(9) == {"input_tokens": 9}


def test_a_request_of_claude_code_is_read():
    body = {
        "model": "claude-local",
        "max_tokens": 32000,
        "stream": True,
        "thinking": {"type": "adaptive"},
        "metadata": {"user_id": "{}"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "tools": [{**TOOL, "name": "Bash", "cache_control": {"type": "ephemeral"}}],
        "system": [
            text("x-anthropic-billing-header: cc_version=2.1; cch=abcde;"),
            {**text("You are an agent."), "cache_control": {"type": "ephemeral"}},
            text("\nBe brief."),
        ],
        "messages": [
            {"role": "user", "content": [text("<system-reminder>x</system-reminder>"), text("Hi")]},
            {"role": "system", "content": "Agents: none"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I think.", "signature": "foreign"},
                    text("Well."),
                    used("toolu_0", "Bash", command="echo"),
                    used("toolu_1", "Bash", command="false"),
                ],
            },
            {
                "role": "user",
                "content": [
                    result("toolu_0", "hi", is_error=False),
                    result("toolu_1", "Exit code 1", is_error=True),
                    {**text("Go on"), "cache_control": {"type": "ephemeral"}},
                ],
            },
        ],
    }
    request = DIALECT.read(body)
    assert (request.thinking, request.is_streamed, request.max_tokens) == (True, True, 32000)
    assert [each["function"]["name"] for each in normalize_tools(request.tools)] == ["Bash"]
    assert [(each["role"], each["content"]) for each in request.messages] == [
        ("system", "You are an agent."),
        ("system", "\nBe brief."),
        ("user", "<system-reminder>\nAgents: none\n</system-reminder>"),
        ("user", "<system-reminder>x</system-reminder>\nHi"),
        ("assistant", "Well."),
        ("tool", "hi"),
        ("tool", {"error": "Exit code 1"}),
        ("user", "Go on"),
    ]
    responses = normalize_messages(request.messages)[3]["tool_responses"]
    assert [each["response"] for each in responses] == [{"value": "hi"}, {"error": "Exit code 1"}]


def test_the_changing_line_of_claude_code_changes_nothing():
    def read(line):
        return messages(ASKED, system=[text(f"x-anthropic-billing-header: {line}"), text("Be.")])

    assert read("cch=11111;") == read("cch=22222;") == messages(ASKED, system="Be.")
    joined = messages(ASKED, system="x-anthropic-billing-header: cch=1;\nBe.")
    assert joined == messages(ASKED, system="Be.")


def test_results_come_before_what_the_user_says_with_them():
    called = {"role": "assistant", "content": [used("a"), used("b")]}
    turn = {"role": "user", "content": [text("Look:"), result("a", [text("x"), PICTURE])]}
    late = {"role": "user", "content": [result("b", None), PICTURE]}
    read = messages(ASKED, called, turn, late)
    assert [each["role"] for each in read] == ["user", "assistant", "tool", "tool", "user"]
    assert read[2]["content"] == [{"type": "text", "text": "x"}, PART]
    assert (read[3]["content"], read[4]["content"]) == ("", [text("Look:"), PART])


def test_an_error_with_a_picture_says_so_and_keeps_it():
    called = {"role": "assistant", "content": [used("a")]}
    turn = {"role": "user", "content": [result("a", [PICTURE], is_error=True)]}
    assert messages(ASKED, called, turn)[2]["content"] == [text("The tool failed:"), PART]


def test_thoughts_of_others_and_pictures_by_address_are_taken():
    hidden = [{"type": "redacted_thinking", "data": "AAAA"}, text("Yes")]
    url = {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}
    _, answer, asked = messages(
        ASKED, {"role": "assistant", "content": hidden}, {"role": "user", "content": [url]}
    )
    assert answer == {"role": "assistant", "content": "Yes"}
    assert asked["content"][0]["image_url"]["url"] == "https://a/b.png"


def test_a_last_answer_is_to_be_continued():
    begun = messages(ASKED, {"role": "assistant", "content": "The answer is ("})
    assert begun[-1] == {"role": "assistant", "content": "The answer is ("}


@pytest.mark.parametrize(
    ("stated", "choice"),
    [
        (None, ToolChoice()),
        ({"type": "auto"}, ToolChoice()),
        ({"type": "any"}, ToolChoice(Calls.REQUIRED)),
        ({"type": "none"}, ToolChoice(Calls.NONE)),
        ({"type": "tool", "name": "f"}, ToolChoice(Calls.REQUIRED, "f")),
    ],
)
def test_a_choice_among_tools(stated, choice):
    request = DIALECT.read({**BODY, "tools": [TOOL], "tool_choice": stated})
    assert (request.tool_choice, request.parallel_calls) == (choice, True)
    if stated:
        alone = {**stated, "disable_parallel_tool_use": True}
        assert not DIALECT.read({**BODY, "tools": [TOOL], "tool_choice": alone}).parallel_calls


def test_nulls_are_absent():
    nothing = dict.fromkeys(anthropic.MessagesBody.model_fields.keys() - {"messages"})
    turn = {"role": "assistant", "content": None}
    assert DIALECT.read({**nothing, "messages": [ASKED, turn]}).messages == [
        ASKED,
        {"role": "assistant", "content": ""},
    ]


def test_options_are_read():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    request = DIALECT.read(
        BODY
        | {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "stop_sequences": ["END"], "user": 1}
        | {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
        | {"thinking": {"type": "enabled", "budget_tokens": 2000}, "service_tier": "auto"}
    )
    assert request.sampling == {"temp": 0.5, "top_p": 0.9, "top_k": 40}
    assert (request.stop, request.schema, request.thinking) == (["END"], schema, True)
    assert DIALECT.read(BODY | {"top_k": -1}).sampling == {"top_k": 0}
    assert DIALECT.read(BODY | {"thinking": {"type": "disabled"}}).thinking is False
    assert DIALECT.read(BODY).thinking is False  # who does not ask gets no such blocks


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"messages": []}, r"\[messages\]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"\[messages\[0\]\.role\]"),
        ({"messages": [{"role": "user", "content": 5}]}, r"\[messages\[0\]\.content\]"),
        (
            {"messages": [{"role": "user", "content": [text("a"), {"type": "document"}]}]},
            r"\[messages\[0\]\.content\[1\]\.type\] .*document.*pictures of its pages",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            r"\[messages\[0\]\.content\[0\]\.source\]",
        ),
        (
            {"messages": [ASKED, {"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
            r"\[messages\[1\]\.content\[0\]\.type\] .*server_tool_use",
        ),
        ({"max_tokens": 0}, r"\[max_tokens\]"),
        ({"thinking": {"type": "much"}}, r"\[thinking\.type\]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [{"name": "f"}]}, r"\[tools\[0\]\.input_schema\]"),
        ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [TOOL]}, r"\[tool_choice\] .*g"),
        ({"tool_choice": {"type": "any"}}, "tool"),
        ({"container": "c"}, r"\[container\]"),
        ({"mcp_servers": [{"url": "https://a"}]}, r"\[mcp_servers\]"),
        ({"output_config": {"format": {"type": "grammar"}}}, r"\[output_config\.format\.type\]"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(body, where):
    with pytest.raises(RequestError, match=where):
        DIALECT.read({**BODY, **body})
