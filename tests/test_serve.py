"""`python -m hlwq_mlx.serve`, spoken to by the openai client."""

import re

import demo
import pytest
from served import served

from hlwq_mlx.gemma4.caching import Caching
from hlwq_mlx.serve import THINKING_OFF, make_parser, ready_load
from hlwq_mlx.store import checkpoint


@pytest.fixture(scope="module")
def client():
    with served(demo.folder()) as made:
        yield made


QUESTION = [{"role": "user", "content": demo.CARD_QUESTION}]


def test_an_answer(client):
    answer = client.chat.completions.create(model="default_model", messages=QUESTION)
    assert answer.choices[0].message.content == "4"
    assert answer.choices[0].finish_reason == "stop"


def test_a_streamed_answer(client):
    stream = client.chat.completions.create(
        model="default_model",
        messages=[{"role": "user", "content": "Hello!"}],
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(pieces) > 5
    assert "".join(pieces) == "Hello! Tell me a story and ask me about it."


STORY = [{"role": "user", "content": f"{demo.STORY}\n{demo.STORY_QUESTION}"}]


@pytest.mark.parametrize("thinks", [False, True])
def test_thinking_is_off_unless_a_request_asks_for_it(client, thinks):
    body = {"chat_template_kwargs": {"enable_thinking": True}} if thinks else {}
    answer = client.chat.completions.create(model="default_model", messages=STORY, extra_body=body)
    message = answer.choices[0].message
    assert message.content.strip() == demo.STORY_ANSWER
    assert bool(getattr(message, "reasoning", None)) == thinks


def test_a_request_for_more_than_there_is_to_choose_from(client):
    answer = client.chat.completions.create(
        model="default_model", messages=QUESTION, temperature=0.01, extra_body={"top_k": 1 << 20}
    )
    assert answer.choices[0].message.content == "4"
    assert client.chat.completions.create(model="default_model", messages=QUESTION)


def test_a_conversation_goes_on(client):
    messages = [*QUESTION, {"role": "assistant", "content": "4"}]
    messages.append({"role": "user", "content": "What is 3+4?"})
    answer = client.chat.completions.create(model="default_model", messages=messages)
    assert re.fullmatch(r"7", answer.choices[0].message.content)


def test_other_options_are_passed_on():
    arguments, passed_on = make_parser().parse_known_args(
        ["--model", "m", "--port", "9", "--host", "h", "--chat-template", "c"]
    )
    assert arguments.model == "m"
    assert arguments.chat_template_args == THINKING_OFF
    assert passed_on == ["--port", "9", "--host", "h", "--chat-template", "c"]


def test_a_loaded_model_is_made_ready(monkeypatch):
    model, tokenizer = demo.load()
    prepared, caching = [], Caching(kv_bits=8)
    monkeypatch.setattr(model, "caching", model.caching)
    monkeypatch.setattr(checkpoint, "prepare", prepared.append)
    assert ready_load(lambda *names, **options: (model, *names, options), caching)("a", b=1) == (
        *(model, "a"),
        {"b": 1},
    )
    assert ready_load(lambda: ("another model", tokenizer), caching)() == (
        "another model",
        tokenizer,
    )
    assert prepared == [model]
    assert model.caching is caching
