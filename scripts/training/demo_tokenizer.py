"""The demo's tokenizer: Gemma 4's construction and special tokens with a vocabulary of 1,024.

Ids below 108 are those of the real tokenizer, so stop ids and template markers are the real ones;
256 byte tokens follow, then characters and merges learnt from TinyWorld, and the media tokens last.
"""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from scripts.training import gemma_tokenizer, tinyworld

VOCABULARY = 1024
CORPUS_CONVERSATIONS = 4000
TEMPLATE = Path(__file__).parents[2] / "hlwq_mlx" / "demo" / "chat_template.jinja"
MEDIA_SPECIALS = (
    "<|image>",
    "<|audio>",
    "<|image|>",
    "<|audio|>",
    "<image|>",
    "<audio|>",
    "<|video|>",
)
EXTRA_WORDS = (
    "system user model thought call response declaration description parameters properties "
    "required type value OBJECT STRING calculator expression"
)


def special_names() -> dict[str, int]:
    """Return every special token and its id."""
    first = VOCABULARY - len(MEDIA_SPECIALS)
    return gemma_tokenizer.SPECIALS | {
        name: first + index for index, name in enumerate(MEDIA_SPECIALS)
    }


def corpus() -> list[str]:
    """Return the text from which merges are learnt."""
    stream = itertools.islice(
        tinyworld.conversations("tokenizer", tinyworld.STAGES[0]), CORPUS_CONVERSATIONS
    )
    lines = [str(message["content"]) for item in stream for message in item["messages"]]
    return lines + [*EXTRA_WORDS.split(), "Computes an expression."] * 400


def learn_merges(size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Learn up to `size` characters and merges; digits never merge."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(),
        ]
    )
    printable = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=[*printable, "▁"], show_progress=False
    )
    learner.train_from_iterator(corpus(), trainer)
    model = json.loads(learner.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return [piece for piece in pieces if piece != "\n"], [tuple(pair) for pair in model["merges"]]


def build_tokenizer() -> Tokenizer:
    """Build the demo's tokenizer: what is learnt fills the ids up to the media tokens."""
    specials = special_names()
    vocabulary = gemma_tokenizer.first_vocabulary()
    pieces, merges = learn_merges(VOCABULARY - len(MEDIA_SPECIALS) - len(vocabulary))
    for piece in pieces:
        vocabulary[piece] = len(vocabulary)
    while len(vocabulary) < VOCABULARY - len(MEDIA_SPECIALS):
        vocabulary[f"<unused{len(vocabulary)}>"] = len(vocabulary)
    vocabulary |= {name: specials[name] for name in MEDIA_SPECIALS}
    return gemma_tokenizer.build(vocabulary, merges, list(specials))


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, its config and the chat template."""
    gemma_tokenizer.write(build_tokenizer(), folder)
    shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")


def load_tokenizer(folder: Path) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(folder)


IDS = special_names() | {
    piece: token
    for piece, token in build_tokenizer().get_vocab().items()
    if piece in ("\n", "model", *"0123456789")
}
