"""The demo's tokenizer: Gemma 4's construction and special tokens with a vocabulary of 1,024.

Ids below 108 are those of the real tokenizer, so stop ids and template markers are the real ones;
256 byte tokens follow, then characters and merges learnt from TinyWorld, and the media tokens last.
"""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import tinyworld
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024
CORPUS_CONVERSATIONS = 4000
TEMPLATE = Path(__file__).parent.parent / "hlwq_mlx" / "demo" / "chat_template.jinja"
REAL_SPECIALS = {
    0: "<pad>",
    1: "<eos>",
    2: "<bos>",
    3: "<unk>",
    4: "<mask>",
    46: "<|tool>",
    47: "<tool|>",
    48: "<|tool_call>",
    49: "<tool_call|>",
    50: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>',
    98: "<|think|>",
    100: "<|channel>",
    101: "<channel|>",
    105: "<|turn>",
    106: "<turn|>",
}
NEWLINE = 107
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
    """Name every special token and its id."""
    names = {name: token for token, name in REAL_SPECIALS.items()}
    first = VOCABULARY - len(MEDIA_SPECIALS)
    return names | {name: first + index for index, name in enumerate(MEDIA_SPECIALS)}


def corpus() -> list[str]:
    """Spell the text from which merges are learnt."""
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
    """Build the tokenizer with Gemma 4's normalizer, model and decoder."""
    specials = special_names()
    names = {token: name for name, token in specials.items()}
    vocabulary = {names.get(token, f"<unused{token}>"): token for token in range(NEWLINE)}
    vocabulary["\n"] = NEWLINE
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    room = VOCABULARY - len(MEDIA_SPECIALS) - len(vocabulary)
    pieces, merges = learn_merges(room)
    for piece in pieces:
        vocabulary[piece] = len(vocabulary)
    while len(vocabulary) < VOCABULARY - len(MEDIA_SPECIALS):
        vocabulary[f"<unused{len(vocabulary)}>"] = len(vocabulary)
    vocabulary |= {name: specials[name] for name in MEDIA_SPECIALS}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in specials]
    )
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, its config and the chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text()) | {"tokenizer_class": "GemmaTokenizer"}
    config_path.write_text(json.dumps(config, indent=1) + "\n")
    shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")


def load_tokenizer(folder: Path) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(folder)


IDS = special_names() | {
    piece: token
    for piece, token in build_tokenizer().get_vocab().items()
    if piece in ("\n", "model", *"0123456789")
}
