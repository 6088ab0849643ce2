"""Messages spelled by the demo's chat template, and encoded.

Expected strings are gemma4_architecture §5.1's, which are the canonical template's output.
"""

import re

import pytest
import tiny_tokenizer

from hlwq_mlx.dialog import template
from hlwq_mlx.dialog.tokenizer import load_tokenizer
from hlwq_mlx.errors import RequestError

Q = '<|"|>'
HI = {"role": "user", "content": "Hi"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "City"},
                "days": {"type": "integer"},
                "opt": {
                    "type": "object",
                    "properties": {"x": {"type": "number", "nullable": True}},
                    "required": ["x"],
                },
                "tags": {"type": "array", "items": {"type": "string"}},
                "unit": {"type": "string", "enum": ["c", "f"]},
            },
            "required": ["city"],
        },
    },
}
DECLARATION = (
    f"<|tool>declaration:get_weather{{description:{Q}Get weather{Q},parameters:{{properties:{{"
    f"city:{{description:{Q}City{Q},type:{Q}STRING{Q}}},days:{{type:{Q}INTEGER{Q}}},"
    f"opt:{{properties:{{x:{{nullable:true,type:{Q}NUMBER{Q}}}}},required:[{Q}x{Q}],"
    f"type:{Q}OBJECT{Q}}},tags:{{items:{{type:{Q}STRING{Q}}},type:{Q}ARRAY{Q}}},"
    f"unit:{{enum:[{Q}c{Q},{Q}f{Q}],type:{Q}STRING{Q}}}}},required:[{Q}city{Q}],"
    f"type:{Q}OBJECT{Q}}}}}<tool|>"
)
ARGUMENTS = {"city": 'Paris, "FR"', "days": 2, "l": ["a", 1], "o": {"k": "v"}, "ok": True}
CALLED = (
    "<|turn>model\n<|tool_call>call:get_weather{"
    f'city:{Q}Paris, "FR"{Q},days:2,l:[{Q}a{Q},1],o:{{k:{Q}v{Q}}},ok:true}}<tool_call|>'
)
ASKED = "<bos><|turn>user\nHi<turn|>\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer.write(tmp_path_factory.mktemp("tokenizer")))


def render(*arguments, **options):
    return template.render(*arguments, **options).text


def call(arguments=ARGUMENTS, **more):
    function = {"name": "get_weather", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "c1", "function": function}], **more}


def result(content, **more):
    return {"role": "tool", "tool_call_id": "c1", "content": content, **more}


def test_render_plain(tokenizer):
    assert render(tokenizer, [HI]) == f"{ASKED}<|turn>model\n"


def test_render_system_and_thinking(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, HI]
    assert render(tokenizer, messages, thinking=True) == (
        "<bos><|turn>system\n<|think|>\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"
    )


def test_render_thinking_alone(tokenizer):
    assert render(tokenizer, [HI], thinking=True) == (
        "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"
    )


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("content", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_render_instructions_in_any_form(tokenizer, role, content):
    assert render(tokenizer, [{"role": role, "content": content}, HI]) == (
        "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"
    )


@pytest.mark.parametrize(("image", "audio"), [("image", "audio"), ("image_url", "input_audio")])
def test_render_media(tokenizer, image, audio):
    parts = [
        {"type": image, image: {"url": "https://x/a.png"}},
        {"type": "text", "text": " What? "},
        {"type": audio, audio: {"data": "UklGRg==", "format": "wav"}},
        {"type": "video", "path": "a.mp4"},
    ]
    found = template.render(tokenizer, [{"role": "user", "content": parts}])
    assert found.text == (
        "<bos><|turn>user\n<|image|>What?<|audio|><|video|><turn|>\n<|turn>model\n"
    )
    assert [medium.kind for medium in found.media] == ["image", "audio", "video"]


def test_media_are_in_the_order_in_which_they_are_spelled(tokenizer):
    messages = [
        {"role": "user", "content": [{"type": "image", "path": "first"}, "Hi"]},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": ["Hi", {"type": "audio", "path": "second"}]},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": [{"type": "image", "path": "third"}]},
    ]
    found = template.render(tokenizer, messages)
    assert [medium.source for medium in found.media] == ["first", "second", "third"]
    assert re.findall(r"<\|(?:image|audio)\|>", found.text) == [
        *("<|image|>", "<|audio|>", "<|image|>")
    ]


def test_render_history_without_its_thoughts(tokenizer):
    answer = {"role": "assistant", "content": "<|channel>thought\nHm\n<channel|>A1"}
    kept_apart = {"role": "assistant", "content": "A1", "reasoning_content": "Hm"}
    for message in (answer, kept_apart):
        assert render(tokenizer, [HI, message, HI]) == (
            f"{ASKED}<|turn>model\nA1<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"
        )


def test_render_tools(tokenizer):
    tools = f"<|turn>system\n{{}}{DECLARATION.replace('{', '{{').replace('}', '}}')}<turn|>\n"
    rest = "<|turn>user\nHi<turn|>\n<|turn>model\n"
    assert render(tokenizer, [HI], tools=[WEATHER]) == f"<bos>{tools.format('')}{rest}"
    system = {"role": "system", "content": "Be brief."}
    assert render(tokenizer, [system, HI], tools=[WEATHER], thinking=True) == (
        f"<bos>{tools.format('<|think|>' + chr(10) + 'Be brief.')}{rest}"
    )


def test_render_two_tools_without_parameters(tokenizer):
    tools = [{"name": "now"}, {"type": "function", "function": {"name": "stop", "parameters": {}}}]
    assert (
        f"<|tool>declaration:now{{description:{Q}{Q}}}<tool|>"
        f"<|tool>declaration:stop{{description:{Q}{Q}}}<tool|><turn|>"
    ) in render(tokenizer, [HI], tools=tools)


def test_render_closes_the_braces_of_a_schema_without_a_type(tokenizer):
    tool = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}
    text = render(tokenizer, [HI], tools=[tool])
    assert (
        f"parameters:{{properties:{{a:{{type:{Q}STRING{Q}}}}},type:{Q}OBJECT{Q}}}}}<tool|>" in text
    )


def test_render_call_without_a_result(tokenizer):
    assert render(tokenizer, [HI, call()]) == f"{ASKED}{CALLED}<|tool_response>"


@pytest.mark.parametrize(
    ("content", "spelled"),
    [
        ("sunny", f"value:{Q}sunny{Q}"),
        ([{"type": "text", "text": "sun"}, {"type": "text", "text": "ny"}], f"value:{Q}sunny{Q}"),
        (None, f"value:{Q}{Q}"),
        ({"sky": "clear", "t": 3.5, "next": {"t": 1}}, f"next:{{t:1}},sky:{Q}clear{Q},t:3.5"),
        ({}, ""),
        ([1, 2], "value:[1,2]"),
        ([{"t": 1}, {"t": 2}], "value:[{t:1},{t:2}]"),
        ([], "value:[]"),
        (7, "value:7"),
        (True, "value:true"),
    ],
)
def test_render_results(tokenizer, content, spelled):
    answered = f"{ASKED}{CALLED}<|tool_response>response:get_weather{{{spelled}}}<tool_response|>"
    messages = [HI, call(), result(content)]
    assert render(tokenizer, messages) == answered
    messages.append({"role": "assistant", "content": "It is sunny."})
    assert render(tokenizer, messages) == f"{answered}It is sunny.<turn|>\n<|turn>model\n"


def test_render_closes_a_turn_that_ends_with_results(tokenizer):
    assert render(tokenizer, [HI, call(), result("sunny"), HI]) == (
        f"{ASKED}{CALLED}<|tool_response>response:get_weather{{value:{Q}sunny{Q}}}<tool_response|>"
        "<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"
    )


def test_render_results_of_several_calls_in_the_order_given(tokenizer):
    calls = [
        {"id": name, "function": {"name": name, "arguments": "{}"}} for name in ("first", "second")
    ]
    messages = [
        HI,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "second", "content": {"b": 2}},
        {"role": "tool", "tool_call_id": "first", "content": "a"},
    ]
    assert render(tokenizer, messages) == (
        f"{ASKED}<|turn>model\n"
        "<|tool_call>call:first{}<tool_call|><|tool_call>call:second{}<tool_call|>"
        "<|tool_response>response:second{b:2}<tool_response|>"
        f"<|tool_response>response:first{{value:{Q}a{Q}}}<tool_response|>"
    )


def test_render_media_behind_the_result_that_has_them(tokenizer):
    """As the newest template has it; assistants' tools show pictures, and ours is an older one."""
    calls = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in "fgh"]
    picture, sound = {"type": "image", "path": "a.png"}, {"type": "audio", "path": "b.wav"}
    spelled = {"type": "text", "text": "<tool_response|>"}
    messages = [
        {"role": "user", "content": [{"type": "image", "path": "first"}, "Hi"]},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "f", "content": [picture, spelled, sound]},
        {"role": "tool", "tool_call_id": "g", "content": "text"},
        {"role": "tool", "tool_call_id": "h", "content": [picture]},
    ]
    found = template.render(tokenizer, messages)
    assert found.text.partition("<|tool_response>")[2] == (
        f"response:f{{value:{Q}<tool_response|>{Q}}}<tool_response|><|image|><|audio|>"
        f"<|tool_response>response:g{{value:{Q}text{Q}}}<tool_response|>"
        f"<|tool_response>response:h{{value:{Q}{Q}}}<tool_response|><|image|>"
    )
    assert [each.source for each in found.media] == ["first", "a.png", "b.wav", "a.png"]
    assert len(found.breaks) == 1


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_render_thoughts_of_the_turn_that_goes_on(tokenizer, key):
    messages = [HI, call(**{key: "Hm"}), result("sunny")]
    opened = CALLED.replace("model\n", "model\n<|channel>thought\nHm\n<channel|>")
    assert render(tokenizer, messages).startswith(f"{ASKED}{opened}<|tool_response>")


def test_render_opens_the_turn_that_a_template_forgets(tokenizer):
    messages = [HI, call(content="Let me see."), result("sunny")]
    assert render(tokenizer, messages).endswith("Let me see.<turn|>\n<|turn>model\n")


def test_render_joins_answers_that_follow_each_other(tokenizer):
    messages = [HI, *({"role": "assistant", "content": text} for text in ("YO", "AND"))]
    assert render(tokenizer, messages) == f"{ASKED}<|turn>model\nYOAND<turn|>\n<|turn>model\n"


def test_render_with_options_for_the_template(tokenizer):
    assert "<|think|>" in render(tokenizer, [HI], options={"enable_thinking": True})


def test_render_without_a_template(tmp_path):
    bare = load_tokenizer(tiny_tokenizer.write(tmp_path, has_template=False))
    with pytest.raises(RequestError, match=r"\[template\] needed a chat template, got a tokenizer"):
        render(bare, [HI])


def test_render_says_what_a_template_refuses(tmp_path):
    folder = tiny_tokenizer.write(tmp_path, has_template=False)
    template = (
        "{% if messages|length > 1 %}{{ raise_exception('roles must alternate') }}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(RequestError, match=r"\[template\] needed .*, got roles must alternate"):
        render(load_tokenizer(folder), [HI, {"role": "assistant", "content": "A"}])


def test_encode_begins_with_bos_once(tokenizer):
    ids = template.encode(tokenizer, template.Rendered("<bos>Hi"))
    assert ids == template.encode(tokenizer, template.Rendered("Hi"))
    assert ids.count(2) == 1
    assert ids[0] == 2


def test_encode_refuses_nothing(tokenizer):
    with pytest.raises(RequestError, match=r"\[prompt\] needed some text, got none"):
        template.encode(tokenizer, template.Rendered(""))
