"""Whatever stands wherever in a request: it is read, or refused with the place named."""

import copy
import json

import pytest
from support.answer_events import FULL, META, written

from hlwq_mlx.dialog.messages import normalize_messages, normalize_tools
from hlwq_mlx.errors import RequestError
from hlwq_mlx.server.dialects import (
    anthropic,
    ollama_chat,
    ollama_generate,
    openai_chat,
    responses,
)
from hlwq_mlx.server.events import join

PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "is_error": True, "content": [PICTURE]}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "a", "function": {"name": "f", "arguments": {"a": 1}}}
FORMAT = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
BODIES = {
    anthropic: {
        "system": [{"type": "text", "text": "x"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x"}, PICTURE]},
            {"role": "system", "content": "x"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "x", "signature": "x"},
                    {"type": "tool_use", "id": "a", "name": "f", "input": {"a": 1}},
                ],
            },
            {"role": "user", "content": [RESULT, {"type": "text", "text": "x"}]},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "f"},
        "stop_sequences": ["x"],
        "thinking": {"type": "adaptive"},
        "output_config": FORMAT,
    },
    responses: {
        "instructions": "x",
        "input": [
            {"role": "developer", "content": "x"},
            {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]},
            {"type": "message", "role": "assistant", "content": "x"},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "x"},
            {"type": "custom_tool_call", "call_id": "b", "name": "c", "input": "x"},
            {
                "type": "custom_tool_call_output",
                "call_id": "b",
                "output": [{"type": "input_text", "text": "x"}],
            },
            {"type": "additional_tools", "tools": [{"type": "custom", "name": "c"}]},
        ],
        "tools": [
            {"type": "function", "name": "f", "parameters": {"type": "object"}},
            {"type": "custom", "name": "d", "format": {"type": "grammar", "definition": "x"}},
            {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "g"}]},
        ],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "f"}],
        },
        "text": FORMAT,
        "reasoning": {"effort": "low"},
        "metadata": {"a": "x"},
    },
    ollama_chat: {
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": "x", "images": ["AA"]},
            {"role": "assistant", "thinking": "x", "images": ["AA"]},
            {"role": "assistant", "content": "x", "tool_calls": [CALL]},
            {"role": "tool", "tool_name": "f", "content": "x"},
        ],
        "tools": [FUNCTION],
        "format": {"type": "object"},
        "options": {"seed": 1, "stop": ["x"], "mirostat": 0},
        "keep_alive": "5m",
        "think": "low",
    },
    ollama_generate: {"prompt": "x", "system": "x", "images": ["AA"], "options": {"top_k": 1}},
    openai_chat: {
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "a", "content": "x"},
        ],
        "tools": [FUNCTION],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "stop": ["x"],
    },
}
JUNK = (None, 0, -1.5, True, "", "x", "text", "assistant", "custom", [], [1], ["x"], {}, [{}])
JUNK += ({"type": "text"}, {"type": ["x"]}, {"type": {}}, [[]])


def places(value, path=()):
    """Yield the path of everything within a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inside:
        yield (*path, key)
        if isinstance(each, dict | list):
            yield from places(each, (*path, key))


def put(body, path, junk):
    changed = holder = copy.deepcopy(body)
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = junk
    return changed


@pytest.mark.parametrize("dialect", BODIES, ids=lambda dialect: dialect.__name__.split(".")[-1])
def test_a_request_is_read_or_refused_wherever_there_is_junk(dialect):
    written(dialect, dialect.read(BODIES[dialect]), FULL)
    for path in places(BODIES[dialect]):
        for junk in JUNK:
            body = put(BODIES[dialect], path, junk)
            try:
                request = dialect.read(body)
                normalize_tools(request.tools)
                if request.messages:
                    normalize_messages(request.messages)
            except RequestError as problem:
                assert str(problem).startswith("["), (path, junk)
                assert " needed " in str(problem), (path, junk)
                continue
            assert json.dumps(dialect.whole(request, [join(FULL)], META)), (path, junk)
