"""From an answer's tokens to events: the same events however the text is cut into tokens."""

import pytest

from hlwq_mlx.dialog.grammar import parse_answer
from hlwq_mlx.server.answers import ChatReader, RawReader, first_stop
from hlwq_mlx.server.events import Call, Content, Thought, TokenScore

Q = '<|"|>'
ANSWERS = (
    f"<|channel>thought\nHm é\n<channel|>Hi <b><|tool_call>call:f{{a:{Q}x y{Q}}}<tool_call|>",
    f"<|tool_call>call:f{{a:[1,{{b:{Q}<turn|>{Q}}}]}}<tool_call|><|tool_call>call:g{{}}<tool_call|>",
    "<|tool_call>call:f{a:<tool_call|>text behind",
    "<|channel>thought\nnever closed",
    "2 < 3 and <| no marker |>",
)


class Letters:
    """A detokenizer whose tokens are texts, cut anywhere."""

    last_segment = ""

    def add_token(self, token):
        self.last_segment = token

    def finalize(self):
        self.last_segment = ""


def read(pieces, stops=(), in_thought=False, **options):
    reader = ChatReader(Letters(), stops, in_thought=in_thought, **options)
    events = []
    for piece in pieces:
        events += reader.add(piece, None)
        if reader.is_over:
            break
    return reader, [*events, *reader.finish()]


def joined(events):
    """Return thought, content and calls, without the calls' random ids."""
    return (
        "".join(event.text for event in events if isinstance(event, Thought)),
        "".join(event.text for event in events if isinstance(event, Content)),
        [(event.index, event.name, event.arguments) for event in events if isinstance(event, Call)],
    )


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_cut_anywhere_is_the_same(text):
    whole = parse_answer(text)
    content = whole.content + "".join(broken.text for broken in whole.broken)
    calls = [(at, call.name, call.arguments) for at, call in enumerate(whole.calls)]
    for at in range(len(text) + 1):
        thought, told, made = joined(read([text[:at], text[at:]])[1])
        assert (thought, sorted(told), made) == (whole.thought, sorted(content), calls)
    assert joined(read(text)[1])[2] == calls


def test_ids_of_calls_differ():
    _, events = read([ANSWERS[1]])
    assert len({event.id for event in events}) == 2


@pytest.mark.parametrize("cut", range(12))
def test_a_stop_string_ends_the_content(cut):
    text = "one STOP two"
    reader, events = read([text[:cut], text[cut:], "three"], ["STOP", "two"])
    assert joined(events) == ("", "one ", [])
    assert (reader.stop, reader.reason("length")) == ("STOP", "stop")


def test_a_stop_string_in_a_thought_is_a_thought():
    reader, events = read(["<|channel>thought\nSTOP<channel|>text"], ["STOP"])
    assert joined(events) == ("STOP", "text", [])
    assert reader.stop is None


def test_one_call_is_the_end_where_one_is_wanted():
    reader, events = read([ANSWERS[1]], single_call=True)
    assert [call[1] for call in joined(events)[2]] == ["f"]
    assert reader.reason("stop") == "tool_calls"


def test_what_ends_an_answer_is_told():
    assert read(["text"])[0].reason("length") == "length"
    assert read([ANSWERS[0]])[0].reason("stop") == "tool_calls"
    assert read([ANSWERS[0]])[0].reason("length") == "length"


def test_scores_are_those_of_the_content():
    reader = ChatReader(Letters(), (), in_thought=False)
    events = []
    for at, piece in enumerate(["<|channel>thought\n", "hm", "\n<channel|>", "A", "B"]):
        events += reader.add(piece, TokenScore(piece.encode(), -float(at)))
    contents = [event for event in events if isinstance(event, Content)]
    assert [[score.token for score in each.scores] for each in contents] == [[b"A"], [b"B"]]
    assert reader.reasoning_tokens == 2  # the marker and the word


def test_a_raw_answer_is_all_text():
    reader = RawReader(Letters(), ["end"])
    events = [event for piece in (ANSWERS[0], "e", "nd") for event in reader.add(piece, None)]
    assert "".join(event.text for event in events) == ANSWERS[0]
    assert reader.is_over
    assert reader.finish() == []


def test_the_first_stop_string_counts():
    assert first_stop("a b c", ["c", "b"]) == "b"
    assert first_stop("a", ["b", ""]) is None
