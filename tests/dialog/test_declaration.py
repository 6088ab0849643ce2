"""What the model reads of a tool is what its schema says."""

import json
import re

import pytest
import tiny_tokenizer

from hlwq_mlx.dialog import template
from hlwq_mlx.dialog.messages import normalize_tools
from hlwq_mlx.dialog.schema import MAX_SCHEMAS
from hlwq_mlx.dialog.tokenizer import load_tokenizer
from hlwq_mlx.dialog.values import parse_value
from hlwq_mlx.errors import RequestError

ASIDE = re.compile(r"(?s)(.*?)\s?JSON schema: (\{.*\})")
STRING, INTEGER = {"type": "string"}, {"type": "integer"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer.write(tmp_path_factory.mktemp("tokenizer")))


def declared(tokenizer, **function):
    """Render a function and read its declaration as the model has to."""
    messages = [{"role": "user", "content": "Hi"}]
    text = template.render(tokenizer, messages, tools=[{"name": "f", **function}]).text
    _, _, spelled = text.partition("<|tool>declaration:f")
    return parse_value(spelled.partition("<tool|>")[0])


def schema_of(read):
    """Turn what is read back into the JSON schema that it says."""
    schema = {key: value for key, value in read.items() if value != {}}
    if schema.pop("type") != "ANY":
        schema["type"] = read["type"].lower()
    if "items" in schema:
        schema["items"] = schema_of(schema["items"])
    if "properties" in schema:
        schema["properties"] = {k: schema_of(v) for k, v in schema["properties"].items()}
    if aside := ASIDE.fullmatch(schema.get("description", "")):
        del schema["description"]
        schema |= {"description": aside[1]} if aside[1] else {}
        schema |= json.loads(aside[2])
    return schema


def read_of(tokenizer, given, **definitions):
    """Declare a parameter `a` and return what is read of it."""
    parameters = {"type": "object", "properties": {"a": given}, **definitions}
    return schema_of(declared(tokenizer, parameters=parameters)["parameters"]["properties"]["a"])


@pytest.mark.parametrize(
    "schema",
    [
        STRING,
        {},
        {"description": "Anything."},
        {"type": "null"},
        {"type": "string", "enum": ["a", "b, c", "<turn|>"], "description": "One of both."},
        {"type": "string", "description": 'Said "so":\n{x}', "minLength": 1, "pattern": '^"<'},
        {"type": "integer", "enum": [1, 2], "minimum": 0, "default": 1},
        {"type": "number", "enum": [0.5, 1], "description": "Share."},
        {"type": "boolean", "default": True},
        {"enum": ["a", 1, True, 1.5, {"b": [None]}]},
        {"type": ["string", "integer"]},
        {"anyOf": [STRING, {"type": "array", "items": STRING}], "description": "Some."},
        {"oneOf": [{"const": "a", "description": "First."}, {"const": "b"}]},
        {"not": STRING, "type": "string"},
        {"type": "array"},
        {"type": "array", "items": STRING, "maxItems": 3},
        {"type": "array", "items": {"type": "string", "enum": ["a"], "nullable": True}},
        {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": INTEGER}}},
        {"type": "array", "items": {"type": "integer", "enum": [1]}},
        {"type": "array", "prefixItems": [STRING, INTEGER], "items": False},
        {
            "type": "array",
            "items": {
                "type": "object",
                "description": "Each.",
                "properties": {"x": {"type": "integer", "enum": [1]}, "y": {"type": "array"}},
                "required": ["x"],
                "minProperties": 1,
            },
        },
        {"type": "object", "additionalProperties": STRING},
        {"type": "object", "additionalProperties": True},
        {
            "type": "object",
            "properties": {"x": STRING},
            "additionalProperties": {"anyOf": [STRING]},
        },
        {"type": "object", "properties": {"x": {"nullable": True, **INTEGER}}, "required": ["x"]},
        {"type": "object", "properties": {"x": {"type": "object", "properties": {"y": STRING}}}},
    ],
)
def test_nothing_of_a_schema_is_lost(tokenizer, schema):
    assert read_of(tokenizer, schema) == schema


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (True, {}),
        ({"type": "STRING"}, STRING),
        ({"type": ["string", "null"]}, STRING | {"nullable": True}),
        ({"type": ["string", "null"], "enum": ["a", "b"]}, STRING | {"enum": ["a", "b"]}),
        (
            {"type": ["string", "null"], "enum": ["a", None]},
            STRING | {"enum": ["a"], "nullable": True},
        ),
        ({"enum": ["a", None]}, STRING | {"enum": ["a"], "nullable": True}),
        ({"enum": [3, None]}, INTEGER | {"enum": [3], "nullable": True}),
        (
            {"type": ["string", "integer", "null"]},
            {"type": ["string", "integer"], "nullable": True},
        ),
        ({"const": "a"}, STRING | {"enum": ["a"]}),
        ({"const": 7, "title": "Seven"}, INTEGER | {"enum": [7]}),
        ({"const": None}, {"type": "null"}),
        (
            {"anyOf": [STRING, {"type": "null"}], "default": None},
            STRING | {"default": None, "nullable": True},
        ),
        (
            {"anyOf": [STRING, INTEGER, {"const": None}]},
            {"anyOf": [STRING, INTEGER], "nullable": True},
        ),
        ({"oneOf": [{"anyOf": [STRING, {"type": "null"}]}]}, STRING | {"nullable": True}),
        (
            {
                "allOf": [
                    {"properties": {"x": STRING}, "required": ["x"]},
                    {"properties": {"y": INTEGER}, "required": ["y", "x"]},
                ]
            },
            {"type": "object", "properties": {"x": STRING, "y": INTEGER}, "required": ["y", "x"]},
        ),
        ({"items": True}, {"type": "array"}),
        ({"type": "object"}, {"type": "object", "additionalProperties": True}),
        ({"type": "object", "additionalProperties": False}, {"type": "object"}),
        (
            {"type": "object", "properties": {"x": False}},
            {"type": "object", "properties": {"x": {"not": {}}}},
        ),
        ({"$ref": "#/$defs/x"}, STRING),
        ({"$ref": "#/$defs/x", "description": "Own."}, STRING | {"description": "Own."}),
        (
            {"type": "array", "items": {"$ref": "#/$defs/a~1b%20c"}},
            {"type": "array", "items": INTEGER},
        ),
        (
            {"anyOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/list/0"}]},
            {"anyOf": [STRING, INTEGER]},
        ),
    ],
)
def test_other_spellings_are_read_as_what_they_say(tokenizer, given, read):
    definitions = {"x": STRING | {"title": "X"}, "a/b c": INTEGER, "list": [INTEGER]}
    assert read_of(tokenizer, given, **{"$defs": definitions}) == read


WORDS = [
    *("description", "type", "properties", "required", "items", "nullable", "enum", "title"),
    *("default", "$ref", "anyOf", "not"),
]


@pytest.mark.parametrize("name", [*WORDS, "a-b", "$filter", "@id", "a b", "日本", "Name"])
def test_a_parameter_may_have_any_name(tokenizer, name):
    nested = {"type": "object", "properties": {name: STRING}, "required": [name]}
    schema = {
        "type": "object",
        "properties": {name: INTEGER, "z": {"type": "array", "items": nested}, "y": nested},
        "required": [name],
    }
    assert schema_of(declared(tokenizer, parameters=schema)["parameters"]) == schema


def test_names_of_one_word_in_two_cases(tokenizer):
    schema = {"type": "object", "properties": {"a": STRING, "A": INTEGER}}
    assert schema_of(declared(tokenizer, parameters=schema)["parameters"]) == schema


@pytest.mark.parametrize("parameters", [None, {}, True])
def test_empty_parameters_are_left_out(tokenizer, parameters):
    assert declared(tokenizer, parameters=parameters) == {"description": ""}
    assert declared(tokenizer) == {"description": ""}


@pytest.mark.parametrize("more", [{}, {"properties": {}}, {"additionalProperties": False}])
def test_a_function_that_takes_no_arguments(tokenizer, more):
    read = declared(tokenizer, parameters={"type": "object", **more})
    assert read == {"description": "", "parameters": {"type": "OBJECT"}}


def test_what_all_arguments_have_to_be_follows_the_functions_description(tokenizer):
    either = [{"required": ["a"]}, {"required": ["b"]}]
    parameters = {"properties": {"a": {}, "b": {}}, "anyOf": either, "description": "Give one."}
    read = declared(tokenizer, description="Does it.", parameters=parameters)
    said, aside = ASIDE.fullmatch(read["description"]).groups()
    assert said == "Does it.\nGive one."
    assert json.loads(aside) == {"anyOf": either}


@pytest.mark.parametrize(
    ("response", "read"),
    [
        ({"type": "object", "description": "Both."}, {"description": "Both.", "type": "object"}),
        ({"properties": {"x": STRING}}, {"type": "object", "properties": {"x": STRING}}),
        (
            {"type": "array", "items": STRING},
            {"type": "object", "properties": {"value": {"type": "array", "items": STRING}}},
        ),
    ],
)
def test_a_result_is_declared_as_an_object(tokenizer, response, read):
    assert schema_of(declared(tokenizer, response=response)["response"]) == read


ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#/$defs/x"}}}
DOUBLING = {f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(40)}


TOO_MUCH = f"needed at most {MAX_SCHEMAS:,} schemas, nested at most 64 deep, got more."


def deep(levels):
    schema = STRING
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"$ref": "#/$defs/x"}, "a.$ref.properties.next.$ref"),
        ({"$ref": "#"}, "a.$ref] needed a schema that ends, got # within itself. In the"),
        ({"$ref": "#/$defs/no"}, "a.$ref] needed a reference to what is there, got #/$defs/no. In"),
        ({"$ref": "https://x/y"}, "a.$ref] needed a reference that begins with #, got 'https"),
        ({"$ref": 7}, "a.$ref] needed a reference that begins with #, got 7."),
        ({"$ref": "#/$defs/d0"}, TOO_MUCH),
        (deep(70), TOO_MUCH),
        (deep(100_000), TOO_MUCH),
        (7, "a] needed a JSON schema, got 7. In the tool f, correct it."),
        ({"type": "float"}, "a.type] needed some of string, number, integer, boolean, array, "),
        ({"type": [7]}, "a.type] needed some of string"),
        ({"description": 7}, "a.description] needed text, got 7."),
        ({"nullable": "yes"}, "a.nullable] needed true or false, got 'yes'."),
        ({"enum": "abc"}, "a.enum] needed a list of values, got 'abc'."),
        ({"type": "string", "required": True}, "a.required] needed a list of names, got True."),
        ({"properties": [STRING]}, "a.properties] needed schemas by name, got "),
        ({"properties": {"b": {"items": 7}}}, "a.properties.b.items] needed a JSON schema, got 7."),
        ({"anyOf": STRING}, "a.anyOf] needed a list of schemas, got "),
        ({"allOf": [{"minimum": 1}, {"minimum": 2}]}, "a.minimum] needed schemas that agree, got "),
        ({"properties": {"b:c": {}}}, "a.properties] needed names without brackets, "),
        ({"default": {1, 2}}, "[tools[0].function.parameters] needed JSON values, got "),
        ({"default": float("nan")}, "[tools[0].function.parameters] needed JSON values, got "),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(given, said):
    definitions = {"x": ENDLESS, "d40": STRING, **DOUBLING}
    parameters = {"properties": {"a": given}, "$defs": definitions}
    with pytest.raises(RequestError) as refused:
        normalize_tools([{"name": "f", "parameters": parameters}])
    assert str(refused.value).startswith("[tools[0].function.parameters")
    assert said in str(refused.value)
    assert "In the tool f, " in str(refused.value)


@pytest.mark.parametrize("parameters", [STRING, {"type": "array"}, "object", 7, [STRING]])
def test_arguments_are_an_object(parameters):
    with pytest.raises(
        RequestError, match=r"^\[tools\[0\]\.function\.parameters\] needed a JSON s"
    ):
        normalize_tools([{"name": "f", "parameters": parameters}])
