"""Placeholders become soft tokens; texts that look like one stay texts."""

import pytest
import tiny_tokenizer

from hlwq_mlx.dialog.placeholders import (
    SoftTokens,
    clip_span,
    expand,
    picture_span,
    sound_span,
)
from hlwq_mlx.dialog.tokenizer import load_tokenizer
from hlwq_mlx.errors import RequestError

TOKENS = {
    "image": SoftTokens(60, 61, 62),
    "audio": SoftTokens(63, 64, 65),
    "video": SoftTokens(60, 66, 62),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer.write(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def ids_of(tokenizer):
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def test_markers_become_enclosed_soft_tokens(tokenizer, ids_of):
    text = "<|turn>a<|image|><|audio|>b<|image|>"
    spans = [picture_span(2), sound_span([3]), picture_span(1)]
    assert expand(tokenizer, [text], spans, TOKENS) == [
        *ids_of("<|turn>a"),
        *(60, 61, 61, 62),
        *(63, 64, 64, 64, 65),
        *ids_of("b"),
        *(60, 61, 62),
    ]


def test_a_long_sound_is_heard_in_pieces(tokenizer):
    assert expand(tokenizer, ["<|audio|>"], [sound_span([2, 1])], TOKENS) == [
        *(63, 64, 64, 65),
        *(63, 64, 65),
    ]


def test_spans_of_different_kinds_may_come_in_any_order(tokenizer):
    text = "<|image|>a<|audio|>"
    spans = [picture_span(2), sound_span([1])]
    assert expand(tokenizer, [text], spans, TOKENS) == expand(
        tokenizer, [text], spans[::-1], TOKENS
    )


def test_a_clip_tells_the_time_of_each_frame(tokenizer, ids_of):
    span = clip_span(["00:00", "00:59", "01:01", "100:00"], [1, 2, 1, 1])
    assert expand(tokenizer, ["a<|video|>b"], [span], TOKENS) == [
        *ids_of("a00:00 "),
        *(60, 66, 62),
        *ids_of(" 00:59 "),
        *(60, 66, 66, 62),
        *ids_of(" 01:01 "),
        *(60, 66, 62),
        *ids_of(" 100:00 "),
        *(60, 66, 62),
        *ids_of("b"),
    ]


@pytest.mark.parametrize(
    ("text", "spans", "said"),
    [
        ("a", [picture_span(1)], "needed one image for each <|image|>, got 1 for 0."),
        ("<|image|>", [], "needed one image for each <|image|>, got 0 for 1."),
        ("<|image|><|image|>", [picture_span(1)], "got 1 for 2."),
        ("<|image|>", [sound_span([1])], "needed one image for each <|image|>, got 0 for 1."),
        ("<|video|>", [picture_span(1)], "got 1 for 0."),
    ],
)
def test_a_count_that_does_not_fit_is_named(tokenizer, text, spans, said):
    with pytest.raises(RequestError) as raised:
        expand(tokenizer, [text], spans, TOKENS)
    assert str(raised.value).startswith("[prompt] needed one ")
    assert said in str(raised.value)


def test_no_token_reaches_over_where_pieces_meet(tokenizer, ids_of):
    pieces = ["a <", "|image|> b<|image|>"]
    assert expand(tokenizer, pieces, [picture_span(1)], TOKENS) == [
        *ids_of("a <"),
        *ids_of("|image|> b"),
        *(60, 61, 62),
    ]
