"""Gemma 4's own tokenizer, 262,144 entries, written as the released tokenizer.json has it.

The fixture holds the vocabulary alone (see tests/data/NOTICE): its merges follow from it.
"""

import functools
import hashlib
import json
import lzma
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tiny_tokenizer

from hlwq_mlx.dialog.tokenizer import load_tokenizer

DATA = Path(__file__).parents[1] / "data" / "gemma4_tokenizer"
FIRST_LEARNT = "▁t"
RUN = re.compile(r"(\n{2,}|\t{2,}|▁{2,})\Z")
SETTINGS = {
    "tokenizer_class": "GemmaTokenizer",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "padding_side": "left",
    "model_max_length": 10**30,
}


@functools.cache
def facts() -> dict[str, Any]:
    """What else was kept: ids of special and added tokens, reference strings, a digest."""
    return json.loads((DATA / "facts.json").read_text())


def read_vocabulary() -> list[str]:
    """The tokens in order of their ids."""
    return lzma.decompress((DATA / "vocabulary.txt.xz").read_bytes()).decode().split("\0")


def merges(tokens: list[str]) -> Iterator[tuple[str, str]]:
    """Yield every pair of tokens that makes a third, in order of the third's rank.

    That is how transformers reads SentencePiece's scores. Runs of one kind of space share the
    rank of the first pair learnt.
    """
    known = set(tokens)

    def splits(token: str) -> list[tuple[str, str]]:
        return [
            (token[:at], token[at:])
            for at in range(len(token) - 1, 0, -1)
            if token[:at] in known and token[at:] in known
        ]

    first = [token for token in tokens if token == FIRST_LEARNT or RUN.match(token)]
    tied = [pair for token in first for pair in splits(token)]
    yield from sorted(tied, key=lambda pair: (-len(pair[0]), -len(pair[1])))
    known_first = set(first)
    for token in tokens:
        if token not in known_first:
            yield from splits(token)


def digest(pairs: Iterable[tuple[str, str]]) -> str:
    """The digest of merges as facts.json states it."""
    return hashlib.sha256("\n".join(map(" ".join, pairs)).encode()).hexdigest()


@functools.cache
def tokenizer_json() -> dict[str, Any]:
    """The content of tokenizer.json."""
    tokens = read_vocabulary()
    space = {"String": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": at,
                "content": tokens[at],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": at in facts()["special"],
            }
            for at in sorted(facts()["special"] + facts()["added"])
        ],
        "normalizer": {"type": "Replace", "pattern": space, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": space,
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: at for at, token in enumerate(tokens)},
            "merges": list(merges(tokens)),
        },
    }


def write(folder: Path) -> Path:
    """Write the tokenizer's files and E4B's template into a folder."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(), ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    shutil.copyfile(tiny_tokenizer.TEMPLATE, folder / "chat_template.jinja")
    return folder


@functools.cache
def load() -> Any:
    """The tokenizer, made once a process: it takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(write(Path(folder)))
