"""`python -m hlwq_mlx.serve`, spoken to by the openai client."""

import re
import socket

import demo
import mlx_lm
import pytest
from mlx_lm import server
from served import served

from hlwq_mlx.engine.sampling import Sampling
from hlwq_mlx.folder import loading
from hlwq_mlx.gemma4.caches import Caching
from hlwq_mlx.mlxlm.server import ready_load, sampling_options
from hlwq_mlx.serve import THINKING_OFF, make_parser


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
    model, tokenizer = mlx_lm.load(str(demo.folder()))
    prepared, caching = [], Caching(kv_bits=8)
    monkeypatch.setattr(model, "caching", model.caching)
    monkeypatch.setattr(loading, "prepare", prepared.append)
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


def test_a_port_that_is_taken_ends_the_command():
    """mlx-lm's generation thread must not outlive it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ran = demo.run("hlwq_mlx.serve", "--model", str(demo.folder()), "--port", port)
    assert ran.returncode == 2
    last = ran.stderr.splitlines()[-1]
    assert last.startswith(f"error: [serve] needed to listen on port {port} of 127.0.0.1, got '")


def test_a_model_s_own_sampling_is_the_server_s_default(monkeypatch):
    told = {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95}
    options = sampling_options(Sampling.from_generation_config(told))
    monkeypatch.setattr(server, "run", lambda host, port, provider: seen.append(provider.cli_args))
    monkeypatch.setattr("sys.argv", ["mlx_lm.server", *options, "--top-k", "7"])
    seen = []
    server.main()
    chosen = seen[0]
    assert (chosen.temp, chosen.top_p, chosen.top_k, chosen.min_p) == (1.0, 0.95, 7, 0.0)
