"""A tokenizer of Gemma 4's construction with its real special ids, a byte or a letter a token."""

import shutil
from pathlib import Path

from tokenizers import Tokenizer

import hlwq_mlx
from scripts.training import gemma_tokenizer

TEMPLATE = Path(hlwq_mlx.__file__).parent / "demo" / "chat_template.jinja"
MEDIA = {
    60: "<|image>",
    61: "<|image|>",
    62: "<image|>",
    63: "<|audio>",
    64: "<|audio|>",
    65: "<audio|>",
    66: "<|video|>",
}
LETTERS = [chr(code) for code in range(33, 127)]


def build() -> Tokenizer:
    first = gemma_tokenizer.first_vocabulary()
    vocabulary = {MEDIA.get(token, piece): token for piece, token in first.items()}
    for piece in ["▁", *LETTERS]:
        vocabulary[piece] = len(vocabulary)
    return gemma_tokenizer.build(vocabulary, [], [*gemma_tokenizer.SPECIALS, *MEDIA.values()])


def write(folder: Path, *, has_template: bool = True) -> Path:
    """Write the tokenizer's files as a released folder has them."""
    gemma_tokenizer.write(build(), folder)
    if has_template:
        shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")
    return folder
