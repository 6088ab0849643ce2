"""OpenAI's raw completions: read, refused by name, and written for their client."""

import json

import openai
import pytest
from openai.types import Completion
from support.answer_events import META, TEXT, USAGE, chunks, written
from support.canned import Canned, canned

from hlwq_mlx.errors import CheckpointError, RequestError
from hlwq_mlx.server.dialects import openai_completions
from hlwq_mlx.server.dialects.dialect import Dialect
from hlwq_mlx.server.events import Content, Done, Failed, TokenScore, Waiting, join
from hlwq_mlx.server.request import ChatRequest

DIALECT: Dialect = openai_completions


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<bos>Once", "<bos>Once"),
        (["Once"], "Once"),
        ([2, 5, 7], [2, 5, 7]),
        ([[2, 5, 7]], [2, 5, 7]),
    ],
)
def test_a_prompt_is_raw(prompt, expected):
    request = DIALECT.read({"prompt": prompt})
    assert request == ChatRequest(raw=expected, stop=[], with_usage=True)
    assert not request.messages


@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        ({"max_tokens": 16}, "max_tokens", 16),
        ({"max_tokens": -1}, "max_tokens", None),
        ({"logprobs": 0}, "logprobs", 0),
        ({"logprobs": 5}, "logprobs", 5),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": False}, "logprobs", None),
        ({"logprobs": None}, "logprobs", None),
        ({"n": 2, "best_of": 2}, "count", 2),
        ({"suffix": "", "echo": False}, "raw", "Once"),
        ({"stop": "\n"}, "stop", ["\n"]),
        ({"seed": 3, "temperature": 0.5}, "sampling", {"temp": 0.5}),
        ({"stream": True, "stream_options": {"include_usage": True}}, "with_usage", True),
    ],
)
def test_every_option_acts(options, field, expected):
    assert getattr(DIALECT.read({"prompt": "Once", **options}), field) == expected


@pytest.mark.parametrize(
    ("options", "param", "told"),
    [
        ({"prompt": None}, "prompt", "needed a value"),
        ({"prompt": ""}, "prompt", "one text"),
        ({"prompt": []}, "prompt", "one text"),
        ({"prompt": ["a", "b"]}, "prompt", "a request for each"),
        ({"prompt": [[1], [2]]}, "prompt", "a request for each"),
        ({"prompt": [1, "a"]}, "prompt", "one text"),
        ({"prompt": [True]}, "prompt", "one text"),
        ({"prompt": 5}, "prompt", "one text"),
        ({"prompt": {"text": "a"}}, "prompt", "one text"),
        ({"suffix": "end"}, "suffix", "needed nothing or ''"),
        ({"echo": True}, "echo", "needed nothing or False"),
        ({"best_of": 3}, "best_of", "needed 1, as n is"),
        ({"n": 2, "best_of": 1}, "best_of", "needed 2, as n is"),
        ({"logprobs": 21}, "logprobs", "needed at most 20"),
        ({"logprobs": "5"}, "logprobs", "needed a number"),
        ({"response_format": {"type": "json_object"}}, "response_format", "/v1/chat/completions"),
        ({"max_tokens": 0}, "max_tokens", "needed at least 1"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(options, param, told):
    with pytest.raises(RequestError) as caught:
        DIALECT.read({"prompt": "Once", **options})
    body = DIALECT.error(caught.value, 400)["error"]
    assert (body["param"], body["type"]) == (param, "invalid_request_error")
    assert told in body["message"]


def test_a_stream_has_its_parts_in_order():
    data = written(DIALECT, ChatRequest(logprobs=1), [Waiting(), *TEXT])
    assert data.startswith(b": keep-alive\n\n")
    events, is_done = chunks(data)
    assert is_done
    told = [event["choices"][0] for event in events[:-1]]
    assert [(each["text"], each["finish_reason"]) for each in told] == [
        ("Hé", None),
        ("llo", None),
        ("", "stop"),
    ]
    assert told[0]["logprobs"] == {
        "tokens": ["Hé"],
        "token_logprobs": [-0.25],
        "top_logprobs": [{"Hé": -0.25, "\ufffd": -2}],
        "text_offset": [0],
    }
    assert told[1]["logprobs"]["text_offset"] == [2]
    assert told[1]["logprobs"]["token_logprobs"] == [-9999.0]
    assert told[2]["logprobs"] is None
    assert events[-1]["choices"] == [] and events[-1]["usage"]["total_tokens"] == 14
    assert {event["object"] for event in events} == {"text_completion"}


def test_offsets_count_characters_where_tokens_are_parts_of_them():
    scores = [TokenScore(token, -1.0) for token in (b"a", b"\xe2\x82", b"\xac", b"b")]
    events = [Content("a€b", scores), Done("stop", USAGE)]
    told = DIALECT.whole(ChatRequest(logprobs=0), [join(events)], META)
    assert told["choices"][0]["logprobs"]["text_offset"] == [0, 1, 2, 2]


def test_a_whole_answer():
    told = DIALECT.whole(ChatRequest(count=2), [join(TEXT), join(TEXT)], META)
    Completion.model_validate(told)
    assert [(each["index"], each["text"]) for each in told["choices"]] == [
        (0, "Héllo"),
        (1, "Héllo"),
    ]
    assert told["choices"][0]["logprobs"] is None
    assert (told["id"], told["usage"]["completion_tokens"]) == ("cmpl-abc123", 10)


def test_an_error_ends_a_stream_without_done():
    problem = CheckpointError("[model] needed finite weights, got others.")
    events, is_done = chunks(written(DIALECT, ChatRequest(), [Failed(problem), *TEXT]))
    assert not is_done
    assert [event["error"]["type"] for event in events] == ["server_error"]


def test_the_client_reads_the_stream():
    data = written(DIALECT, ChatRequest(logprobs=1), TEXT)
    with (
        canned(Canned(data, DIALECT.stream_type)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        pieces = list(client.completions.create(model="gemma", prompt="Once", stream=True))
    assert "".join(piece.choices[0].text for piece in pieces[:-1]) == "Héllo"
    assert pieces[0].choices[0].logprobs.top_logprobs[0]["Hé"] == -0.25
    assert pieces[-1].usage.prompt_tokens_details.cached_tokens == 4


def test_the_client_reads_a_whole_answer():
    body = json.dumps(DIALECT.whole(ChatRequest(), [join(TEXT)], META)).encode()
    with (
        canned(Canned(body)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        told = client.completions.create(model="gemma", prompt="Once")
    assert (told.choices[0].text, told.choices[0].finish_reason) == ("Héllo", "stop")
