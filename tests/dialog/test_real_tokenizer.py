"""The whole path of text on Gemma 4's own vocabulary: ids, templates and streaming back."""

import random

import pytest
import real_tokenizer

from hlwq_mlx.dialog import placeholders, template
from hlwq_mlx.dialog.stop import AnswerText
from scripts.training import gemma_tokenizer

SPECIALS = {
    **gemma_tokenizer.SPECIALS,
    "\n": 107,
    "<|image>": 255999,
    "<|audio>": 256000,
    "<|image|>": 258880,
    "<|audio|>": 258881,
    "<image|>": 258882,
    "<audio|>": 258883,
    "<|video|>": 258884,
}
BOS, FIRST_BYTE = 2, 238
SOFT_TOKENS = {
    "image": placeholders.SoftTokens(255999, 258880, 258882),
    "audio": placeholders.SoftTokens(256000, 258881, 258883),
    "video": placeholders.SoftTokens(255999, 258884, 258882),
}
TEXTS = [
    "👩‍👩‍👧‍👦 ok 🏳️‍🌈 \U0001fae8",
    "日本語のテキスト、漢字。\U00020bb7野家 籙",
    "नमस्ते दुनिया क्षत्रिय",
    "e\u0301 a\u0308\u0323 Z\u0337\u0348",
    "𓀀𓂀 ᚠ \U000e0041 \x00\x01\x7f",
    "  leading",
    "trailing   ",
    " a  b   c\n\n\n d\t\te\r\n",
    "a\ufffdb\ufffd",
    " ",
    "\n",
]
USER = {"role": "user", "content": "Wie heißt du? 🤖"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def tokenizer():
    return real_tokenizer.load()


def stream(tokenizer, ids):
    reader = AnswerText(tokenizer.detokenizer, ())
    return [*(reader.add(token) for token in ids), reader.finish()]


def to_ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def byte_ids(data):
    return [FIRST_BYTE + value for value in data]


def test_merges_are_those_of_the_original():
    merges = real_tokenizer.tokenizer_json()["model"]["merges"]
    assert real_tokenizer.digest(merges) == real_tokenizer.facts()["merges_sha256"]


def test_reference_strings(tokenizer):
    references = real_tokenizer.facts()["references"]
    assert len(references) == 46
    for reference in references:
        assert to_ids(tokenizer, reference["text"]) == reference["ids"]
        assert tokenizer.decode(reference["ids"]) == reference["text"]


def test_special_ids(tokenizer):
    assert len(tokenizer) == 262144
    assert to_ids(tokenizer, "".join(SPECIALS)) == list(SPECIALS.values())
    assert to_ids(tokenizer, "a<|turn>b<turn|> c")[1::2] == [105, 106]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (BOS, 0)
    assert tokenizer.eos_token_ids == {1, 106, 50}


@pytest.mark.parametrize("prompt", ["Hi", " Hi", "<bos>Hi", "\nHi <b>bos</b>"])
def test_plain_text_begins_once(tokenizer, prompt):
    ids = template.encode(tokenizer, template.Rendered(prompt))
    assert ids[0] == BOS
    assert ids.count(BOS) == 1
    assert tokenizer.decode(ids[1:]) == prompt.removeprefix("<bos>")


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [{"role": "system", "content": "Be brief."}, USER],
        [USER, {"role": "assistant", "content": "Ich heiße Gemma."}, USER],
    ],
    ids=["user", "system", "history"],
)
def test_chats_begin_once_and_end_in_the_models_turn(tokenizer, messages, thinking):
    prompt = template.render(tokenizer, messages, thinking=thinking)
    text, ids = prompt.text, template.encode(tokenizer, prompt)
    assert text.startswith("<bos><|turn>")
    assert text.endswith("<turn|>\n<|turn>model\n")
    assert ids.count(BOS) == 1
    assert ids[0] == BOS
    assert ids[-3:] == [105, *to_ids(tokenizer, "model"), 107]
    assert ids.count(98) == thinking
    assert tokenizer.decode(ids) == text


def test_a_chat_has_gemmas_ids(tokenizer):
    prompt = template.render(tokenizer, [{"role": "user", "content": "Hello"}])
    assert prompt.text == "<bos><|turn>user\nHello<turn|>\n<|turn>model\n"
    assert template.encode(tokenizer, prompt) == [2, 105, 2364, 107, 9259, 106, 107, 105, 4368, 107]


def test_tools_and_media_become_their_single_tokens(tokenizer):
    parts = [{"type": "image", "path": "a"}, "Where?", {"type": "audio", "path": "b"}]
    prompt = template.render(tokenizer, [{"role": "user", "content": parts}], tools=[TOOL])
    text = prompt.text
    spans = [placeholders.picture_span(2), placeholders.sound_span([1])]
    ids = template.encode(tokenizer, prompt, spans, SOFT_TOKENS)
    wanted = {46: 1, 47: 1, 255999: 1, 258880: 2, 258882: 1, 256000: 1, 258881: 1, 258883: 1}
    assert {token: ids.count(token) for token in wanted} == wanted
    assert ids.count(52) == text.count('<|"|>') > 0
    assert tokenizer.decode(ids) == text.replace(
        "<|image|>", "<|image><|image|><|image|><image|>"
    ).replace("<|audio|>", "<|audio><|audio|><audio|>")


def test_a_video_becomes_the_tokens_of_its_spelling(tokenizer):
    """As the reference does it, which expands the text and encodes it whole."""
    text = "<bos><|turn>user\nCount:<|video|>Well?<turn|>\n<|turn>model\n"
    span = placeholders.clip_span(["00:00", "01:01"], [2, 1])
    ids = template.encode(tokenizer, template.Rendered(text), [span], SOFT_TOKENS)
    spelled = "00:00 <|image><|video|><|video|><image|> 01:01 <|image><|video|><image|>"
    assert ids == to_ids(tokenizer, text.replace("<|video|>", spelled))
    assert ids.count(258884) == 3


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_is_the_text(tokenizer, text):
    ids = to_ids(tokenizer, text)
    assert tokenizer.decode(ids) == text
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == text
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


@pytest.mark.parametrize("letter", ["é", "क", "漢", "🤖", "\U0010ffff"])
def test_letters_of_byte_tokens_come_whole(tokenizer, letter):
    data = letter.encode()
    pieces = stream(tokenizer, [9259, *byte_ids(data), 1902])
    assert pieces == ["Hello", *[""] * (len(data) - 1), letter, " world", ""]


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"\xf0\x9f", "Hello\ufffd"), ("é".encode()[:1], "Hello\ufffd")],
)
def test_an_answer_cut_within_a_letter(tokenizer, data, expected):
    pieces = stream(tokenizer, [9259, *byte_ids(data)])
    assert pieces[:-1] == ["Hello", *[""] * len(data)]
    assert "".join(pieces) == expected


def test_a_byte_that_begins_no_letter_is_marked_at_once(tokenizer):
    assert stream(tokenizer, [9259, *byte_ids(b"\xff")]) == ["Hello", "\ufffd", ""]


def test_bytes_that_are_no_text_are_marked_and_the_rest_kept(tokenizer):
    """Here decode differs: it gives up a run of byte tokens whole, which no stream can foresee."""
    ids = [9259, *byte_ids(b"\xffA\xe2\x98\x83\xe2"), 1902]
    assert "".join(stream(tokenizer, ids)) == "Hello\ufffdA☃\ufffd world"
    assert tokenizer.decode(ids) == "Hello" + "\ufffd" * 6 + " world"


def test_markers_come_through_as_text(tokenizer):
    text = '<|channel>thought\nhm\n<channel|>Hi <|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|>'
    pieces = stream(tokenizer, to_ids(tokenizer, text))
    assert "".join(pieces) == text
    assert {"<|channel>", "<channel|>", "<|tool_call>", '<|"|>', "<tool_call|>"} <= set(pieces)


def test_any_ids_stream_to_what_they_decode_to(tokenizer):
    """Bytes come as those of whole letters; for others see above."""
    rng = random.Random(0)
    for _ in range(300):
        ids = []
        for _ in range(rng.randrange(1, 40)):
            letter = byte_ids(chr(rng.randrange(0xE000, 0x110000)).encode())
            token = rng.randrange(len(tokenizer))
            is_byte = FIRST_BYTE <= token < FIRST_BYTE + 256
            ids += letter if is_byte or rng.random() < 0.2 else [token]
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_turns_that_come_again_have_the_ids_of_the_whole(tokenizer):
    """Encoded turn by turn, and as the library encodes all at once; the second time too."""
    turns = [f"<|turn>user\n{text}<turn|>\n" for text in (*TEXTS, "a < |turn> <|turn", "\n ")]
    text = f"<bos>{''.join(turns)} <|turn>model\n"
    whole = tokenizer._encoder.encode(text, add_special_tokens=False).ids
    for _ in range(2):
        assert tokenizer.encode(text, add_special_tokens=False) == whole
