"""The same text through a tokenizer.model and through the tokenizer.json made of it."""

import json
import random

import pytest
import sentencepiece
from small_sentencepiece import CONTROL, TEXT, train

from hlwq_mlx.dialog.sentencepiece_model import to_tokenizer_json
from hlwq_mlx.dialog.tokenizer import load_tokenizer
from hlwq_mlx.errors import CheckpointError

SAMPLES = [
    "Hello, world!",
    " leading and trailing  ",
    "a  b   c    d     e      f\n\n\n g",
    "<b>bold</b> <bold> </b",
    "Grüße, 日本語 🤖 e\u0301 \x00\x7f",
    "aaaa aaaaa ababab 1234567",
    "▁written ▁▁ out",
    "\t\ttabs",
]


@pytest.fixture(scope="module")
def model():
    return train()


@pytest.fixture(scope="module")
def both(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    (folder / "tokenizer.json").write_text(to_tokenizer_json(model, {}, "tokenizer.model"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    return sentencepiece.SentencePieceProcessor(model_proto=model), load_tokenizer(folder)


def samples():
    """Texts by hand, the licence's lines, and letters, spaces and marks in any order."""
    yield from SAMPLES
    yield from TEXT.read_text().splitlines(keepends=True)
    rng = random.Random(0)
    for _ in range(500):
        yield "".join(rng.choices(["a", "e", "n", "th", " ", "  ", "\n", "<b>", "é", "9"], k=20))


def test_ids_and_text_are_those_of_sentencepiece(both):
    theirs, ours = both
    for text in samples():
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text


def test_control_tokens_are_single_ids_which_sentencepiece_takes_from_nobody(both):
    theirs, ours = both
    for name in ("<pad>", "<eos>", "<bos>", "<unk>", *CONTROL):
        assert ours.encode(name, add_special_tokens=False) == [theirs.piece_to_id(name)]
        assert name in ours.all_special_tokens or name in CONTROL


def test_added_tokens_come_from_the_settings(model, tmp_path):
    end = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    stated = {str(end): {"content": "<image>", "special": True}}
    settings = {"added_tokens_decoder": stated}
    made = json.loads(to_tokenizer_json(model, settings, "tokenizer.model"))
    assert (made["added_tokens"][-1]["content"], made["added_tokens"][-1]["id"]) == ("<image>", end)
    settings = {"added_tokens_decoder": {"5": {"content": "<image>"}}}
    with pytest.raises(CheckpointError, match=r"got '<image>' as 5\. The files do not belong"):
        to_tokenizer_json(model, settings, "tokenizer.model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "unigram"}, "got one without byte-pair encoding"),
        ({"add_dummy_prefix": True}, "got one without no space put before the text"),
        ({"normalization_rule_name": "nmt_nfkc"}, "got one without text that is not normalized"),
    ],
)
def test_a_model_of_another_kind_is_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        to_tokenizer_json(train(**changes), {}, "tokenizer.model")


@pytest.mark.parametrize("content", [b"", b"none", bytes(100), None])
def test_what_is_no_model_is_refused(model, content):
    content = model[: len(model) // 2] if content is None else content
    with pytest.raises(CheckpointError, match=r"\[tokenizer\.model\] needed a SentencePiece model"):
        to_tokenizer_json(content, {}, "tokenizer.model")
