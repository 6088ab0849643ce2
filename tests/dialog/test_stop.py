"""Stop strings cut at any place, and token ids to text with the markers kept."""

import itertools

import pytest
import tiny_tokenizer

from hlwq_mlx.dialog.stop import AnswerText, StopStrings, overlap
from hlwq_mlx.dialog.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer.write(tmp_path_factory.mktemp("tokenizer")))


def answer(tokenizer, text, stops=()):
    """The pieces that an answer's ids give, and whether a stop string ended it."""
    reader = AnswerText(tokenizer.detokenizer, stops)
    pieces = []
    for token in tokenizer.encode(text, add_special_tokens=False):
        pieces.append(reader.add(token))
        if reader.is_stopped:
            return pieces, True
    return [*pieces, reader.finish()], reader.is_stopped


@pytest.mark.parametrize(
    ("text", "stops", "size"),
    [
        ("", ["ab"], 0),
        ("xa", ["ab"], 1),
        ("xab", ["ab"], 0),
        ("aaa", ["aaab", "b"], 3),
        ("abab", ["babc"], 3),
        ("x", [], 0),
    ],
)
def test_overlap(text, stops, size):
    assert overlap(text, stops) == size


@pytest.mark.parametrize(
    ("text", "stops", "kept", "is_stopped"),
    [
        ("one two three", ["two"], "one ", True),
        ("one two three", ["three", "two"], "one ", True),
        ("one two three", ["thr", "three"], "one two ", True),
        ("aaab", ["aab"], "a", True),
        ("one two", ["two!"], "one two", False),
        ("one two", [], "one two", False),
        ("one two", [""], "one two", False),
    ],
)
def test_stop_strings_at_every_split(text, stops, kept, is_stopped):
    for first, second in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        reader = StopStrings(stops)
        got = ""
        for piece in (text[:first], text[first:second], text[second:]):
            got += reader.feed(piece)
            if reader.is_stopped:
                break
        else:
            got += reader.flush()
        assert (got, reader.is_stopped) == (kept, is_stopped)


def test_stop_strings_withhold_no_more_than_needed():
    reader = StopStrings(["stop"])
    assert [reader.feed(piece) for piece in ("a s", "t", "x", "sto")] == ["a ", "", "stx", ""]
    assert reader.flush() == "sto"


@pytest.mark.parametrize("text", ["Hi.\n two  spaces", " leading", "é☃ 🤖 x", "a\tb"])
def test_answer_text_is_the_text(tokenizer, text):
    pieces, is_stopped = answer(tokenizer, text)
    assert "".join(pieces) == text
    assert not is_stopped


def test_answer_text_keeps_bytes_until_they_make_a_letter(tokenizer):
    assert answer(tokenizer, "aé☃")[0] == ["a", "", "é", "", "", "☃", ""]


def test_answer_text_yields_markers_whole(tokenizer):
    text = '<|channel>thought\nx\n<channel|><|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|>'
    pieces, _ = answer(tokenizer, text)
    assert "".join(pieces) == text
    assert {"<|channel>", "<channel|>", "<|tool_call>", '<|"|>', "<tool_call|>"} <= set(pieces)


@pytest.mark.parametrize("stop", ["<channel|>", "é☃", "b c"])
def test_answer_text_ends_before_a_stop_string(tokenizer, stop):
    assert "".join(answer(tokenizer, f"a {stop} z", [stop])[0]) == "a "


def test_answer_text_stops_on_what_only_its_end_releases(tokenizer):
    reader = AnswerText(tokenizer.detokenizer, ["\ufffd"])
    assert reader.add(tokenizer.convert_tokens_to_ids("<0xC3>")) == ""
    assert reader.finish() == ""
    assert reader.is_stopped
