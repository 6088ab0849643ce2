"""The official clients of three dialects, speaking with a server on the demo."""

import json

import anthropic
import demo
import jsonschema
import ollama
import openai
import pytest
from served import running

from scripts.training import tinyworld

QUESTION = [{"role": "user", "content": demo.CARD_QUESTION}]
HELLO = [{"role": "user", "content": "Hello!"}]
GREETING = "Hello! Tell me a story and ask me about it."
STORY = [{"role": "user", "content": f"{demo.STORY}\n{demo.STORY_QUESTION}"}]
SUM = "What is 1761+2884?"
RESULT = "4645"
SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
    },
    "required": ["color", "count"],
    "additionalProperties": False,
}
FUNCTION = tinyworld.CALCULATOR["function"]


@pytest.fixture(scope="module")
def server():
    with running(demo.folder()) as made:
        yield made


@pytest.fixture(scope="module")
def gpt(server):
    with server.openai() as client:
        yield client


@pytest.fixture(scope="module")
def claude(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def llama(server):
    client = ollama.Client(host=server.url)
    yield client
    client._client.close()


def chat(gpt, messages, **options):
    return gpt.chat.completions.create(model="any", messages=messages, **options)


def valid(text):
    jsonschema.validate(json.loads(text), SCHEMA)
    assert "\n" not in text
    return True


# OpenAI


def test_gpt_whole_and_streamed_are_the_same(gpt):
    whole = chat(gpt, HELLO, logprobs=True, top_logprobs=2)
    assert whole.choices[0].message.content == GREETING
    stream = chat(
        gpt,
        HELLO,
        logprobs=True,
        top_logprobs=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    said = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(each.delta.content or "" for each in said) == GREETING
    scores = [score for each in said if each.logprobs for score in each.logprobs.content]
    assert scores == whole.choices[0].logprobs.content
    assert "".join(score.token for score in scores) == GREETING
    assert all(len(score.top_logprobs) == 2 for score in scores)
    assert scores[0].logprob == scores[0].top_logprobs[0].logprob
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert said[-1].finish_reason == whole.choices[0].finish_reason == "stop"


def test_gpt_calls_a_tool_and_uses_its_result(gpt):
    messages = [{"role": "user", "content": SUM}]
    asked = chat(gpt, messages, tools=[tinyworld.CALCULATOR])
    message = asked.choices[0].message
    assert (asked.choices[0].finish_reason, message.content) == ("tool_calls", None)
    call = message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "calculator",
        {"expression": "1761+2884"},
    )
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    told = chat(gpt, messages, tools=[tinyworld.CALCULATOR])
    assert told.choices[0].message.content == f"The answer is {RESULT}."
    assert told.usage.prompt_tokens_details.cached_tokens >= asked.usage.prompt_tokens - 1


@pytest.mark.parametrize("streamed", [False, True])
def test_gpt_is_made_to_call(gpt, streamed):
    parameters = {**SCHEMA, "$defs": {}}
    tool = {"type": "function", "function": {"name": "paint", "parameters": parameters}}
    named = {"type": "function", "function": {"name": "paint"}}
    asked = chat(
        gpt, HELLO, tools=[tool, tinyworld.CALCULATOR], tool_choice=named, stream=streamed,
        parallel_tool_calls=False, temperature=1.0, seed=3, max_tokens=200,
    )  # fmt: skip
    if streamed:
        pieces = [call for c in asked for call in c.choices[0].delta.tool_calls or ()]
        name = pieces[0].function.name
        arguments = "".join(piece.function.arguments for piece in pieces)
    else:
        function = asked.choices[0].message.tool_calls[0].function
        name, arguments = function.name, function.arguments
    assert name == "paint"
    jsonschema.validate(json.loads(arguments), SCHEMA)


def test_gpt_fills_a_schema_behind_a_thought(gpt):
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    asked = chat(gpt, STORY, response_format=wanted, reasoning_effort="high")
    message = asked.choices[0].message
    assert valid(message.content)
    assert message.reasoning_content == demo.STORY_THOUGHT
    assert asked.usage.completion_tokens_details.reasoning_tokens > 5


def test_gpt_answers_an_object(gpt):
    asked = chat(gpt, HELLO, response_format={"type": "json_object"}, max_tokens=300)
    text = asked.choices[0].message.content
    assert asked.choices[0].finish_reason == "length" or isinstance(json.loads(text), dict)
    assert "\n\n" not in text


def test_gpt_is_told_what_no_grammar_can_say(gpt):
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="not"):
        chat(gpt, HELLO, response_format=wanted)


def test_gpt_draws_the_same_by_the_same_seed(gpt):
    options = {"temperature": 2.0, "seed": 7, "n": 3, "max_tokens": 12}
    first, again = (chat(gpt, HELLO, **options) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.message.content for choice in again.choices] == texts
    assert len(set(texts)) > 1
    assert [choice.index for choice in first.choices] == [0, 1, 2]


def test_gpt_continues_text_and_begun_answers(gpt):
    begun = chat(gpt, [*HELLO, {"role": "assistant", "content": "Hello! Tell me a"}])
    assert begun.choices[0].message.content == " story and ask me about it."
    text = gpt.completions.create(model="any", prompt="Tom had a red", max_tokens=5, logprobs=1)
    assert text.choices[0].text and len(text.choices[0].logprobs.tokens) == 5


def test_gpt_stops_at_a_text(gpt):
    asked = chat(gpt, HELLO, stop=["story"])
    assert asked.choices[0].message.content == "Hello! Tell me a "
    assert asked.choices[0].finish_reason == "stop"


def test_gpt_bans_a_token(gpt):
    first = chat(gpt, HELLO, logprobs=True).choices[0].logprobs.content[0]
    token = demo.load()[1].encode(first.token, add_special_tokens=False)[0]
    other = chat(gpt, HELLO, logit_bias={str(token): -100})
    assert not other.choices[0].message.content.startswith(first.token)


def test_gpt_responses(gpt):
    whole = gpt.responses.create(model="any", input="Hello!")
    assert whole.output_text == GREETING
    with gpt.responses.stream(model="any", input="Hello!") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == GREETING
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    told = gpt.responses.create(
        model="any",
        input=STORY,
        text={"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
    )
    assert valid(told.output_text)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        gpt.responses.create(model="any", input="Hi", previous_response_id="resp_1")


def test_gpt_embeddings_are_refused_by_name(gpt):
    with pytest.raises(openai.InternalServerError) as refused:
        gpt.embeddings.create(model="any", input="Hi")
    assert refused.value.status_code == 501
    assert "embeddings" in str(refused.value)


# Anthropic


def test_claude_whole_and_streamed_are_the_same(claude):
    asked = {"model": "claude-demo", "max_tokens": 64, "messages": HELLO}
    whole = claude.messages.create(**asked)
    assert (whole.content[0].text, whole.stop_reason) == (GREETING, "end_turn")
    with claude.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == GREETING
        final = stream.get_final_message()
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = claude.messages.count_tokens(model="any", messages=HELLO)
    assert counted.input_tokens == final.usage.input_tokens + final.usage.cache_read_input_tokens


def test_claude_thinks(claude):
    whole = claude.messages.create(
        model="any",
        max_tokens=99,
        messages=STORY,
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    thought, text = whole.content
    assert (thought.type, thought.thinking) == ("thinking", demo.STORY_THOUGHT)
    assert text.text == demo.STORY_ANSWER
    history = [*STORY, {"role": "assistant", "content": whole.content}, *HELLO]
    assert claude.messages.create(model="any", max_tokens=9, messages=history).content


def test_claude_uses_a_tool(claude):
    tool = {
        "name": "calculator",
        "description": FUNCTION["description"],
        "input_schema": FUNCTION["parameters"],
    }
    messages = [{"role": "user", "content": SUM}]
    with claude.messages.stream(
        model="any", max_tokens=99, messages=messages, tools=[tool]
    ) as stream:
        asked = stream.get_final_message()
    call = asked.content[-1]
    assert (asked.stop_reason, call.input) == ("tool_use", {"expression": "1761+2884"})
    told = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
    messages += [
        {"role": "assistant", "content": asked.content},
        {"role": "user", "content": [told]},
    ]
    answer = claude.messages.create(model="any", max_tokens=99, messages=messages, tools=[tool])
    assert answer.content[0].text == f"The answer is {RESULT}."


def test_claude_fills_a_schema(claude):
    wanted = {"format": {"type": "json_schema", "schema": SCHEMA}}
    whole = claude.messages.create(
        model="any", max_tokens=99, messages=STORY, extra_body={"output_config": wanted}
    )
    assert valid(whole.content[0].text)


def test_claude_stops_at_a_text(claude):
    whole = claude.messages.create(
        model="any", max_tokens=64, messages=HELLO, stop_sequences=["story"]
    )
    assert (whole.stop_reason, whole.stop_sequence) == ("stop_sequence", "story")
    cut = claude.messages.create(model="any", max_tokens=2, messages=HELLO)
    assert cut.stop_reason == "max_tokens"


def test_claude_is_told_of_errors(claude):
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.messages.create(model="any", max_tokens=9, messages=[])
    assert refused.value.response.json()["error"]["type"] == "invalid_request_error"


def test_claude_finds_the_model(claude):
    ids = [model.id for model in claude.models.list(limit=1000)]
    assert "claude-demo-PQ5" in ids


# Ollama


def test_llama_whole_and_streamed_are_the_same(llama):
    whole = llama.chat("demo-PQ5", HELLO)
    assert whole.message.content == GREETING
    pieces = list(llama.chat("demo-PQ5", HELLO, stream=True))
    assert "".join(piece.message.content for piece in pieces) == GREETING
    assert pieces[-1].done_reason == "stop"
    assert pieces[-1].eval_count == whole.eval_count
    assert llama.generate("demo-PQ5", "Hello!").response == GREETING


def test_llama_thinks_and_uses_a_tool(llama):
    thinking = llama.chat("demo-PQ5", STORY, think=True)
    assert thinking.message.thinking == demo.STORY_THOUGHT
    messages = [{"role": "user", "content": SUM}]
    asked = llama.chat("demo-PQ5", messages, tools=[tinyworld.CALCULATOR])
    call = asked.message.tool_calls[0].function
    assert (call.name, call.arguments) == ("calculator", {"expression": "1761+2884"})
    messages += [asked.message, {"role": "tool", "tool_name": "calculator", "content": RESULT}]
    told = llama.chat("demo-PQ5", messages, tools=[tinyworld.CALCULATOR])
    assert told.message.content == f"The answer is {RESULT}."


def test_llama_fills_a_schema(llama):
    assert valid(llama.chat("demo-PQ5", STORY, format=SCHEMA).message.content)
    assert valid(llama.generate("demo-PQ5", "Hello!", format=SCHEMA).response)


def test_llama_continues_a_raw_prompt(llama):
    raw = llama.generate("demo-PQ5", "<bos><|turn>user\nHello!<turn|>\n<|turn>model\n", raw=True)
    assert raw.response == GREETING


def test_llama_lists_what_there_is(llama, server):
    assert [model.model for model in llama.list().models] == ["demo-PQ5:latest"]
    shown = llama.show("demo-PQ5")
    assert {"completion", "tools", "vision", "thinking"} <= set(shown.capabilities)
    assert shown.modelinfo["gemma4.context_length"] == 4096
    assert llama.ps().models[0].context_length == 4096
    assert [step.status for step in llama.pull("demo-PQ5", stream=True)][-1] == "success"
    version = server.ask("/api/version")[1]["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)


def test_llama_is_told_of_errors(llama):
    with pytest.raises(ollama.ResponseError, match="needed demo-PQ5"):
        llama.pull("other")
    with pytest.raises(ollama.ResponseError, match="embeddings") as refused:
        llama.embed("demo-PQ5", "Hi")
    assert refused.value.status_code == 501
