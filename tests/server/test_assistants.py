"""Prompts of requests in the shapes of real assistants, as `scripts/clients` recorded them.

The bodies are our own; of the assistants are the places of instructions, the kinds of tools and
items, and what changes from request to request.
"""

import base64
import io
import json
from itertools import chain

import demo
import pytest
from PIL import Image

from hlwq_mlx.folder import side_files
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.media.origin import Access
from hlwq_mlx.media.processor import Processor
from hlwq_mlx.server.dialects import anthropic, openai_chat, responses
from hlwq_mlx.server.prompts import PromptMaker

RECORD = {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}}
PARAMETERS = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"command": {"type": "string"}, "metadata": RECORD},
    "required": ["command"],
    "additionalProperties": False,
}
COMMAND = {"command": "ls"}
ARGUMENTS = json.dumps(COMMAND)
MANUAL = "A command is executed. "
CACHED = {"cache_control": {"type": "ephemeral"}}


def picture():
    held = io.BytesIO()
    Image.new("RGB", (48, 48)).save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()


PICTURE = picture()
DATA_URL = f"data:image/png;base64,{PICTURE}"


def claude(number, result):
    """Claude Code: a line that changes, instructions behind the question, kept thoughts."""
    question = [{"type": "text", "text": "<system-reminder>\nIt is 3.\n</system-reminder>\n\n"}]
    question += [{"type": "text", "text": "List.", **(CACHED if number == 1 else {})}]
    thought = {"type": "thinking", "thinking": "A list is wanted.", "signature": "aGx3cQ=="}
    call = {"type": "tool_use", "id": "call_1", "name": "Bash", "input": COMMAND}
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    content = [{"type": "image", "source": source}] if result is DATA_URL else result
    told = {"type": "tool_result", "tool_use_id": "call_1", "content": content, "is_error": False}
    turns = [
        [
            {"role": "user", "content": question},
            {"role": "system", "content": "There are agents."},
        ],
        [
            {"role": "assistant", "content": [thought, call]},
            {"role": "user", "content": [told | CACHED]},
        ],
        [{"role": "assistant", "content": "Done."}, {"role": "user", "content": "And now?"}],
    ]
    return {
        "model": "claude-gemma",
        "max_tokens": 32,
        "stream": True,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "{}"},
        "system": [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2; cch={number};"},
            {"type": "text", "text": "You help.", **CACHED},
        ],
        "tools": [{"name": "Bash", "description": MANUAL, "input_schema": PARAMETERS}],
        "messages": list(chain(*turns[:number])),
    }


def codex(number, result):
    """Codex: instructions as items, tools of all kinds, a thought without its text encrypted."""

    def said(role, *texts, kind="input_text"):
        content = [{"type": kind, "text": text} for text in texts]
        return {"type": "message", "id": f"msg_{role}", "role": role, "content": content}

    call = {"type": "function_call", "status": "completed", "id": "fc_1", "call_id": "call_1"}
    thought = {"type": "reasoning", "id": "rs_1", "content": None, "encrypted_content": None}
    thought["summary"] = [{"type": "summary_text", "text": "A list is wanted."}]
    output = [{"type": "input_image", "image_url": DATA_URL}] if result is DATA_URL else result
    told = {"type": "function_call_output", "id": "fco_1", "call_id": "call_1", "output": output}
    tool = {"type": "function", "name": "run", "description": MANUAL, "parameters": PARAMETERS}
    turns = [
        [
            said("developer", "You help."),
            said("developer", "There are skills.", "No sandbox."),
            said("user", "<cwd>/x</cwd>"),
            said("user", "List."),
        ],
        [thought, {**call, "name": "run", "arguments": ARGUMENTS}, told],
        [said("assistant", "Done.", kind="output_text"), said("user", "And now?")],
    ]
    return {
        "model": "gemma",
        "stream": True,
        "store": False,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "high", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "x",
        "client_metadata": {},
        "tools": [
            {**tool, "strict": False},
            {"type": "namespace", "name": "agents", "description": "", "tools": [tool]},
            {"type": "web_search", "external_web_access": True},
        ],
        "input": list(chain(*turns[:number])),
    }


def opencode(number, result):
    """opencode and Continue: OpenAI's own form."""
    function = {"name": "bash", "description": MANUAL, "parameters": PARAMETERS}
    called = {"name": "bash", "arguments": ARGUMENTS}
    call = {"id": "call_1", "type": "function", "function": called}
    content = [{"type": "image_url", "image_url": {"url": DATA_URL}}]
    content = content if result is DATA_URL else result
    turns = [
        [{"role": "system", "content": "You help."}, {"role": "user", "content": "List."}],
        [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": content},
        ],
        [{"role": "assistant", "content": "Done."}, {"role": "user", "content": "And now?"}],
    ]
    return {
        "model": "gemma",
        "max_tokens": 32,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tool_choice": "auto",
        "tools": [{"type": "function", "function": function}],
        "messages": list(chain(*turns[:number])),
    }


@pytest.fixture(scope="module")
def maker():
    folder = Folder.open(demo.folder())
    tokenizer = side_files.open_tokenizer(folder)
    return PromptMaker(folder.args, tokenizer, Processor(), Access(files=False), 4000)


@pytest.mark.parametrize("result", ["a.txt\n", DATA_URL], ids=["text", "picture"])
@pytest.mark.parametrize(
    ("dialect", "body"),
    [(anthropic, claude), (responses, codex), (openai_chat, opencode)],
    ids=lambda each: each.__name__.rpartition(".")[2],
)
def test_what_was_read_of_a_request_serves_the_next_ones(maker, dialect, body, result):
    first, told, later = (
        maker.make(dialect.read(body(number, result))).read for number in (1, 2, 3)
    )
    begun = list(first.keys)
    assert list(told.keys)[: len(begun)] == begun
    assert list(later.keys)[: len(begun)] == begun
    text = maker.tokenizer.decode(told.ids)
    assert text.count("a.txt") == (result is not DATA_URL)
    assert len(told.media) == (result is DATA_URL)
