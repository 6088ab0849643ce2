"""Responses: what Codex sends is read, whatever its tools and items are."""

from dataclasses import replace

import pytest
from support.answer_events import META
from support.event_stream import sent

from hlwq_mlx.dialog.messages import normalize_messages, normalize_tools
from hlwq_mlx.errors import RequestError
from hlwq_mlx.server.dialects import responses
from hlwq_mlx.server.dialects.dialect import Dialect
from hlwq_mlx.server.events import Waiting
from hlwq_mlx.server.request import Calls, ToolChoice

DIALECT: Dialect = responses
FUNCTION = {"type": "function", "name": "run", "strict": False, "parameters": {"type": "object"}}
OTHER = FUNCTION | {"name": "wait"}
SPACE = {"type": "namespace", "name": "agents", "tools": [FUNCTION | {"name": "close"}]}
CUSTOM = {"type": "custom", "name": "apply_patch"}
USER = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}


def read(*items, **body):
    return DIALECT.read({"input": list(items) or "Hi", **body})


def message(role, *texts, kind="input_text"):
    content = [{"type": kind, "text": text} for text in texts]
    return {"type": "message", "role": role, "content": content}


def test_a_request_of_codex_is_read():
    request = read(
        message("developer", "You are a coding agent."),
        message("developer", "Skills", "Permissions"),
        message("user", "<environment_context>"),
        USER,
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "hm"}],
            "content": None,
            "encrypted_content": None,
        },
        message("assistant", "I will run it.", kind="output_text"),
        {"type": "function_call", "call_id": "a", "name": "run", "arguments": '{"cmd": "ls"}'},
        {"type": "function_call_output", "call_id": "a", "output": "x.py\n"},
        message("developer", "The sandbox has changed."),
        tools=[FUNCTION, SPACE, {"type": "web_search", "external_web_access": True}],
        tool_choice="auto",
        parallel_tool_calls=True,
        reasoning={"summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="k",
        client_metadata={"session_id": "s"},
        stream=True,
    )
    tools = normalize_tools(request.tools)
    assert [tool["function"]["name"] for tool in tools] == ["run", "agents.close"]
    assert (request.is_streamed, request.thinking, request.parallel_calls) == (True, None, True)
    assert [(each["role"], each["content"]) for each in normalize_messages(request.messages)] == [
        ("system", "You are a coding agent.\n\nSkills\nPermissions"),
        ("user", "<environment_context>"),
        ("user", "Hi"),
        ("assistant", "I will run it."),
        ("tool", "x.py\n"),
        ("user", "<system-reminder>\nThe sandbox has changed.\n</system-reminder>"),
    ]
    assert request.messages[4]["reasoning_content"] == "hm"


def test_nulls_are_absent():
    nothing = dict.fromkeys(
        [*responses.ResponsesBody.model_fields.keys() - {"input"}, *responses.UNSERVED]
    )
    item = {"type": None, "role": "user", "content": "Hi", "id": None, "status": None}
    request = read(item, **nothing)
    assert request == replace(read(), body=request.body)
    writer = DIALECT.writer(request, META)
    assert sent(writer(Waiting()))[0]["response"]["tools"] == []


def test_a_text_is_a_request():
    messages = read(instructions="Be brief.").messages
    assert [(each["role"], each["content"]) for each in messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
    ]


def test_calls_of_one_answer_stay_together_and_steps_apart():
    def call(id):
        return {"type": "function_call", "call_id": id, "name": "run", "arguments": "{}"}

    def output(id):
        return {"type": "function_call_output", "call_id": id, "output": id}

    together = read(USER, call("a"), call("b"), output("b"), output("a")).messages
    assert [each["role"] for each in together] == ["user", "assistant", "tool", "tool"]
    apart = read(USER, call("a"), output("a"), call("b"), output("b")).messages
    assert [each["role"] for each in apart] == ["user", *["assistant", "tool"] * 2]
    normalize_messages(together)
    normalize_messages(apart)


def test_every_item_that_codex_sends_is_taken():
    action = {"type": "exec", "command": ["ls"], "env": {}}
    request = read(
        USER,
        {"type": "custom_tool_call", "call_id": "a", "name": "apply_patch", "input": "+x"},
        {"type": "custom_tool_call_output", "call_id": "a", "output": "done"},
        {"type": "local_shell_call", "call_id": "b", "action": action, "status": "completed"},
        {"type": "local_shell_call_output", "id": "b", "output": "x.py"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "image_generation_call", "id": "ig_1", "result": "AA"},
        {"type": "additional_tools", "role": "developer", "tools": [CUSTOM]},
        {"role": "user", "content": "Go on"},
    )
    messages = normalize_messages(request.messages)
    calls = [call["function"] for each in messages for call in each.get("tool_calls", [])]
    assert calls == [
        {"name": "apply_patch", "arguments": {"input": "+x"}},
        {"name": "local_shell", "arguments": action},
    ]
    assert messages[-1]["content"] == "Go on"
    assert [tool["function"]["name"] for tool in request.tools] == ["apply_patch"]


def test_pictures_and_sounds_are_taken_and_their_detail_acts():
    url = "data:image/png;base64,AA"
    picture = {"type": "input_image", "image_url": url, "detail": "original"}
    sound = {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}
    asked = {"role": "user", "content": [picture, sound]}
    shown = {"type": "function_call_output", "call_id": "a", "output": [picture]}
    called = {"type": "function_call", "call_id": "a", "name": "view_image", "arguments": "{}"}
    request = read(asked, called, shown)
    assert [part["type"] for part in request.messages[0]["content"]] == [
        *("image_url", "input_audio")
    ]
    result = normalize_messages(request.messages)[2]
    assert result["content"][0].source == url
    assert request.image_tokens == 1120


@pytest.mark.parametrize(
    ("choice", "names", "expected"),
    [
        (None, ["run", "agents.close", "apply_patch"], ToolChoice()),
        ("none", ["run", "agents.close", "apply_patch"], ToolChoice(Calls.NONE)),
        ("required", ["run", "agents.close", "apply_patch"], ToolChoice(Calls.REQUIRED)),
        (
            {"type": "function", "name": "run"},
            ["run", "agents.close", "apply_patch"],
            ToolChoice(Calls.REQUIRED, "run"),
        ),
        (
            {"type": "custom", "name": "apply_patch"},
            ["run", "agents.close", "apply_patch"],
            ToolChoice(Calls.REQUIRED, "apply_patch"),
        ),
        (
            {"type": "function", "name": "close"},
            ["run", "agents.close", "apply_patch"],
            ToolChoice(Calls.REQUIRED, "agents.close"),
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "run"}, {"type": "web_search"}],
            },
            ["run"],
            ToolChoice(Calls.REQUIRED),
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [CUSTOM]},
            ["apply_patch"],
            ToolChoice(),
        ),
    ],
)
def test_a_choice_among_tools(choice, names, expected):
    request = read(tools=[FUNCTION, SPACE, CUSTOM], tool_choice=choice)
    assert [tool["function"]["name"] for tool in request.tools] == names
    assert request.tool_choice == expected


@pytest.mark.parametrize(
    "kind",
    [
        *("web_search", "local_shell", "image_generation", "file_search", "code_interpreter"),
        *("mcp", "tool_search", "computer_use_preview", "shell", "what_comes_next"),
    ],
)
def test_a_tool_of_any_type_is_accepted(kind):
    tools = read(tools=[FUNCTION, {"type": kind}]).tools
    assert [tool["function"]["name"] for tool in tools] == ["run"]


def test_options_are_read():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    request = read(
        model="m",
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=7,
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "a", "schema": schema}, "verbosity": "low"},
        reasoning={"effort": "high"},
        metadata={"a": "b"},
        user="u",
        truncation="disabled",
    )
    assert request.sampling == {"temp": 0.5, "top_p": 0.9}
    assert (request.max_tokens, request.schema, request.thinking) == (7, schema, True)
    assert not request.parallel_calls
    assert read(text={"format": {"type": "json_object"}}).schema == {}
    assert read(text={"format": {"type": "text"}}).schema is None
    assert read(reasoning={"effort": "none"}).thinking is False


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"input": None}, r"\[input\]"),
        ({"input": 5}, r"\[input\] .*list of items"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, r"\[input\[0\]\.type\] .*stored"),
        ({"input": [{"type": "compaction_trigger"}]}, r"\[input\[0\]\.type\]"),
        ({"input": [{"role": "tool", "content": "x"}]}, r"\[input\[0\]\.role\]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            r"\[input\[0\]\.content\[0\]\] .*input_file",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            r"\[input\[0\]\.content\[0\]\] .*stored elsewhere",
        ),
        ({"previous_response_id": "resp_1"}, r"\[previous_response_id\] .*Nothing is stored"),
        ({"conversation": "conv_1"}, r"\[conversation\]"),
        ({"background": True}, r"\[background\]"),
        ({"truncation": "auto"}, r"\[truncation\]"),
        ({"text": {"format": {"type": "json_schema"}}}, r"\[text\.format\.schema\]"),
        ({"text": {"format": {"type": "grammar"}}}, r"\[text\.format\.type\]"),
        ({"max_output_tokens": 0}, r"\[max_output_tokens\]"),
        ({"tools": [{"type": "function"}]}, r"\[tools\[0\]\.name\]"),
        ({"tools": [{"type": "namespace", "name": "a", "tools": 1}]}, r"\[tools\[0\]\.tools\]"),
        ({"tool_choice": "required"}, "tool"),
        ({"tool_choice": {"type": "web_search"}}, r"\[tool_choice\] .*web_search"),
        ({"tool_choice": {"type": "function", "name": "g"}}, r"\[tool_choice\] .*none is offered"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(body, where):
    with pytest.raises(RequestError, match=where):
        DIALECT.read({"input": "Hi", **body})
