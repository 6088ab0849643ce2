"""Messages repaired into what templates take, or refused with the place named."""

import copy
import json
import re

import pytest

from hlwq_mlx.dialog.messages import normalize_messages, normalize_tools
from hlwq_mlx.dialog.parts import Medium
from hlwq_mlx.errors import RequestError

HI = {"role": "user", "content": "Hi"}


def asked(*names, ids=True):
    calls = [
        {"function": {"name": name, "arguments": {}}} | ({"id": f"c{at}"} if ids else {})
        for at, name in enumerate(names)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(content="r", **more):
    return {"role": "tool", "content": content, **more}


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def test_what_is_given_stays_as_it_is():
    messages = [HI, asked("f"), result({"a": 1}), {"role": "assistant", "content": "A"}]
    before = copy.deepcopy(messages)
    normalize_messages(messages)
    assert messages == before


@pytest.mark.parametrize("content", [None, [], ""])
def test_an_absent_content_is_empty(content):
    assert normalize_messages([{"role": "assistant", "content": content}])[0]["content"] == ""
    assert normalize_messages([{"role": "user"}])[0]["content"] == ""


def test_parts_become_texts_and_media():
    parts = [IMAGE, {"type": "text", "text": " a "}, "bare"]
    (message,) = normalize_messages([{"role": "user", "content": parts}])
    assert message["content"] == [
        Medium("image", "data:,"),
        {"type": "text", "text": " a "},
        {"type": "text", "text": "bare"},
    ]


def test_instructions_become_plain_text():
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = normalize_messages([{"role": "developer", "content": content}, HI])
    assert messages[0] == {"role": "system", "content": "a\nb"}


def test_instructions_in_several_messages_become_one():
    messages = [{"role": role, "content": role} for role in ("system", "developer")]
    assert normalize_messages([*messages, HI]) == [
        {"role": "system", "content": "system\n\ndeveloper"},
        HI,
    ]
    with pytest.raises(RequestError, match=r"^\[messages\[2\]\.role\] needed instructions in the"):
        normalize_messages([messages[0], HI, messages[1]])


def test_an_error_is_short_whatever_was_sent():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for wrong in (deep, {"role": "user", "content": 7, "more": deep}, "long " * 100_000):
        with pytest.raises(RequestError) as refused:
            normalize_messages([wrong])
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ({"a": 1}, {"a": 1}),
        ('{"a": [1]}', {"a": [1]}),
        ("", {}),
        (" ", {}),
        ("null", {}),
        (None, {}),
    ],
)
def test_arguments_become_an_object(given, arguments):
    calls = [{"id": "x", "type": "function", "function": {"name": "f", "arguments": given}}]
    messages = normalize_messages([HI, {"role": "assistant", "tool_calls": calls}])
    assert messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": arguments}


def test_a_call_without_its_wrapping_and_id():
    calls = [{"name": "f", "arguments": "{}"}]
    message = normalize_messages([{"role": "assistant", "tool_calls": calls}])[0]
    assert message["tool_calls"] == [
        {"id": "call_0_0", "type": "function", "function": {"name": "f", "arguments": {}}}
    ]


@pytest.mark.parametrize("calls", [None, []])
def test_no_calls_are_no_calls(calls):
    message = normalize_messages([{"role": "assistant", "content": "A", "tool_calls": calls}])[0]
    assert "tool_calls" not in message


def test_reasoning_is_kept():
    message = {"role": "assistant", "content": "A", "reasoning_content": "Hm"}
    assert normalize_messages([HI, message])[1] == message


@pytest.mark.parametrize(
    ("message", "results", "paired"),
    [
        (asked("f"), [result()], [("c0", "f")]),
        (asked("f", ids=False), [result()], [("call_1_0", "f")]),
        (asked("f", "g"), [result(name="g"), result()], [("c1", "g"), ("c0", "f")]),
        (asked("f", "f"), [result(), result()], [("c0", "f"), ("c1", "f")]),
        (asked("f", "g"), [result(tool_call_id="c1"), result()], [("c1", "g"), ("c0", "f")]),
        (
            asked("f", "g"),
            [result(tool_name="f"), result(tool_name="g")],
            [("c0", "f"), ("c1", "g")],
        ),
        (asked("f"), [result(tool_call_id="c0", name="other")], [("c0", "f")]),
    ],
)
def test_results_find_their_calls(message, results, paired):
    found = normalize_messages([HI, message, *results])[2:]
    assert [(each["tool_call_id"], each["name"]) for each in found] == paired


def test_a_structured_result_moves_all_results_of_its_turn():
    messages = [HI, asked("f", "g"), result("text", name="f"), result({"a": 1}), HI]
    _, message, end, last = normalize_messages(messages)
    assert (end, last) == ({"role": "assistant", "content": ""}, HI)
    assert message["tool_responses"] == [
        {"name": "f", "response": {"value": "text"}},
        {"name": "g", "response": {"a": 1}},
    ]


def test_a_structured_result_beside_media_becomes_json():
    messages = [HI, asked("f", "g"), result([IMAGE], name="f"), result({"a": "é"})]
    _, _, seen, told = normalize_messages(messages)
    assert seen["content"] == [Medium("image", "data:,")]
    assert json.loads(told["content"]) == {"a": "é"}
    assert "é" in told["content"]


def test_native_tool_responses_pass():
    message = asked("f") | {"tool_responses": [{"name": "f", "response": {"a": 1}}]}
    normal = normalize_messages([HI, message, {"role": "assistant", "content": "A"}])
    assert normal[1]["tool_responses"] == message["tool_responses"]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "[messages] needed a list with at least one message, got []."),
        ("Hi", "[messages] needed a list with at least one message, got 'Hi'."),
        (HI, "[messages] needed a list with at least one message, got {"),
        (["Hi"], "[messages[0]] needed an object with role and content, got 'Hi'."),
        ([HI, {"role": "bot"}], "[messages[1].role] needed one of system, developer, user,"),
        ([{"content": "x"}], "got None."),
        (
            [HI, {"role": "system", "content": "x"}],
            "[messages[1].role] needed instructions in",
        ),
        ([{"role": "user", "content": 3}], "[messages[0].content] needed text or a list of parts"),
        (
            [{"role": "user", "content": [{"type": "file"}]}],
            "[messages[0].content[0]] needed a part",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "needed a part of type text (with its"),
        ([{"role": "user", "content": [7]}], "[messages[0].content[0]] needed a part of type"),
        (
            [{"role": "system", "content": [IMAGE]}],
            "[messages[0].content] needed text in a s",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": 1}]}],
            "[messages[0].tool_calls[0]] needed a",
        ),
        (
            [{"role": "assistant", "tool_calls": ["f"]}],
            "[messages[0].tool_calls[0]] needed a",
        ),
        (
            [{"role": "assistant", "tool_calls": 7}],
            "[messages[0].tool_calls] needed a list of calls, got 7.",
        ),
        ([HI, result()], "[messages[1]] needed a tool result to follow an assistant message"),
        ([result()], "[messages[0]] needed a tool result to follow an assistant message"),
        (
            [HI, asked("f"), HI],
            "[messages[1].tool_calls] needed a tool message for every call",
        ),
        ([HI, asked("f", "g"), result(name="f")], "got none for g."),
        (
            [HI, asked("f"), result(tool_call_id="z")],
            "[messages[2].tool_call_id] needed the id",
        ),
        (
            [HI, {"role": "assistant", "tool_calls": [{"id": 7, "name": "f"}]}, result(name="g")],
            "(7), got None.",
        ),
        ([HI, asked("f", "g"), result()], "(c0, c1), got None."),
        ([HI, asked("f"), result(), result()], "(none: every call has its result), got None."),
        ([HI, asked("f"), result(name="g")], "[messages[2].tool_call_id] needed the id of a call"),
    ],
)
def test_messages_that_templates_garble_are_refused(messages, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        normalize_messages(messages)


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "3", [1]])
def test_arguments_that_are_refused(arguments):
    calls = [{"id": "x", "function": {"name": "f", "arguments": arguments}}]
    place = r"\[messages\[1\]\.tool_calls\[0\]\.function\.arguments\] needed an object or its JSON"
    with pytest.raises(RequestError, match=place):
        normalize_messages([HI, {"role": "assistant", "tool_calls": calls}])


def test_tools_take_openais_form():
    function = {"name": "f", "strict": True, "parameters": {"properties": {}}}
    expected = {
        "type": "function",
        "function": {
            "name": "f",
            "description": "",
            "parameters": {"properties": {}, "type": "OBJECT"},
        },
    }
    assert normalize_tools([function]) == [expected]
    assert normalize_tools([{"type": "function", "function": function}]) == [expected]
    assert normalize_tools(None) == normalize_tools([]) == []


def test_tools_keep_what_they_respond():
    function = {"name": "f", "response": {"type": "object"}}
    assert normalize_tools([function])[0]["function"]["response"] == {"type": "OBJECT"}


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ({"name": "f"}, "[tools] needed a list of tools, got {"),
        (["f"], "[tools[0]] needed a function named in letters"),
        ([{"name": "f"}, {"type": "function"}], "[tools[1]] needed a function named"),
        ([{"name": "a b"}], "[tools[0]] needed a function named"),
        ([{"name": "f", "parameters": [1]}], "[tools[0].function.parameters] needed a JSON schema"),
    ],
)
def test_tools_that_are_refused(tools, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        normalize_tools(tools)
