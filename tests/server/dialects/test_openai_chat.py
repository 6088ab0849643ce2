"""OpenAI's chat completions: every field acts, or is refused by name."""

import math

import pytest

from hlwq_mlx.engine.decoding import Decoding
from hlwq_mlx.engine.sampling import Sampling
from hlwq_mlx.errors import RequestError
from hlwq_mlx.server.dialects import openai_chat
from hlwq_mlx.server.dialects.dialect import Dialect
from hlwq_mlx.server.request import Calls, Penalties, ToolChoice

DIALECT: Dialect = openai_chat
USER = {"role": "user", "content": "Hi"}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def read(**options):
    return DIALECT.read({"messages": [USER], **options})


@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        ({}, "sampling", {}),
        ({"model": "gpt-4o"}, "model", "gpt-4o"),
        ({"temperature": 0}, "sampling", {"temp": 0}),
        (
            {"top_p": 0.5, "top_k": 40, "min_p": 0.1},
            "sampling",
            {"top_p": 0.5, "top_k": 40, "min_p": 0.1},
        ),
        ({"top_k": -1}, "sampling", {"top_k": 0}),
        ({"temperature": None, "top_p": None}, "sampling", {}),
        ({}, "penalties", Penalties()),
        (
            {"repetition_penalty": 1.1, "presence_penalty": -2, "frequency_penalty": 0.5},
            "penalties",
            Penalties(1.1, -2.0, 0.5),
        ),
        ({"repeat_penalty": 1.2}, "penalties", Penalties(1.2)),
        ({"repetition_penalty": 0}, "penalties", Penalties()),
        ({"logit_bias": {"5": -100, "7": 1.5}}, "logit_bias", {5: -100.0, 7: 1.5}),
        ({}, "seed", None),
        ({"seed": 42}, "seed", 42),
        ({"seed": 42.0}, "seed", 42),
        ({"seed": -1}, "seed", None),
        ({"seed": -2}, "seed", 2**63 - 2),
        ({"seed": 10**400 + 7}, "seed", 7),
        ({}, "max_tokens", None),
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"max_tokens": -1}, "max_tokens", None),
        ({"max_tokens": None}, "max_tokens", None),
        ({"max_tokens": 5, "max_completion_tokens": 7}, "max_tokens", 7),
        ({"max_tokens": 5, "max_completion_tokens": None}, "max_tokens", 5),
        ({"max_tokens": 5, "max_completion_tokens": -1}, "max_tokens", None),
        ({"stop": "END"}, "stop", ["END"]),
        ({"stop": ["a", "b"]}, "stop", ["a", "b"]),
        ({"stop": ""}, "stop", []),
        ({"stop": []}, "stop", []),
        ({"n": 3}, "count", 3),
        ({}, "schema", None),
        ({"response_format": {"type": "text"}}, "schema", None),
        ({"response_format": {"type": "json_object"}}, "schema", {}),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "schema", SCHEMA),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                }
            },
            "schema",
            SCHEMA,
        ),
        ({}, "logprobs", None),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": True, "top_logprobs": 20}, "logprobs", 20),
        ({"logprobs": False, "top_logprobs": 0}, "logprobs", None),
        ({}, "thinking", None),
        ({"reasoning_effort": "none"}, "thinking", False),
        ({"reasoning_effort": "minimal"}, "thinking", False),
        ({"reasoning_effort": "low"}, "thinking", True),
        ({"reasoning_effort": "medium"}, "thinking", True),
        ({"reasoning_effort": "high"}, "thinking", True),
        ({"reasoning": {"effort": "high"}}, "thinking", True),
        ({"reasoning": {"enabled": False}}, "thinking", False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "thinking", True),
        (
            {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"},
            "thinking",
            False,
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": True, "extra": 1}},
            "template_options",
            {"extra": 1},
        ),
        ({}, "is_streamed", False),
        ({"stream": True}, "is_streamed", True),
        ({}, "with_usage", True),
        ({"stream": True}, "with_usage", False),
        ({"stream": True, "stream_options": {"include_usage": True}}, "with_usage", True),
        ({"stream": True, "stream_options": {"include_usage": None}}, "with_usage", False),
        ({"tools": [NOW]}, "tools", [NOW]),
        ({"functions": [{"name": "now"}]}, "tools", [{"name": "now"}]),
        ({}, "parallel_calls", True),
        ({"parallel_tool_calls": False}, "parallel_calls", False),
        ({}, "tool_choice", ToolChoice()),
        ({"tool_choice": "none"}, "tool_choice", ToolChoice(Calls.NONE)),
        ({"tool_choice": "auto", "tools": [NOW]}, "tool_choice", ToolChoice(Calls.AUTO)),
        ({"tool_choice": "required", "tools": [NOW]}, "tool_choice", ToolChoice(Calls.REQUIRED)),
        (
            {"tool_choice": {"type": "function", "function": {"name": "now"}}, "tools": [NOW]},
            "tool_choice",
            ToolChoice(Calls.REQUIRED, "now"),
        ),
        (
            {"tool_choice": {"type": "function", "name": "now"}, "tools": [{"name": "now"}]},
            "tool_choice",
            ToolChoice(Calls.REQUIRED, "now"),
        ),
        (
            {"function_call": {"name": "now"}, "functions": [{"name": "now"}]},
            "tool_choice",
            ToolChoice(Calls.REQUIRED, "now"),
        ),
        (
            {"function_call": "none", "functions": [{"name": "now"}]},
            "tool_choice",
            ToolChoice(Calls.NONE),
        ),
    ],
)
def test_every_option_acts(options, field, expected):
    assert getattr(read(**options), field) == expected


def test_what_clients_send_by_default_is_let_pass():
    """LibreChat's user and penalties, the Agents SDK's store, what OpenAI's own models know."""
    defaults = {
        "user": "u1",
        "safety_identifier": "s",
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
        "service_tier": "auto",
        "store": False,
        "modalities": ["text"],
        "verbosity": "medium",
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_p": 1,
        "temperature": 1,
        "n": 1,
        "audio": None,
        "logit_bias": None,
        "tools": [],
        "stop": None,
        "seed": None,
        "response_format": None,
        "stream_options": None,
        "tool_choice": None,
        "logprobs": None,
        "cache_prompt": True,
        "draft_model": "default_model",
        "xtc_probability": 0.0,
        "unknown": {},
    }
    plain = read(top_p=1, temperature=1)
    assert read(**defaults) == plain


@pytest.mark.parametrize(
    ("options", "param", "told"),
    [
        ({"messages": None}, "messages", "needed a value, got none"),
        ({"messages": []}, "messages", "needed at least 1 item"),
        ({"messages": "Hi"}, "messages", "needed a list, got 'Hi'"),
        ({"messages": ["Hi"]}, "messages[0]", "needed an object, got 'Hi'"),
        ({"temperature": "0.7"}, "temperature", "needed a number, got '0.7'"),
        ({"temperature": True}, "temperature", "needed a number, got True"),
        ({"temperature": math.nan}, "temperature", "needed a finite number"),
        ({"temperature": math.inf}, "temperature", "needed"),
        ({"temperature": 10**400}, "temperature", "needed a number"),
        ({"temperature": -0.1}, "temperature", "needed at least 0"),
        ({"temperature": [1]}, "temperature", "needed a number"),
        ({"top_p": 1.1}, "top_p", "needed at most 1"),
        ({"min_p": -1}, "min_p", "needed at least 0"),
        ({"top_k": -2}, "top_k", "needed at least -1"),
        ({"top_k": 1.5}, "top_k", "needed a whole number"),
        ({"repetition_penalty": 101}, "repetition_penalty", "needed at most 10"),
        ({"presence_penalty": -3}, "presence_penalty", "needed at least -2"),
        ({"frequency_penalty": 1e9}, "frequency_penalty", "needed at most 2"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "needed a whole number"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1", "needed at least 0"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "needed at most 100"),
        ({"logit_bias": {"1": "5"}}, "logit_bias.1", "needed a number"),
        ({"logit_bias": [1]}, "logit_bias", "needed an object"),
        ({"seed": "1"}, "seed", "needed a number"),
        ({"seed": 1.5}, "seed", "needed a whole number"),
        ({"max_tokens": 0}, "max_tokens", "needed at least 1, or -1"),
        ({"max_tokens": -2}, "max_tokens", "needed at least 1, or -1"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "needed at least 1, or -1"),
        ({"stop": [1]}, "stop[0]", "needed text, got 1"),
        ({"stop": ["a", ""]}, "stop[1]", "needed text that is not empty"),
        ({"stop": ["a"] * 65}, "stop", "needed at most 64 items"),
        ({"n": 0}, "n", "needed at least 1"),
        ({"n": 17}, "n", "needed at most 16"),
        ({"stream": "yes"}, "stream", "needed true or false"),
        ({"stream_options": []}, "stream_options", "needed an object"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
        ({"response_format": "json"}, "response_format", "needed an object"),
        ({"response_format": {}}, "response_format.type", "needed a value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_object'"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema.schema",
            "JSON",
        ),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "needed at most 20"),
        ({"top_logprobs": 3}, "top_logprobs", "needed logprobs to be true"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "'none'"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "variables"),
        ({"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs", "variables"),
        (
            {"chat_template_kwargs": {"enable_thinking": "yes"}},
            "chat_template_kwargs.enable_thinking",
            "true or false",
        ),
        ({"tools": {}}, "tools", "needed a list"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "function"),
        ({"tool_choice": "any"}, "tool_choice", "none, auto, required or a function"),
        ({"tool_choice": "required"}, "tools", "a tool that must be called"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice", "its name"),
        ({"tool_choice": {"name": "x"}, "tools": [NOW]}, "tool_choice", "one of the tools (now)"),
        ({"function_call": {"name": "x"}}, "function_call", "one of the tools (none)"),
        ({"audio": {"voice": "alloy"}}, "audio", "does not speak"),
        ({"modalities": ["text", "audio"]}, "modalities", "does not speak"),
        ({"store": True}, "store", "Nothing is stored"),
        ({"previous_response_id": "r"}, "previous_response_id", "Nothing is stored"),
        ({"prediction": {"type": "content"}}, "prediction", "needed nothing"),
        ({"web_search_options": {}}, "web_search_options", "as a tool"),
        ({"verbosity": "low"}, "verbosity", "in words"),
        ({"adapters": "x"}, "adapters", "no other"),
        ({"draft_model": "x"}, "draft_model", "no other"),
        ({"grammar": "root ::= x"}, "grammar", "response_format"),
        ({"guided_json": {}}, "guided_json", "response_format"),
        ({"xtc_probability": 0.5}, "xtc_probability", "min_p"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(options, param, told):
    with pytest.raises(RequestError) as caught:
        read(**options)
    body = DIALECT.error(caught.value, 400)["error"]
    assert (body["param"], body["type"], body["code"]) == (param, "invalid_request_error", None)
    assert told in body["message"]
    assert len(body["message"]) < 400


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "top_p": 0, "min_p": 0, "top_k": -1, "repetition_penalty": 0},
        {"presence_penalty": -2, "frequency_penalty": -2, "logit_bias": {"0": -100}, "seed": -9},
        {"temperature": 100, "top_p": 1, "min_p": 1, "top_k": 1 << 20, "repetition_penalty": 10},
        {"presence_penalty": 2, "frequency_penalty": 2, "logit_bias": {"0": 100}, "seed": 2**70},
    ],
)
def test_what_is_taken_the_engine_takes(options):
    request = read(**options)
    penalties = request.penalties
    Decoding(
        Sampling().override(**request.sampling),
        repetition_penalty=penalties.repetition,
        presence_penalty=penalties.presence,
        frequency_penalty=penalties.frequency,
        logit_bias=request.logit_bias,
        seed=request.seed,
    )
