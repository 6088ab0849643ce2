"""A SentencePiece model of Gemma's construction, trained on the licence."""

import io
from pathlib import Path

import sentencepiece

TEXT = Path(__file__).parents[2] / "LICENSE"
DEFINED = ["\n", "\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<b>", "</b>", "<start_of_turn>"]
CONTROL = ["<mask>", "<end_of_turn>"]


def train(**changes):
    """Train a model as Gemma's was, on the licence."""
    options = {
        "sentence_iterator": iter(TEXT.read_text().splitlines()),
        "model_writer": (model := io.BytesIO()),
        "model_type": "bpe",
        "vocab_size": 600,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        **{f"{name}_piece": f"<{name}>" for name in ("pad", "eos", "bos", "unk")},
        "control_symbols": CONTROL,
        "user_defined_symbols": DEFINED,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(**options | changes)
    return model.getvalue()
