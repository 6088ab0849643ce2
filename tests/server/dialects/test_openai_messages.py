"""Messages and tools of OpenAI's clients, in every shape, as the template gets them."""

import pytest

from hlwq_mlx.dialog.messages import normalize_messages, normalize_tools
from hlwq_mlx.errors import RequestError
from hlwq_mlx.server.dialects import openai_chat

USER = {"role": "user", "content": "Hi"}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
URL = "data:image/png;base64,AAAA"


def normal(*messages):
    """Return messages as the template gets them."""
    return normalize_messages(openai_chat.read({"messages": [USER, *messages]}).messages)[1:]


CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "assistant", "content": "Yes"}], [("assistant", "Yes")]),
        (
            [
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
                }
            ],
            [("assistant", "AB")],
        ),
        ([{"role": "assistant", "content": None, "refusal": "No."}], [("assistant", "No.")]),
        (
            [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}],
            [("assistant", "No.")],
        ),
        ([{"role": "assistant", "content": None}], [("assistant", "")]),
        (
            [{"role": "user", "name": "Ann", "content": [{"type": "text", "text": "A"}]}],
            [("user", [{"type": "text", "text": "A"}])],
        ),
        (
            [
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "12"},
            ],
            [("assistant", ""), ("tool", "12")],
        ),
        (
            [
                {"role": "assistant", "function_call": {"name": "now", "arguments": "{}"}},
                {"role": "function", "name": "now", "content": "12"},
            ],
            [("assistant", ""), ("tool", "12")],
        ),
    ],
)
def test_messages_in_every_shape(messages, expected):
    assert [(each["role"], each["content"]) for each in normal(*messages)] == expected


def test_calls_and_results_keep_what_they_say():
    made, answered = normal(
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "12"},
    )
    assert made["tool_calls"][0]["function"] == {"name": "now", "arguments": {"a": 1}}
    assert made["reasoning_content"] == "hm"
    assert (answered["tool_call_id"], answered["name"]) == ("c1", "now")
    [made] = normal(
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": {"hour": 12}},
    )
    assert made["tool_responses"] == [{"name": "now", "response": {"hour": 12}}]
    data = [{"type": "file", "size": 3}, {"no": "part"}]
    [made] = normal(
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": data},
    )
    assert made["tool_responses"] == [{"name": "now", "response": {"value": data}}]


def test_instructions_come_from_the_developer_too():
    first = openai_chat.read({"messages": [{"role": "developer", "content": "Be brief"}, USER]})
    assert normalize_messages(first.messages)[0] == {"role": "system", "content": "Be brief"}


def test_a_result_without_its_call_is_refused():
    with pytest.raises(RequestError, match=r"messages\[1\]\] needed a tool result to follow"):
        normal({"role": "tool", "tool_call_id": "c9", "content": "12"})


def test_fields_that_a_template_would_take_as_ours_are_left_out():
    request = openai_chat.read(
        {"messages": [{**USER, "tool_responses": [{}], "reasoning": {"text": "hm"}, "weight": 1}]}
    )
    assert request.messages == [USER]


@pytest.mark.parametrize(
    ("part", "kind", "source"),
    [
        ({"type": "image_url", "image_url": {"url": URL}}, "image", URL),
        ({"type": "image_url", "image_url": URL}, "image", URL),
        (
            {"type": "image_url", "image_url": {"url": "https://host/a.png"}},
            "image",
            "https://host/a.png",
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            "audio",
            "data:audio;base64,AAAA",
        ),
        ({"type": "audio_url", "audio_url": {"url": URL}}, "audio", URL),
        ({"type": "video_url", "video_url": {"url": URL}}, "video", URL),
        ({"type": "video_url", "video_url": URL}, "video", URL),
        ({"type": "video", "url": URL}, "video", URL),
    ],
)
def test_media_are_found_in_every_part(part, kind, source):
    [message] = normal({"role": "user", "content": [part, {"type": "text", "text": "?"}]})
    assert message["content"] == [(kind, source), {"type": "text", "text": "?"}]


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"type": "file", "file": {"file_id": "f"}}, "got a file"),
        ({"type": "input_file", "file_data": URL}, "got a file"),
        ({"type": "video_url", "video_url": {"url": "/etc/passwd"}}, "needed a URL"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "needed a URL"),
        ({"type": "image_url", "image_url": {"url": URL, "detail": "ultra"}}, "low, auto, high"),
        ({"type": "video", "video": [[[0]]]}, "needed text"),
        ({"type": "image", "image": {"a": 1}}, "needed text"),
        ({"type": "text", "text": 5}, "needed a part"),
        ({"type": [], "text": 5}, "needed a part"),
        ("text", None),
    ],
)
def test_other_parts_are_refused_by_their_place(part, told):
    message = {"role": "user", "content": [part]}
    if told is None:
        assert normal(message)[0]["content"] == [{"type": "text", "text": "text"}]
        return
    with pytest.raises(RequestError, match=r"messages\[1\]\.content\[0\]") as caught:
        normal(message)
    assert told in str(caught.value)


def test_an_earlier_spoken_answer_is_refused():
    with pytest.raises(RequestError, match=r"messages\[1\]\.audio"):
        normal({"role": "assistant", "audio": {"id": "a"}})


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ([], None),
        ([None], None),
        (["auto"], None),
        (["low"], 70),
        (["low", "low"], 70),
        (["low", "auto"], None),
        (["low", "high", "auto"], 1120),
    ],
)
def test_detail_decides_how_large_pictures_are(details, expected):
    parts = [{"type": "image_url", "image_url": {"url": URL, "detail": each}} for each in details]
    assert (
        openai_chat.read({"messages": [{"role": "user", "content": parts}]}).image_tokens
        == expected
    )


def test_tools_may_be_written_flat():
    flat = {"type": "function", "name": "now", "parameters": {"type": "object"}}
    assert normalize_tools(
        openai_chat.read({"messages": [USER], "tools": [flat]}).tools
    ) == normalize_tools([NOW])
