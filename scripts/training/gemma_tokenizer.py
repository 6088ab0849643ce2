"""Tokenizers of Gemma 4's construction over a vocabulary of one's own: the demo's, and a test's."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FIRST_PIECE = 107  # ids before it are the real tokenizer's special tokens, so stop ids are the same
SPECIALS = {
    "<pad>": 0,
    "<eos>": 1,
    "<bos>": 2,
    "<unk>": 3,
    "<mask>": 4,
    "<|tool>": 46,
    "<tool|>": 47,
    "<|tool_call>": 48,
    "<tool_call|>": 49,
    "<|tool_response>": 50,
    "<tool_response|>": 51,
    '<|"|>': 52,
    "<|think|>": 98,
    "<|channel>": 100,
    "<channel|>": 101,
    "<|turn>": 105,
    "<turn|>": 106,
}


def first_vocabulary() -> dict[str, int]:
    """Begin a vocabulary: special tokens, unused ids between them, newline and the bytes."""
    names = {token: name for name, token in SPECIALS.items()}
    vocabulary = {names.get(token, f"<unused{token}>"): token for token in range(FIRST_PIECE)}
    for piece in ("\n", *(f"<0x{byte:02X}>" for byte in range(256))):
        vocabulary[piece] = len(vocabulary)
    return vocabulary


def build(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], specials: list[str]
) -> Tokenizer:
    """Build a tokenizer with Gemma 4's normalizer, model and decoder."""
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


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as a released folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "GemmaTokenizer"}
    path.write_text(json.dumps(config, indent=1) + "\n")
