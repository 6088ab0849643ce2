"""The server that real assistants are tried with: it starts, forces a call and records it."""

import json
from pathlib import Path

import demo
from served import running

from scripts.clients import forced_server

TOOL = {"type": "function", "function": {"name": "find_mark", "parameters": {"type": "object"}}}


def test_a_call_is_forced_and_recorded(tmp_path):
    command = (str(Path(forced_server.__file__)), str(tmp_path))
    with running(demo.folder(), server=command) as served:
        question = {"messages": [{"role": "user", "content": "Find it."}], "tools": [TOOL]}
        status, answer = served.post("/v1/chat/completions", question | {"max_tokens": 60})
    assert status == 200
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "find_mark"
    recorded = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert [each["request"]["tools"] for each in recorded if each["request"]] == [[TOOL]]
