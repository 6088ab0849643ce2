"""Ollama's completion of one prompt: the client reads it, raw prompts stay as they are."""

import json
from contextlib import contextmanager

import ollama
import pytest
from support.answer_events import FULL, META, TEXT, written
from support.canned import Canned, canned

from hlwq_mlx.dialog.messages import normalize_messages
from hlwq_mlx.errors import BusyError, RequestError
from hlwq_mlx.server.dialects import ollama_generate
from hlwq_mlx.server.dialects.dialect import Dialect
from hlwq_mlx.server.dialects.ollama_chat import only_loads
from hlwq_mlx.server.events import Failed, join
from hlwq_mlx.server.request import ChatRequest

DIALECT: Dialect = ollama_generate


def read(**body):
    return DIALECT.read({"model": "m", "prompt": "Hi", **body})


@contextmanager
def asking(content, kind="application/x-ndjson"):
    with canned(Canned(content, kind)) as url:
        client = ollama.Client(host=url)
        try:
            yield client
        finally:
            client._client.close()


def test_the_client_reads_a_stream_as_it_reads_the_whole():
    with asking(written(DIALECT, ChatRequest(), FULL)) as client:
        pieces = list(client.generate("m", "Hi", stream=True))
    whole = json.dumps(DIALECT.whole(ChatRequest(), [join(FULL)], META)).encode()
    with asking(whole, "application/json") as client:
        told = client.generate("m", "Hi")
    assert [piece.response for piece in pieces] == ["", "", "", "Hé", "llo", ""]
    assert (told.response, told.thinking, pieces[1].thinking) == ("Héllo", "hm", "hm")
    assert [piece.done for piece in pieces] == [False] * 5 + [True]
    assert told.context == pieces[-1].context == []
    assert told.eval_count == pieces[-1].eval_count == 5
    assert pieces[3].logprobs[0].token == told.logprobs[0].token == "Hé"


def test_a_failure_within_a_stream_is_raised_by_the_client():
    events = [*TEXT[:-1], Failed(BusyError("[queue] full.", 2), 429)]
    failing = asking(written(DIALECT, ChatRequest(), events))
    with failing as client, pytest.raises(ollama.ResponseError, match="queue"):
        list(client.generate("m", "Hi", stream=True))


def test_a_prompt_is_a_message():
    request = read(system="Be brief.", images=["AAAA"], think="low", format="json", suffix="")
    system, user = normalize_messages(request.messages)
    assert (system["content"], user["content"][1]["text"]) == ("Be brief.", "Hi")
    assert (request.thinking, request.schema, request.is_streamed) == (True, {}, True)


def test_a_raw_prompt_stays_as_it_is():
    request = read(prompt="<bos><|turn>user\n", raw=True, options={"num_predict": 5})
    assert (request.raw, request.messages, request.max_tokens) == ("<bos><|turn>user\n", (), 5)
    assert not only_loads(request)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"prompt": ""}, "load"),
        ({"prompt": None, "keep_alive": 0}, "unload"),
        ({"prompt": "", "raw": True}, "load"),
    ],
)
def test_a_request_without_a_prompt_only_loads(body, reason):
    request = read(**body)
    assert only_loads(request)
    answer = ollama.GenerateResponse(**ollama_generate.load(request, META))
    assert (answer.done, answer.done_reason, answer.response) == (True, reason, "")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"suffix": "}"}, r"\[suffix\]"),
        ({"template": "{{ .Prompt }}"}, r"\[template\]"),
        ({"context": [1, 2]}, r"\[context\] .*/api/chat"),
        ({"raw": True, "system": "x"}, r"\[system\]"),
        ({"raw": True, "images": ["AAAA"]}, r"\[images\]"),
        ({"prompt": ["Hi"]}, r"\[prompt\]"),
        ({"options": {"top_p": 2}}, r"\[options\.top_p\]"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(body, where):
    with pytest.raises(RequestError, match=where):
        read(**body)
