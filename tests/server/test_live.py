"""A server as its clients try it: many at once, leaving, dribbling; conversations; its end."""

import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copytree

import demo
import pytest
from served import running

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": demo.CARD_QUESTION}]
ENDLESS = {
    "messages": QUESTION,
    "logit_bias": {"1": -100, "50": -100, "106": -100},  # all that would end it
    "max_tokens": 3000,
}


@pytest.fixture(scope="module")
def server():
    with running(demo.folder(), "--draft", "none") as made:
        yield made


def wait(condition, seconds=20.0):
    """Wait for what another process does; how long it takes decides nothing."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def send(server, body, **headers):
    """Send a request and return its socket, unread."""
    data = json.dumps(body).encode()
    lines = {"Host": "127.0.0.1", "Content-Type": "application/json"} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(
        f"POST {CHAT} HTTP/1.1\r\n{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
    )
    return connection


def is_idle(server):
    return server.metric("rows") == server.metric("reading") == server.metric("queue") == 0


def story(number):
    return {"role": "user", "content": f"{demo.STORY} " * number + demo.STORY_QUESTION}


# Conversations


def test_a_second_turn_reads_only_what_is_new(server):
    messages = [story(11)]
    first = server.post(CHAT, {"messages": messages, "seed": 1})[1]
    assert first["usage"]["prompt_tokens"] > 512  # more than a chunk
    messages += [first["choices"][0]["message"], *QUESTION]
    warm = server.post(CHAT, {"messages": messages, "logprobs": True})[1]
    cold = server.post(CHAT, {"messages": messages, "logprobs": True}, authorization="Bearer b")[1]
    assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] >= (
        first["usage"]["prompt_tokens"] - 1
    )
    assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0  # another's prefix
    tokens = [
        [(each["token"], each["logprob"]) for each in answer["choices"][0]["logprobs"]["content"]]
        for answer in (warm, cold)
    ]
    for (warm_token, warm_score), (cold_token, cold_score) in zip(*tokens, strict=True):
        assert warm_token == cold_token
        assert warm_score == pytest.approx(cold_score, abs=1e-4)


def test_a_prompt_again_and_less_one_token(server):
    """Three plain requests of an editor; they ended mlx-lm's server for good."""
    ids = demo.load()[1].encode(story(3)["content"])
    for prompt in (ids, ids, ids[:-1], ids):
        status, answer = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 2})
        assert status == 200, answer
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == len(ids) - 1


def test_two_conversations_do_not_mix(server):
    for _ in range(2):
        for color in ("red", "blue"):
            text = f"{demo.STORY.replace('red', color)}\n{demo.STORY_QUESTION}"
            asked = {"messages": [{"role": "user", "content": text}]}
            answer = server.post(CHAT, asked)[1]["choices"][0]["message"]["content"]
            assert color in answer or answer in ("red", "blue"), answer


# Many, and those that leave


def test_64_at_once_are_all_answered(server):
    def ask(number):
        return server.post(CHAT, {"messages": QUESTION, "user": str(number)})

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    assert {answer[1]["choices"][0]["message"]["content"] for answer in answers} == {"4"}


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_ends_when_its_client_leaves(server, streamed):
    cancelled = server.metric("answers_cancelled")
    connection = send(server, {**ENDLESS, "stream": streamed})
    wait(lambda: server.metric("rows") >= 1)
    connection.close()
    wait(lambda: is_idle(server))
    assert server.metric("answers_cancelled") == cancelled + 1


def test_clients_that_leave_at_any_moment(server):
    for at in range(12):
        connection = send(server, {**ENDLESS, "stream": at % 2 == 0})
        time.sleep(0.01 * at)
        connection.close()
    wait(lambda: is_idle(server))
    assert server.post(CHAT, {"messages": QUESTION})[0] == 200


@pytest.mark.parametrize("options", [{}, {"seed": 3, "temperature": 1.0}])
def test_a_short_request_is_answered_while_a_long_one_goes_on(server, options):
    with contextlib.closing(send(server, {**ENDLESS, **options, "stream": True})):
        wait(lambda: server.metric("rows") >= 1)
        answer = server.post(CHAT, {"messages": QUESTION})[1]
        assert answer["choices"][0]["message"]["content"] == "4"
        assert server.metric("rows") == 1
    wait(lambda: is_idle(server))


def test_a_chunked_body_is_read(server):
    body = json.dumps({"messages": QUESTION}).encode()
    halves = body[:9], body[9:]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(half), half) for half in halves) + b"0\r\n\r\n"
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode() + chunks)
        said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert b"200 OK" in said and b'"4"' in said


# Who may ask


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Origin": "http://localhost:3000"}, 200),
    ],
)
def test_web_pages_of_others_cannot_use_it(server, headers, expected):
    assert server.post(CHAT, {"messages": QUESTION}, **headers)[0] == expected


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/nothing", "error.message"),
        ("/v1/messages/nothing", "error.message"),
        ("/api/nothing", "error"),
    ],
)
def test_an_unknown_path_is_404_in_the_dialect_of_its_neighbours(server, path, error):
    status, answer = server.ask(path)
    assert status == 404
    for name in error.split("."):
        answer = answer[name]
    assert "needed a path of this server" in answer


def test_what_watchers_look_at(server):
    assert server.ask("/health") == (200, {"status": "ok", "model": "ready"})
    assert server.ask("/props")[1]["context_length"] == 4096
    metrics = server.ask("/metrics")[1]
    assert 'hlwq_requests_total{path="/health",status="200"}' in metrics
    assert server.metric("time_to_first_token_seconds_count") > 0
    assert server.ask("/")[1] == "Ollama is running"
    assert server.ask("/", accept="text/html")[1].startswith("<!doctype html>")


def test_the_root_may_be_asked_for_its_head(server):
    """Claude Code and Ollama's clients do, to see whether somebody is there."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("HEAD", "/")
    with contextlib.closing(connection), connection.getresponse() as answer:
        assert (answer.status, answer.read()) == (200, b"")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed", "/api/embeddings"])
def test_embeddings_are_refused_with_the_reason(server, path):
    status, answer = server.post(path, {"model": "gemma", "input": "Hi"})
    assert status == 501
    assert "embeddings" in json.dumps(answer)


# Its begin and end


def test_it_ends_after_the_answers_under_way():
    with running(demo.folder()) as server:
        connection = send(server, {**ENDLESS, "max_tokens": 80, "stream": True})
        wait(lambda: server.metric("rows") >= 1)
        server.process.send_signal(signal.SIGTERM)
        said = b""
        while b"[DONE]" not in said:
            piece = connection.recv(1 << 16)
            assert piece, said[-300:]
            said += piece
        connection.close()
        assert server.process.wait(60) == 0
        assert b'"finish_reason":"length"' in said


@pytest.mark.slow
def test_it_says_so_when_there_is_no_time_for_an_answer():
    with running(demo.folder(), "--drain", "1") as server:
        connection = send(server, {**ENDLESS, "max_tokens": 3500, "n": 8, "stream": True})
        wait(lambda: server.metric("rows") >= 8)
        server.process.send_signal(signal.SIGTERM)
        said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        connection.close()
        assert server.process.wait(60) == 0
        assert b"[DONE]" in said or b"the order to end" in said, said[-300:]


@pytest.mark.slow  # test_listen.py has the moment that was missed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_can_be_ended_while_it_loads(number):
    with running(demo.folder()) as server:
        server.process.send_signal(number)
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.said() and "terminate called" not in server.said()


def test_a_damaged_folder_is_told_in_one_line(tmp_path):
    folder = copytree(demo.folder(), tmp_path / "folder")
    shard = next(folder.glob("model*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    ran = demo.run("hlwq_mlx.serve", "--model", str(folder), "--port", "0")
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith("error: [")
    assert "Traceback" not in ran.stderr


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ran = demo.run("hlwq_mlx.serve", "--model", str(demo.folder()), "--port", port)
    assert ran.returncode == 2
    last = ran.stderr.splitlines()[-1]
    assert last.startswith(f"error: [serve] needed to listen on port {port} of 127.0.0.1, got '")


def test_prompts_are_kept_on_disk_for_the_next_start(tmp_path):
    messages = [story(4)]
    for expected in (False, True):
        options = ("--prompt-cache-dir", str(tmp_path / "cache"))
        with running(demo.folder(), *options) as server:
            answer = server.post(CHAT, {"messages": messages})[1]
            messages += [answer["choices"][0]["message"], *QUESTION]
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
        assert (answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0) == expected
    assert list(Path(tmp_path / "cache").iterdir())


def test_drafts_bring_the_same_answer_in_fewer_passes(server):
    """A thought quotes the story; the drafted server's probabilities are the plain one's."""
    asked = {"messages": [{"role": "user", "content": f"{demo.STORY}\n{demo.STORY_QUESTION}"}]}
    asked |= {"chat_template_kwargs": {"enable_thinking": True}, "logprobs": True, "seed": 4}
    with running(demo.folder()) as drafting:  # by the drafter beside it
        for temperature in (0, 1):
            request = asked | {"temperature": temperature}
            found, wanted = (each.post(CHAT, request)[1] for each in (drafting, server))
            assert found["choices"] == wanted["choices"]
        assert drafting.metric("engine_passes") < drafting.metric("engine_tokens")
    assert server.metric("engine_passes") == server.metric("engine_tokens")


@pytest.mark.slow  # test_engine_memory.py has it without a process of its own
def test_an_idle_model_is_dropped_and_comes_back():
    with running(demo.folder(), "--idle-unload", "1") as server:
        for _ in range(2):
            assert server.post(CHAT, {"messages": QUESTION})[0] == 200
            loaded = server.metric("active_memory_bytes")
            wait(lambda: server.ask("/health")[1]["model"] == "unloaded")
            assert server.metric("active_memory_bytes") < loaded / 10
        assert server.ask("/api/ps")[1] == {"models": []}
        assert server.metric("loads") == 2


def test_threads_of_a_client_library_are_no_burden(server):
    """Connections that are opened and never used do not keep others out."""
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    answered = threading.Event()
    threading.Thread(
        target=lambda: (server.post(CHAT, {"messages": QUESTION}), answered.set())
    ).start()
    assert answered.wait(60)
    for connection in idle:
        connection.close()
