"""The output grammar: read whole, read in pieces, and fuzzed against its own printer."""

import random

import pytest

from hlwq_mlx.dialog.grammar import (
    Answer,
    AnswerParser,
    BrokenCall,
    Content,
    Thought,
    ToolCall,
    collect,
    opens_thought,
    parse_answer,
    print_answer,
    without_thoughts,
)
from hlwq_mlx.errors import RequestError

Q = '<|"|>'
CALL = f"<|tool_call>call:f{{a:{Q}x y{Q}}}<tool_call|>"
FULL = f"<|channel>thought\nHm é\n<channel|>Hi <b>{CALL}{CALL}<|tool_response>rest"


def read(pieces, in_thought=False):
    parser = AnswerParser(in_thought=in_thought)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return [*events, *parser.finish()]


def calls(*arguments):
    return tuple(ToolCall("f", each) for each in arguments)


ANSWERS = {
    "plain": ("2 < 3, [x] {y} <b> |> \n", Answer(content="2 < 3, [x] {y} <b> |> \n")),
    "full": (FULL, Answer("Hm é", "Hi <b>", calls({"a": "x y"}, {"a": "x y"}))),
    "empty thought": ("<|channel>thought\n<channel|>A", Answer(content="A")),
    "empty thought, no newline": ("<|channel>thought<channel|>A", Answer(content="A")),
    "thought never closed": ("<|channel>thought\nHm\n", Answer("Hm")),
    "channel never named": ("<|channel>tho", Answer()),
    "newlines inside a thought stay": (
        "<|channel>thought\n\na\n\nb\n\n<channel|>",
        Answer("\na\n\nb\n"),
    ),
    "another channel": ("<|channel>final\nA<channel|>B", Answer("final\nA", "B")),
    "a channel without a name": ("<|channel>A<channel|>B", Answer("A", "B")),
    "a name that only begins like ours": (
        "<|channel>thoughtful\nA<channel|>B",
        Answer("thoughtful\nA", "B"),
    ),
    "thought again": (
        "<|channel>thought\na\n<channel|>x<|channel>thought\nb\n<channel|>y",
        Answer("a\nb", "xy"),
    ),
    "thought opened twice": (
        "<|channel>thought\n<|channel>thought\na\n<channel|>x",
        Answer("a", "x"),
    ),
    "call inside a thought": (
        f"<|channel>thought\na\n{CALL}x",
        Answer("a", "x", calls({"a": "x y"})),
    ),
    "turn ends a thought": ("<|channel>thought\na<turn|>b", Answer("a")),
    "closers without openers": ("a<channel|>b<tool_call|>c", Answer(content="abc")),
    "eos": ("a<eos>b", Answer(content="a")),
    "a new turn": ("a<|turn>user\nb", Answer(content="a")),
    "content between calls": (f"{CALL}\n{CALL}", Answer("", "\n", calls(*[{"a": "x y"}] * 2))),
    "markers inside a string": (
        f"<|tool_call>call:f{{a:{Q}<tool_call|><|channel>{Q}}}<tool_call|>",
        Answer("", "", calls({"a": "<tool_call|><|channel>"})),
    ),
    "call closed by a response": (
        "<|tool_call>call:f{a:1}<|tool_response>",
        Answer("", "", calls({"a": 1})),
    ),
    "call closed by a call": (
        "<|tool_call>call:f{a:1}<|tool_call>call:f{a:2}<tool_call|>",
        Answer("", "", calls({"a": 1}, {"a": 2})),
    ),
    "call closed by the end": ("<|tool_call>call:f{a:1}", Answer("", "", calls({"a": 1}))),
    "string closed by a marker": (
        f"<|tool_call>call:f{{a:{Q}x<tool_call|>after",
        Answer("", "after", calls({"a": "x"})),
    ),
    "bracket closed by a marker": (
        "<|tool_call>call:f{a:[1<tool_call|>",
        Answer("", "", calls({"a": [1]})),
    ),
    "parentheses": ("<|tool_call>call:f(a=1)<tool_call|>", Answer("", "", calls({"a": 1}))),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_and_every_split_of_its_text(case):
    text, answer = ANSWERS[case]
    assert parse_answer(text) == answer
    assert collect(read(text)) == answer, "a character at a time"
    for cut in range(len(text) + 1):
        assert collect(read([text[:cut], text[cut:]])) == answer, f"cut at {cut}"


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("call:f{a:1", "the answer ended in the middle of the call"),
        (f"call:f{{a:{Q}/home/me", "the answer ended in the middle of the call"),
        ("call:f", "the answer ended in the middle of the call"),
        ("", "needed call:name, got the end"),
        ("nonsense!<tool_call|>", "needed arguments in braces, got '!'"),
        (f"call:w{{p:{Q}<tool_call|>{Q},t:{Q}never", "the answer ended in the middle of the call"),
    ],
)
def test_a_call_that_must_not_be_acted_upon(text, broken):
    answer = parse_answer(f"Hi<|tool_call>{text}")
    assert answer.content == "Hi"
    assert answer.calls == ()
    assert answer.broken == (BrokenCall(text.removesuffix("<tool_call|>"), broken),)


def test_an_answer_that_begins_inside_a_thought():
    assert parse_answer("a\n<channel|>b", in_thought=True) == Answer("a", "b")
    assert parse_answer("<|channel>thought\na\n<channel|>b", in_thought=True) == Answer("a", "b")


@pytest.mark.parametrize(
    ("prompt", "verdict"),
    [
        ("<|turn>model\n<|channel>thought\n", True),
        ("<|turn>model\n<|channel>thought\n<channel|>", False),
        ("<|turn>model\n", False),
    ],
)
def test_opens_thought(prompt, verdict):
    assert opens_thought(prompt) == verdict


def test_text_comes_as_soon_as_it_is_certain():
    parser = AnswerParser()
    assert parser.feed("He") == [Content("He")]
    assert parser.feed("llo <") == [Content("llo ")]
    assert parser.feed("b> <|chan") == [Content("<b> ")]
    assert parser.feed("nel>thou") == []
    assert parser.feed("ght\nOne") == [Thought("One")]
    assert parser.feed("\n") == []
    assert parser.feed("two<chann") == [Thought("\ntwo")]
    assert parser.feed("el|>x<|tool_call>call:f{}") == [Content("x")]
    assert parser.feed("<tool_call|>") == [ToolCall("f", {})]
    assert parser.feed("<turn|>ignored") == []
    assert parser.feed("this too") == []
    assert parser.finish() == []


def test_a_long_call_is_read_once():
    parser = AnswerParser()
    parser.feed(f"<|tool_call>call:f{{a:{Q}")
    for _ in range(20_000):
        parser.feed("line of code\n")
    (call,) = parser.feed(f"{Q}}}<tool_call|>")
    assert len(call.arguments["a"]) == 20_000 * len("line of code\n")


def test_print_answer():
    spelled = print_answer("Hm", "Hi", [ToolCall("f", {"b": 1, "a": "x"})], end="<turn|>")
    assert spelled == (
        f"<|channel>thought\nHm\n<channel|>Hi<|tool_call>call:f{{a:{Q}x{Q},b:1}}<tool_call|><turn|>"
    )


@pytest.mark.parametrize("parts", [("a<|channel>", ""), ("", "a<turn|>")])
def test_print_answer_refuses_markers(parts):
    with pytest.raises(RequestError, match=r"\[answer\] needed text without the model's markers"):
        print_answer(*parts)


def test_print_answer_refuses_a_name_that_is_none():
    with pytest.raises(RequestError, match=r"\[answer\] needed the name of a function, got 'a b'"):
        print_answer(calls=[ToolCall("a b", {})])


FRAGMENTS = [
    *"ab \n\t\"'{}[]():=,.-<>|\\é☃",
    "thought\n",
    "thought",
    "<|channel",
    "<tool_call",
    "<|tool_",
    "<turn",
    "channel|>",
    '<|"|',
    "call:f{",
    "null",
    "1e5",
    "007",
    "<",
    "<|",
]
MARKERS = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<turn|>", "<|turn>")


def random_text(rng, size, forbidden):
    """Text of fragments in which none of the forbidden strings came about."""
    text = "".join(rng.choices(FRAGMENTS, k=rng.randint(0, size)))
    for marker in (*forbidden, "<|tool_response>", "<eos>"):
        text = text.replace(marker, "")
    return text if not any(marker in text for marker in forbidden) else ""


def random_value(rng, depth=0):
    kind = rng.randrange(7 if depth < 3 else 5)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice([0, -1, rng.randint(-(10**20), 10**20)])
    if kind == 2:
        return rng.choice([0.5, -0.0, 1e-9, 1e300, rng.uniform(-1e6, 1e6)])
    if kind <= 4:
        return rng.choice([random_text(rng, 6, [Q]), rng.choice(MARKERS)])
    if kind == 5:
        return [random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return random_object(rng, depth + 1)


def random_object(rng, depth=0):
    return {random_text(rng, 4, [Q]): random_value(rng, depth) for _ in range(rng.randint(0, 3))}


def random_answer(rng):
    names = ["f", "get-weather", "google:maps.find", "x_1"]
    made = [ToolCall(rng.choice(names), random_object(rng)) for _ in range(rng.randint(0, 3))]
    return Answer(random_text(rng, 8, MARKERS), random_text(rng, 8, MARKERS), tuple(made))


def random_pieces(rng, text):
    cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_what_is_printed_is_read_back(seed):
    rng = random.Random(seed)
    for _ in range(200):
        answer = random_answer(rng)
        end = rng.choice(["", "<turn|>", "<|tool_response>x", "<eos>"])
        text = print_answer(answer.thought, answer.content, answer.calls, end=end)
        for pieces in ([text], text, random_pieces(rng, text), random_pieces(rng, text)):
            assert collect(read(pieces)) == answer, text


@pytest.mark.parametrize("seed", range(4))
def test_any_text_is_read_the_same_however_it_is_split(seed):
    rng = random.Random(seed)
    for _ in range(250):
        text = "".join(rng.choices([*FRAGMENTS, *MARKERS, Q, "call:f{a:"], k=rng.randint(0, 15)))
        whole = parse_answer(text)
        assert collect(read(text)) == whole, text
        assert collect(read(random_pieces(rng, text))) == whole, text


def test_text_without_markers_passes_unchanged():
    rng = random.Random(0)
    for _ in range(500):
        text = random_text(rng, 15, MARKERS)
        assert "".join(event.text for event in read(random_pieces(rng, text))) == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A", "A"),
        ("<|channel>thought\nHm\n<channel|>A", "A"),
        ("A<|channel>x<channel|>B<|channel>thought\ny<channel|>", "AB"),
        ("<|channel>thought\ncut short", ""),
        ("A <|channel> opens, <channel|> closes", "A  closes"),
        ("A <channel|> closes, <|channel> opens", "A <channel|> closes, <|channel> opens"),
        ("<|channel>" * 3 + "<channel|>A", "A"),
    ],
)
def test_thoughts_are_removed_from_an_answer(text, kept):
    assert without_thoughts(text) == kept
