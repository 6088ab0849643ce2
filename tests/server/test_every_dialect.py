"""What holds for every endpoint on the demo: schemas behind thoughts, long prompts, media."""

import base64
import json
import re
from pathlib import Path

import demo
import jsonschema
import openai
import pytest
from served import running

SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}},
    "required": ["color"],
    "additionalProperties": False,
}
OBJECT = {"type": "object"}
SAMPLES = Path(__file__).parents[2] / "scripts" / "samples"
PICTURE, SOUND = SAMPLES / "seven.png", SAMPLES / "three.wav"
STORY = f"{demo.STORY}\n{demo.STORY_QUESTION}"


def said(text):
    return [{"role": "user", "content": text}]


def chat(text, schema):
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return {"messages": said(text), "reasoning_effort": "high", "response_format": wanted}


def messages(text, schema):
    wanted = {"format": {"type": "json_schema", "schema": schema}}
    thinking = {"type": "enabled", "budget_tokens": 1024}
    asked = {"messages": said(text), "max_tokens": 99}
    return {**asked, "thinking": thinking, "output_config": wanted}


def responses(text, schema):
    wanted = {"format": {"type": "json_schema", "name": "a", "schema": schema}}
    return {"input": text, "reasoning": {"effort": "high"}, "text": wanted}


def ollama_chat(text, schema):
    return {"messages": said(text), "format": schema, "think": True, "stream": False}


def ollama_generate(text, schema):
    return {"prompt": text, "format": schema, "think": True, "stream": False}


def of_chat(answer):
    message = answer["choices"][0]["message"]
    return message["reasoning_content"], message["content"]


def of_responses(answer):
    thought, message = answer["output"]
    return thought["summary"][0]["text"], message["content"][0]["text"]


ENDPOINTS = {
    "/v1/chat/completions": (chat, of_chat),
    "/v1/messages": (
        messages,
        lambda answer: (answer["content"][0]["thinking"], answer["content"][1]["text"]),
    ),
    "/v1/responses": (responses, of_responses),
    "/api/chat": (
        ollama_chat,
        lambda answer: (answer["message"]["thinking"], answer["message"]["content"]),
    ),
    "/api/generate": (ollama_generate, lambda answer: (answer["thinking"], answer["response"])),
}


@pytest.fixture(scope="module")
def server():
    with running(demo.folder()) as made:
        yield made


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_schema_holds_behind_a_thought(server, path):
    make, read = ENDPOINTS[path]
    status, answer = server.post(path, make(STORY, SCHEMA))
    assert status == 200, answer
    thought, text = read(answer)
    assert thought.strip() == demo.STORY_THOUGHT
    jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_schema_that_cannot_be_held_is_refused(server, path):
    make, _ = ENDPOINTS[path]
    status, answer = server.post(path, make(STORY, OBJECT | {"not": SCHEMA}))
    assert status == 400
    assert "not" in str(answer)


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_is_never_cut(server, path, streamed):
    make, _ = ENDPOINTS[path]
    asked = {**make("word " * 5000, SCHEMA), "stream": streamed}
    status, answer = server.post(path, asked)
    assert status == 400
    assert re.search(r"fewer than 4096 tokens, .* got 10\d\d\d\.", str(answer)), answer


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}),
        ("/v1/responses", {"text": {"format": {"type": "json_object"}}}),
        ("/api/chat", {"format": "json"}),
    ],
)
def test_any_object_may_be_asked_for(server, path, wanted):
    make, read = ENDPOINTS[path]
    status, answer = server.post(path, {**make(STORY, SCHEMA), **wanted})
    assert status == 200, answer
    assert read(answer)[1].startswith("{")


SEEN = "Which digit is this?"
PNG = base64.b64encode(PICTURE.read_bytes()).decode()
URL = f"data:image/png;base64,{PNG}"
TOLD = {"choices", "content", "output", "message", "response"}
SOURCE = {"type": "base64", "media_type": "image/png", "data": PNG}


def shown(kind, text_kind, **picture):
    """Return a user's message with a picture and a question."""
    parts = [{"type": kind, **picture}, {"type": text_kind, "text": SEEN}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            {"messages": shown("image_url", "text", image_url={"url": URL})},
        ),
        ("/v1/messages", {"messages": shown("image", "text", source=SOURCE), "max_tokens": 9}),
        ("/v1/responses", {"input": shown("input_image", "input_text", image_url=URL)}),
        ("/api/chat", {"messages": [{"role": "user", "content": SEEN, "images": [PNG]}]}),
        ("/api/generate", {"prompt": SEEN, "images": [PNG]}),
    ],
)
def test_a_picture_is_seen(server, path, body):
    status, answer = server.post(path, {**body, "stream": False})
    assert status == 200, answer
    said = json.dumps({key: answer[key] for key in answer.keys() & TOLD})
    assert re.findall(r'": "(\d)"', said) == ["7"]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # OpenAI's translations
@pytest.mark.parametrize("endpoint", ["transcriptions", "translations"])
def test_what_is_heard_is_written_down(server, endpoint):
    with server.openai() as client:
        create = getattr(client.audio, endpoint).create
        with SOUND.open("rb") as file:
            assert create(model="any", file=file).text == "3"
        assert create(model="any", file=SOUND, response_format="text").strip() == "3"
        with pytest.raises(openai.BadRequestError, match="not when"):
            create(model="any", file=SOUND, response_format="verbose_json")
        with pytest.raises(openai.BadRequestError, match="needed a sound"):
            create(model="any", file=("a.wav", b"noise"))


def test_what_is_heard_is_streamed(server):
    with server.openai() as client:
        told = list(client.audio.transcriptions.create(model="any", file=SOUND, stream=True))
    assert (told[-1].type, told[-1].text) == ("transcript.text.done", "3")
