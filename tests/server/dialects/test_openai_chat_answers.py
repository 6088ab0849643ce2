"""OpenAI's chat completions: every byte of an answer is what its client reads."""

import json

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from support.answer_events import FULL, META, SCORES, TEXT, USAGE, chunks, written
from support.canned import Canned, canned

from hlwq_mlx.errors import BusyError, CheckpointError, ContextError
from hlwq_mlx.server.dialects import openai_chat
from hlwq_mlx.server.dialects.dialect import Dialect
from hlwq_mlx.server.events import Begun, Call, Content, Done, Failed, Usage, join
from hlwq_mlx.server.request import ChatRequest

DIALECT: Dialect = openai_chat
USER = {"role": "user", "content": "Hi"}


def test_a_stream_has_its_parts_in_order():
    request = ChatRequest(logprobs=2, with_usage=True)
    events, is_done = chunks(written(DIALECT, request, FULL))
    assert is_done
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm", "reasoning": "hm"},
        {"content": "Hé"},
        {"content": "llo"},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_a",
                    "type": "function",
                    "function": {"name": "now", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"zone":"Wien","at":[1,null]}'}}]},
        {
            "tool_calls": [
                {
                    "index": 1,
                    "id": "call_b",
                    "type": "function",
                    "function": {"name": "list:all", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    reasons = [event["choices"][0]["finish_reason"] for event in events[:-1]]
    assert reasons == [None] * 8 + ["tool_calls"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    heads = {(e["id"], e["object"], e["created"], e["model"]) for e in events}
    assert heads == {("chatcmpl-abc123", "chat.completion.chunk", 1790000000, "gemma")}
    assert len({event["system_fingerprint"] for event in events}) == 1
    assert all("usage" not in event for event in events[:-1])
    for event in events:
        ChatCompletionChunk.model_validate(event)


def test_scores_have_the_clients_own_shape():
    events, _ = chunks(written(DIALECT, ChatRequest(logprobs=2), TEXT))
    told = [event["choices"][0].get("logprobs") for event in events[:4]]
    assert told[0] is None and told[3] is None
    assert told[1] == {
        "content": [
            {
                "token": "Hé",
                "logprob": -0.25,
                "bytes": [72, 195, 169],
                "top_logprobs": [
                    {"token": "Hé", "logprob": -0.25, "bytes": [72, 195, 169]},
                    {"token": "\ufffd", "logprob": -2, "bytes": [240]},
                ],
            }
        ],
        "refusal": None,
    }
    [score] = told[2]["content"]  # half a character, and a probability of 0, which JSON cannot hold
    assert (score["logprob"], score["bytes"], score["top_logprobs"]) == (-9999.0, [226, 130], [])


def test_scores_that_nobody_asked_for_are_not_told():
    assert b"logprobs" not in written(DIALECT, ChatRequest(), TEXT)
    whole = DIALECT.whole(ChatRequest(), [join(TEXT)], META)
    assert whole["choices"][0]["logprobs"] is None


def test_waiting_is_a_comment_from_the_start():
    data = written(DIALECT, ChatRequest(), FULL)
    assert data.startswith(b": keep-alive\n\n")
    assert data.count(b": keep-alive\n\n") == 2


def test_usage_is_told_in_a_stream_only_when_it_is_wanted():
    events, is_done = chunks(written(DIALECT, ChatRequest(with_usage=False), FULL))
    assert is_done and events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_choices_are_told_apart_and_counted_together():
    writer = DIALECT.writer(ChatRequest(count=2), META)
    ended = [Usage(prompt=9, cached=4, completion=count, reasoning=1) for count in (2, 3)]
    data = b"".join(
        [
            writer(Begun(9, 4), 0),
            writer(Begun(9, 4), 1),
            writer(Content("b"), 1),
            writer(Content("a"), 0),
            writer(Done("length", ended[1]), 1),
            writer(Done("stop", ended[0]), 0),
            writer.close(),
        ]
    )
    events, _ = chunks(data)
    assert [event["choices"][0]["index"] for event in events[:-1]] == [0, 1, 1, 0, 1, 0]
    usage = events[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (9, 5, 14)
    wholes = [
        join([Content(text), Done("stop", each)]) for text, each in zip("ab", ended, strict=True)
    ]
    told = DIALECT.whole(ChatRequest(count=2), wholes, META)
    assert [(each["index"], each["message"]["content"]) for each in told["choices"]] == [
        (0, "a"),
        (1, "b"),
    ]
    assert told["usage"] == usage


def test_an_error_ends_a_stream_without_done():
    problem = CheckpointError("[model] needed finite weights, got others.")
    writer = DIALECT.writer(ChatRequest(count=2), META)
    data = b"".join([writer(Begun(9, 4)), writer(Failed(problem)), writer(Content("x"), 1)])
    events, is_done = chunks(data + writer.close())
    assert not is_done
    assert events[1:] == [
        {"error": {"message": str(problem), "type": "server_error", "param": None, "code": None}}
    ]


def test_a_whole_answer():
    told = DIALECT.whole(ChatRequest(logprobs=2), [join(FULL)], META)
    ChatCompletion.model_validate(told)
    assert told["object"] == "chat.completion"
    [choice] = told["choices"]
    message = choice["message"]
    assert (message["content"], message["reasoning_content"], message["reasoning"]) == (
        "Héllo",
        "hm",
        "hm",
    )
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == [
        '{"zone":"Wien","at":[1,null]}',
        "{}",
    ]
    assert choice["finish_reason"] == "tool_calls"
    assert [each["token"] for each in choice["logprobs"]["content"]] == ["Hé", "\ufffd"]


@pytest.mark.parametrize(
    ("events", "content"),
    [
        ([Done("stop", USAGE)], ""),
        ([Call(0, "c", "now", {}), Done("tool_calls", USAGE)], None),
        ([Content("A"), Call(0, "c", "now", {}), Done("tool_calls", USAGE)], "A"),
    ],
)
def test_content_is_null_when_there_are_only_calls(events, content):
    message = DIALECT.whole(ChatRequest(), [join(events)], META)["choices"][0]["message"]
    assert message["content"] == content
    assert "reasoning_content" not in message


def test_clients_that_know_functions_alone_get_a_function_call():
    request = DIALECT.read({"messages": [USER], "functions": [{"name": "now"}]})
    assert not request.parallel_calls
    events = [Begun(9, 4), Call(0, "c", "now", {"a": 1}), Done("tool_calls", USAGE)]
    streamed, _ = chunks(written(DIALECT, request, events))
    deltas = [event["choices"][0]["delta"] for event in streamed[1:4]]
    assert deltas == [
        {"function_call": {"name": "now", "arguments": ""}},
        {"function_call": {"arguments": '{"a":1}'}},
        {},
    ]
    choice = DIALECT.whole(request, [join(events)], META)["choices"][0]
    assert choice["message"]["function_call"] == {"name": "now", "arguments": '{"a":1}'}
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == streamed[3]["choices"][0]["finish_reason"] == "function_call"


def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_the_client_reads_the_stream():
    data = written(DIALECT, ChatRequest(logprobs=2), FULL)
    with (
        canned(Canned(data, DIALECT.stream_type)) as url,
        client(url) as asked,
        asked.chat.completions.stream(model="gemma", messages=[USER]) as stream,
    ):
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    [choice] = final.choices
    assert choice.message.content == "Héllo"
    assert choice.message.reasoning_content == "hm"
    assert [(call.id, call.function.arguments) for call in choice.message.tool_calls] == [
        ("call_a", '{"zone":"Wien","at":[1,null]}'),
        ("call_b", "{}"),
    ]
    assert [each.token for each in choice.logprobs.content] == ["Hé", "\ufffd"]
    assert choice.finish_reason == "tool_calls"
    assert final.usage.prompt_tokens_details.cached_tokens == 4
    assert final.usage.completion_tokens_details.reasoning_tokens == 1
    assert "logprobs.content.delta" in kinds


def test_the_client_reads_a_whole_answer():
    body = json.dumps(DIALECT.whole(ChatRequest(logprobs=2), [join(FULL)], META)).encode()
    with canned(Canned(body)) as url, client(url) as asked:
        told = asked.chat.completions.create(model="gemma", messages=[USER])
    assert told.choices[0].message.tool_calls[1].function.name == "list:all"
    assert told.choices[0].logprobs.content[0].bytes == list(SCORES[0].token)
    assert told.usage.total_tokens == 14


def test_the_client_raises_an_error_in_a_stream():
    problem = Failed(CheckpointError("[model] needed finite weights, got others."))
    data = written(DIALECT, ChatRequest(), [Begun(9, 4), problem])
    with (
        canned(Canned(data, DIALECT.stream_type)) as url,
        client(url) as asked,
        pytest.raises(openai.APIError, match="needed finite weights"),
        asked.chat.completions.create(model="gemma", messages=[USER], stream=True) as stream,
    ):
        list(stream)


@pytest.mark.parametrize(
    ("problem", "status", "raised"),
    [
        (ContextError(5000, 4096), 400, openai.BadRequestError),
        (BusyError("[queue] needed room, got none.", 2), 429, openai.RateLimitError),
        (CheckpointError("[model] needed finite weights."), 500, openai.InternalServerError),
    ],
)
def test_the_client_knows_our_errors(problem, status, raised):
    body = json.dumps(DIALECT.error(problem, status)).encode()
    with (
        canned(Canned(body, status=status)) as url,
        client(url) as asked,
        pytest.raises(raised) as caught,
    ):
        asked.chat.completions.create(model="gemma", messages=[USER])
    assert caught.value.body["message"] == str(problem)
    if status == 400:
        assert caught.value.code == "context_length_exceeded"
        assert "5000" in str(caught.value) and "4096" in str(caught.value)
