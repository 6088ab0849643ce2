"""The spelling of arguments: printed exactly, read leniently."""

import math

import pytest

from hlwq_mlx.dialog.values import (
    MAX_DEPTH,
    ValueProblem,
    is_name,
    parse_call,
    parse_value,
    print_value,
)
from hlwq_mlx.errors import RequestError

Q = '<|"|>'


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (None, "null"),
        (True, "true"),
        (-3, "-3"),
        (0.5, "0.5"),
        (1e-7, "1e-07"),
        ('say "hi",\n{x}', f'{Q}say "hi",\n{{x}}{Q}'),
        ([], "[]"),
        ({}, "{}"),
        ({"b": 1, "A": [2, "x"], "c": {"d-e.f": None}}, f"{{A:[2,{Q}x{Q}],b:1,c:{{d-e.f:null}}}}"),
        ({" odd ": 1, "a:b": 2}, f"{{{Q} odd {Q}:1,{Q}a:b{Q}:2}}"),
    ],
)
def test_print_value(value, spelled):
    assert print_value(value) == spelled
    assert parse_value(spelled) == value


@pytest.mark.parametrize("value", [f"a{Q}b", {f"a{Q}": 1}])
def test_print_value_refuses_the_quote_itself(value):
    with pytest.raises(RequestError, match=r"\[arguments\] needed text without the model's own"):
        print_value(value)


@pytest.mark.parametrize("value", [math.inf, math.nan, b"bytes", {"a": object()}])
def test_print_value_refuses_what_is_not_json(value):
    with pytest.raises(RequestError, match=r"\[arguments\] needed JSON values and finite numbers"):
        print_value(value)


def test_print_value_refuses_keys_that_are_not_text():
    with pytest.raises(RequestError, match=r"\[arguments\] needed text as keys, got 1"):
        print_value({1: 2})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (".5", 0.5),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("+7", 7),
        ("1e3", 1000.0),
        ("2.5E-2", 0.025),
        ("1e999", "1e999"),
        ("007", "007"),
        ("1.2.3", "1.2.3"),
        ("9" * 5000, "9" * 5000),
        ("TRUE", True),
        ("False", False),
        ("None", None),
        ("nil", None),
        ("New York", "New York"),
        ('"a \\"b\\" \\u00e9"', 'a "b" é'),
        ('"C:\\dir"', "C:\\dir"),
        ("'it\\'s'", "it's"),
        ("'a\\nb'", "a\nb"),
        ('"Paris" by night', '"Paris" by night'),
        ("don't", "don't"),
        ("", ""),
        (" [ 1 , 2 , ] ", [1, 2]),
        ("[a b, .5,,true]", ["a b", 0.5, True]),
        ("{ key : value , other-key.x = 2, }", {"key": "value", "other-key.x": 2}),
        (
            f'{{"a": "x, y", {Q}b:c{Q} : {Q}z{Q}, \'d\': [], e:}}',
            dict(a="x, y", e="", d=[]) | {"b:c": "z"},
        ),
        ("{url:https://x.org/a?b=1,n:1}", {"url": "https://x.org/a?b=1", "n": 1}),
        ("{a:[1,{b:[]", {"a": [1, {"b": []}]}),
        (f"{{a:{Q}x, y}}", {"a": "x, y}"}),
    ],
)
def test_parse_value(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{a}", "needed : after the key 'a', got '}'"),
        ("{:1}", "needed a key, got ':1}'"),
        ("{a:1}x", "needed the end, got 'x'"),
        (f"{{a:{Q}x{Q} y}}", "needed , or }, got 'y}'"),
        (f"{{a:x {Q}y{Q}}}", "needed a comma before the string"),
        ("[" * (MAX_DEPTH + 1), f"needed brackets nested at most {MAX_DEPTH} deep"),
        ("{a:" * 5000, f"needed brackets nested at most {MAX_DEPTH} deep"),
    ],
)
def test_parse_value_says_what_is_wrong(text, said):
    with pytest.raises(ValueProblem) as caught:
        parse_value(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("call:now{}", "now", {}),
        ("call:now", "now", {}),
        ("call:now()", "now", {}),
        (" call: get-weather { city : Paris } ", "get-weather", {"city": "Paris"}),
        ("call:google:maps.find{q:1}", "google:maps.find", {"q": 1}),
        ("get_weather{city:Paris}", "get_weather", {"city": "Paris"}),
        ("call:f(a=1, b='x, y', c=[1,2])", "f", {"a": 1, "b": "x, y", "c": [1, 2]}),
        (f"call:f(path={Q}/a (b){Q})", "f", {"path": "/a (b)"}),
        ('call:f({"a": {"b": null}})', "f", {"a": {"b": None}}),
        ('call:f{"a": 1}', "f", {"a": 1}),
        ('{"name": "f", "arguments": {"a": 1}}', "f", {"a": 1}),
        ('{"function": {"name": "f", "parameters": {}}}', "f", {}),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', "f", {"a": 1}),
    ],
)
def test_parse_call(text, name, arguments):
    spelled = parse_call(text)
    assert (spelled.name, spelled.arguments) == (name, arguments)


@pytest.mark.parametrize(
    ("text", "is_whole"),
    [
        ("call:f{a:1}", True),
        ("call:f({a:1})", True),
        ("call:f(a=1)", True),
        ("call:f", False),
        ("call:f{", False),
        ("call:f{a:1", False),
        ("call:f{a:[1}", False),
        (f"call:f{{a:{Q}x", False),
        ("call:f({a:1}", False),
    ],
)
def test_parse_call_knows_a_whole_one(text, is_whole):
    assert parse_call(text).is_whole == is_whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needed call:name, got the end"),
        ("call:{}", "needed call:name, got '{}'"),
        ("call:f Paris", "needed arguments in braces, got 'Paris'"),
        ('call:f("Paris")', "needed a key, got '\"Paris\")'"),
        ('{"arguments": {}}', "needed a name"),
        ('{"name": "f", "arguments": [1]}', "needed an object of arguments, got [1]"),
        ('{"function": 3}', "needed a name"),
    ],
)
def test_parse_call_says_what_is_wrong(text, said):
    with pytest.raises(ValueProblem) as caught:
        parse_call(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "verdict"), [("a_b-c.d", True), ("google:x", True), ("", False), ("a b", False)]
)
def test_is_name(text, verdict):
    assert is_name(text) == verdict
