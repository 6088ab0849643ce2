"""What grammars allow, on the demo's vocabulary and on Gemma 4's own."""

import asyncio
import functools
import json
import random
from dataclasses import replace

import demo
import jsonschema
import numpy as np
import pytest
import real_tokenizer
from llguidance import LLTokenizer
from walks import walk

from hlwq_mlx.dialog import constraints, grammar_trial
from hlwq_mlx.dialog.constraints import Form, compile_grammar, require_bounded, write_grammar
from hlwq_mlx.dialog.grammar import ToolCall, parse_answer, print_answer
from hlwq_mlx.dialog.placeholders import ENCLOSURES, MARKERS
from hlwq_mlx.dialog.tokenizer import load_tokenizer
from hlwq_mlx.dialog.vocabulary import Vocabulary, make_tables
from hlwq_mlx.errors import BusyError, CheckpointError, RequestError


@functools.cache
def demo_tokenizer():
    return load_tokenizer(demo.folder())


@functools.cache
def tables(load=demo_tokenizer):
    return make_tables(load())


def begin(form, load=demo_tokenizer):
    return compile_grammar(write_grammar(form), tables(load))()


def next_tokens(constraint, load=demo_tokenizer):
    return {load().convert_ids_to_tokens(int(i)) for i in np.flatnonzero(constraint.allowed())}


def follow(form, text, load=demo_tokenizer):
    """Return what may come behind a text that the form has to allow."""
    constraint = begin(form, load)
    said = ""
    for token in load().encode(text, add_special_tokens=False):
        assert constraint.allowed()[token], f"{said!r}, then {load().convert_ids_to_tokens(token)}"
        constraint.accept(token)
        said += load().decode([token])
    return next_tokens(constraint, load)


def tool(name, properties, required=(), **keys):
    schema = {"type": "object", "properties": properties, "required": [*required], **keys}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


VOCABULARIES = pytest.mark.parametrize(
    "load",
    [
        pytest.param(demo_tokenizer, id="demo"),
        pytest.param(real_tokenizer.load, id="gemma", marks=pytest.mark.slow),
    ],
)
ENDS = {"<eos>", "<turn|>", "<|tool_response>"}
POINT = {
    "type": "object",
    "properties": {
        "x": {"type": "number", "minimum": 0, "maximum": 1},
        "label": {"type": "string"},
    },
    "required": ["x"],
}
TOOLS = [
    tool(
        "maps:plot.all-2",
        {
            "points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 3},
            "unit": {"enum": ["C", 'F "\n', 3, None]},
            "count": {"type": "integer"},
            "note": {"type": ["string", "null"], "maxLength": 20},
            "code": {"type": "string", "pattern": "^[A-Z]{2}\\d+$"},
            "when": {"type": "string", "format": "date"},
            "pair": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "integer"}]},
            "kind": {
                "oneOf": [
                    {"type": "object", "properties": {"t": {"const": "a"}}, "required": ["t"]},
                    tool("", {"t": {"const": "b"}, "v": {}}, ["t"])["function"]["parameters"],
                    {"type": "integer"},
                ]
            },
            "free": {"type": "object"},
        },
        ["unit", "points"],
        **{"$defs": {"point": POINT}},
    ),
    tool("now", {}),
]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b\n"]}, "maxItems": 3},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
GOLD = [
    ToolCall("now", {}),
    ToolCall("maps:plot.all-2", {"points": [], "unit": 'F "\n'}),
    ToolCall("maps:plot.all-2", {"note": 'a "b"\n{c}', "points": [{"x": 0.5}], "unit": None}),
    ToolCall("maps:plot.all-2", {"free": {"k": [1, {"z": True}]}, "points": [], "unit": 3}),
]


@VOCABULARIES
@pytest.mark.parametrize("thought", ["", 'They <|"|> ask.\nWhat?'])
def test_answers_as_templates_print_them_are_allowed(load, thought):
    # A thought may quote; print_answer would not write this one.
    before = f"<|channel>thought\n{thought}\n<channel|>" if thought else ""
    form = Form(tools=TOOLS, must_call=True, may_think=True)
    for call in GOLD:
        after = follow(form, before + print_answer(calls=[call]), load)
        assert after == {*ENDS, "<|tool_call>"}
    assert follow(form, print_answer(calls=GOLD), load) == {*ENDS, "<|tool_call>"}
    form = Form(schema=PERSON, may_think=True)
    assert follow(form, before + '{"name": "Ada","age": 36}', load) == ENDS


@VOCABULARIES
def test_masks_are_those_of_the_whole_tokenizer(load, tmp_path):
    """A copy of tokenizer.json without merges demands `{`, `"`, `n`, ... where text is certain."""
    if load is demo_tokenizer:
        path = demo.folder() / "tokenizer.json"
    else:
        path = real_tokenizer.write(tmp_path) / "tokenizer.json"
    whole = LLTokenizer(str(path), eos_token=sorted(load().eos_token_ids))
    grammar = write_grammar(Form(schema=PERSON, tools=TOOLS, may_think=True))
    for text in ('{"name": "Ada","age":36}', print_answer("Hm.", "", GOLD)):
        ours, theirs = (compile_grammar(grammar, each)() for each in (tables(load), whole))
        for token in load().encode(text, add_special_tokens=False):
            assert np.array_equal(ours.allowed(), theirs.allowed())
            ours.accept(token)
            theirs.accept(token)


def test_after_an_opened_brace_comes_no_white_space():
    constraint = begin(Form(schema=PERSON))
    constraint.accept(demo_tokenizer().convert_tokens_to_ids("{"))
    assert next_tokens(constraint) <= {'"', '"name', "<0x22>"}


def test_one_call_at_most_when_calls_are_not_parallel():
    form = Form(tools=TOOLS, must_call=True, parallel=False)
    assert follow(form, print_answer(calls=GOLD[:1])) == ENDS


def test_a_prompt_may_have_begun_the_thought():
    form = Form(schema={}, in_thought=True)
    assert follow(form, "I see.\n<channel|>{}") == ENDS
    assert not ENDS & next_tokens(begin(form))


def test_nothing_is_said_before_its_time():
    first = next_tokens(begin(Form(schema=PERSON, tools=TOOLS, may_think=True)))
    assert {"<|channel>", "<|tool_call>", "{"} <= first
    assert next_tokens(begin(Form(tools=TOOLS, must_call=True))) == {"<|tool_call>"}
    assert "<|channel>" not in next_tokens(begin(Form(schema=PERSON)))


def test_any_answer_will_do():
    assert write_grammar(Form(tools=TOOLS, may_think=True)) is None


def test_tokens_of_media_are_never_allowed():
    constraint = begin(Form(schema={}, in_thought=True))
    media = {*MARKERS.values(), *(each for pair in ENCLOSURES.values() for each in pair)}
    assert not media & next_tokens(constraint)


def test_answers_do_not_disturb_each_other():
    start = compile_grammar(write_grammar(Form(schema=PERSON)), tables())
    one, other = start(), start()
    before = other.allowed()
    one.accept(demo_tokenizer().convert_tokens_to_ids("{"))
    assert np.array_equal(other.allowed(), before)
    assert np.array_equal(start().allowed(), before)


@pytest.mark.parametrize("thinks", [False, True])
def test_random_answers_satisfy_the_schema(thinks):
    rng, start = (
        random.Random(1),
        compile_grammar(write_grammar(Form(schema=PERSON, may_think=thinks)), tables()),
    )
    texts = [walk(demo_tokenizer(), start(), rng) for _ in range(100)]
    answers = [parse_answer(text) for text in texts if text is not None]
    assert len(answers) > 80
    assert any(answer.thought for answer in answers) == thinks
    for answer in answers:
        jsonschema.validate(json.loads(answer.content), PERSON)


def test_random_calls_satisfy_their_tool():
    rng, start = (
        random.Random(2),
        compile_grammar(write_grammar(Form(tools=TOOLS, must_call=True, may_think=True)), tables()),
    )
    texts = [walk(demo_tokenizer(), start(), rng) for _ in range(200)]
    answers = [parse_answer(text) for text in texts if text is not None]
    calls = [call for answer in answers for call in answer.calls]
    assert len(answers) > 150
    assert {call.name for call in calls} == {"maps:plot.all-2", "now"}
    assert any(call.arguments.get("unit") == 'F "\n' for call in calls)
    schemas = {each["function"]["name"]: each["function"]["parameters"] for each in TOOLS}
    for answer in answers:
        assert answer.calls
        assert not answer.content
        assert not answer.broken
        for call in answer.calls:
            jsonschema.validate(call.arguments, schemas[call.name])


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": True},
        {"not": {"type": "string"}},
        {"if": {"type": "string"}, "then": {"minLength": 2}},
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        {"type": "object", "propertyNames": {"pattern": "^a"}},
        {"type": "array", "contains": {"type": "integer"}},
    ],
    ids=lambda schema: [*schema][-1],
)
def test_what_no_grammar_says_is_refused_by_its_key(schema):
    key = next(key for key in schema if key != "type")
    with pytest.raises(RequestError, match=key):
        begin(Form(schema=schema))
    with pytest.raises(RequestError, match=rf"^\[tools\[0\].*\.v\.{key}\]"):
        begin(Form(tools=[tool("f", {"v": schema})], must_call=True))


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "string", "pattern": "(?<=x)y"}, "look-around"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"oneOf": [{"required": ["a"]}, {"type": "integer"}]}, "oneOf"),
        ({"type": "string", "minLength": "3"}, "minLength|a count"),
        ({"enum": ["a" * 3000]}, "2,000 letters"),
    ],
)
def test_what_is_wrong_is_named(schema, named):
    for form in (Form(schema=schema), Form(tools=[tool("f", {"v": schema})], must_call=True)):
        with pytest.raises(RequestError, match=named):
            begin(form)


def test_a_required_property_need_not_be_described():
    form = Form(tools=[tool("f", {"a": {"type": "integer"}}, ["b"])], must_call=True)
    call = ToolCall("f", {"a": 1, "b": [True]})
    assert follow(form, print_answer(calls=[call])) >= ENDS


def test_notes_demand_nothing():
    schema = {"type": "string", "format": "uint32", "description": "x" * 5000, "title": "T"}
    assert follow(Form(schema=schema), '"a b"') == ENDS
    assert follow(Form(schema={"type": "array", "uniqueItems": False}), "[1, 1]") == ENDS


def test_names_and_values_that_look_like_notes_are_none():
    members = {"title": {"const": {"title": "T"}}, "propertyNames": {"type": "string"}}
    schema = {"type": "object", "properties": members, "required": [*members]}
    answer = '{"title": {"title": "T"}, "propertyNames": "x"}'
    assert follow(Form(schema={**schema, "additionalProperties": False}), answer) == ENDS


def test_the_names_of_members_are_text_anyway():
    """zod, and so Claude Code and many more, says of each record that its names are."""
    record = {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}}
    assert follow(Form(schema=record), '{"a": 1}') == ENDS
    call = ToolCall("f", {"record": {"a": 1}})
    form = Form(tools=[tool("f", {"record": record})], must_call=True)
    assert follow(form, print_answer(calls=[call])) >= ENDS


def test_no_tools_to_choose_from():
    with pytest.raises(RequestError, match=r"^\[tool_choice\] needed tools"):
        write_grammar(Form(must_call=True))


def chain(count):
    """References that lead to one another: 50 kB that exhaust the stack of llguidance."""
    refs = {
        f"d{at}": {"properties": {"a": {"$ref": f"#/$defs/d{at + 1}"}}, "required": ["a"]}
        for at in range(count)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**refs, f"d{count}": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (chain(1200), "takes a process that ended"),
        ({"allOf": [{"pattern": f"a{at}"} for at in range(30)]}, "takes more than 2 s|regex"),
        ({"properties": {f"p{at}": {"type": "string"} for at in range(8000)}}, "bytes, where"),
    ],
    ids=["stack", "time", "size"],
)
def test_a_hostile_schema_costs_a_child_its_life(schema, problem):
    with pytest.raises(RequestError, match=problem):
        require_bounded(write_grammar(Form(schema=schema)))


def test_a_busy_machine_says_nothing_of_a_schema(monkeypatch):
    """64 streams on two cores had a good one refused for good."""
    schema = {"type": "object", "properties": {"only_here": {"type": "string"}}}
    grammar = write_grammar(Form(schema=schema))
    monkeypatch.setattr(constraints, "TRIAL", replace(constraints.TRIAL, wall_s=0.0))
    with pytest.raises(BusyError, match="busy machine"):
        require_bounded(grammar)
    monkeypatch.undo()
    require_bounded(grammar)


def test_schemas_that_multiply_are_refused_before_they_are_written():
    schema = {
        "type": "object",
        "anyOf": [{"required": [f"p{at}"]} for at in range(90)],
        "oneOf": [{"properties": {"t": {"const": at}}, "required": ["t"]} for at in range(90)],
    }
    with pytest.raises(RequestError, match="too many"):
        write_grammar(Form(tools=[tool("f", {"v": schema})], must_call=True))


def test_a_usable_grammar_passes_the_trial():
    require_bounded(write_grammar(Form(schema=PERSON, tools=TOOLS, may_think=True)))
    assert grammar_trial.begin("start: nothing", tables()).is_error()


def test_tables_come_in_the_background():
    vocabulary = Vocabulary(demo_tokenizer())

    async def wait():
        return await asyncio.wrap_future(vocabulary.tables)

    assert asyncio.run(wait()) is vocabulary.wait()
    assert vocabulary.ready()
    assert {*vocabulary.wait().eos_tokens} == demo_tokenizer().eos_token_ids


def test_tables_that_cannot_be_made_say_so_each_time():
    class Damaged:
        eos_token_ids, bos_token_id, added_tokens_decoder = (1,), 2, {}

        def get_vocab(self):
            return {"a": 0, "\ud800": 1}

    vocabulary = Vocabulary(Damaged())
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"^\[tokenizer.json\] needed a vocabulary"):
            vocabulary.wait()


def test_a_token_that_was_not_allowed_is_refused():
    constraint = begin(Form(schema=PERSON))
    with pytest.raises(RequestError, match=r"^\[schema\]"):
        constraint.accept(demo_tokenizer().convert_tokens_to_ids("}"))
