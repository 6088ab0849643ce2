"""A tokenizer of Gemma 4's construction with its real special ids, a byte or a letter a token."""

import json
import shutil
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import hlwq_mlx

TEMPLATE = Path(hlwq_mlx.__file__).parent / "demo" / "chat_template.jinja"
SPECIALS = {
    0: "<pad>",
    1: "<eos>",
    2: "<bos>",
    3: "<unk>",
    46: "<|tool>",
    47: "<tool|>",
    48: "<|tool_call>",
    49: "<tool_call|>",
    50: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>',
    60: "<|image>",
    61: "<|image|>",
    62: "<image|>",
    63: "<|audio>",
    64: "<|audio|>",
    65: "<audio|>",
    66: "<|video|>",
    98: "<|think|>",
    100: "<|channel>",
    101: "<channel|>",
    105: "<|turn>",
    106: "<turn|>",
}
LETTERS = [chr(code) for code in range(33, 127)]


def build() -> Tokenizer:
    vocabulary = {SPECIALS.get(at, f"<unused{at}>"): at for at in range(107)} | {"\n": 107}
    for piece in [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]:
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [], byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in SPECIALS.values()]
    )
    return tokenizer


def write(folder: Path, *, has_template: bool = True) -> Path:
    """Write the tokenizer's files as a released folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=build(),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    stated = json.loads(path.read_text()) | {"tokenizer_class": "GemmaTokenizer"}
    path.write_text(json.dumps(stated))
    if has_template:
        shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")
    return folder
