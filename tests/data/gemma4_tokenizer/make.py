"""Makes this folder's vocabulary.txt.xz and facts.json from llama.cpp's Gemma 4 vocabulary.

    pip download --no-deps --no-binary :all: -d . llama-cpp-python==0.3.36
    tar xzf llama_cpp_python-0.3.36.tar.gz --strip-components=3 --wildcards '*/vendor/llama.cpp/models/*'
    PYTHONPATH=tests python tests/data/gemma4_tokenizer/make.py models/ggml-vocab-gemma-4.gguf

Reads the GGUF file and the .inp and .out files beside it (46 strings and their ids). The merges are
not kept: the vocabulary implies them, which is checked here and, by their digest, in the tests.
"""

import hashlib
import json
import lzma
import struct
import sys
from pathlib import Path

import real_tokenizer

GGUF_SHA256 = "58b1ba0b57f3b4d7c468ba4ffd91ad85190346a3d7ad7e71d1cabaae8a14bb65"
SPECIAL, ADDED, BYTE = 3, 4, 6
TEXT, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
DIVIDER = "\n__ggml_vocab_test__\n"


class Reader:
    """Reads the values of a GGUF file one after another."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def numbers(self, letter, count=1):
        found = struct.unpack_from(f"<{count}{letter}", self.data, self.at)
        self.at += struct.calcsize(f"<{count}{letter}")
        return found

    def text(self):
        (size,) = self.numbers("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind):
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            return self.numbers(SCALARS[kind])[0]
        (kind,), (count,) = self.numbers("I"), self.numbers("Q")
        return [self.text() for _ in range(count)] if kind == TEXT else self.numbers(SCALARS[kind], count)

    def fields(self):
        assert self.data[:4] == b"GGUF"
        self.at = 16  # magic, version, count of tensors
        (count,) = self.numbers("Q")
        return {self.text(): self.value(self.numbers("I")[0]) for _ in range(count)}


def main(path):
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == GGUF_SHA256
    fields = Reader(data).fields()
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    byte_tokens = [token for token, kind in zip(tokens, kinds) if kind == BYTE]
    assert byte_tokens == [f"<0x{value:02X}>" for value in range(256)]
    assert fields["tokenizer.ggml.merges"] == [f"{a} {b}" for a, b in real_tokenizer.merges(tokens)]
    texts = path.with_name(f"{path.name}.inp").read_text().removesuffix(DIVIDER).split(DIVIDER)
    lines = path.with_name(f"{path.name}.out").read_text().splitlines()
    facts = {
        "special": [i for i, kind in enumerate(kinds) if kind == SPECIAL],
        "added": [i for i, kind in enumerate(kinds) if kind == ADDED],
        "merges_sha256": real_tokenizer.digest(real_tokenizer.merges(tokens)),
        "references": [
            {"text": text, "ids": [int(number) for number in line.split()]}
            for text, line in zip(texts, lines, strict=True)
        ],
    }
    folder = Path(__file__).parent
    (folder / "facts.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n")
    packed = lzma.compress("\0".join(tokens).encode(), preset=9 | lzma.PRESET_EXTREME)
    (folder / "vocabulary.txt.xz").write_bytes(packed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
