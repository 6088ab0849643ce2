"""The tokenizer of a folder, with every id that ends an answer.

mlx-lm's wrapper does the work; two things about it are wrong for Gemma 4 in 0.32.2. It takes the
stop ids of config.json or generation_config.json, not both, which is put right here. Its template
call turns thinking on unless told not to, so `dialog.template` always tells it.
"""

import json
from pathlib import Path
from typing import Any

from mlx_lm import tokenizer_utils
from transformers import PreTrainedConfig

from ..errors import SourceError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
STOP_TOKENS = ("<eos>", "<turn|>", "<|tool_response>")
TOOL_PARSER = "gemma4"


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder as mlx-lm's TokenizerWrapper.

    Raises: SourceError when the folder has none.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise SourceError(
            f"[{folder}] needed tokenizer.json or tokenizer.model, got neither. "
            "Copy the tokenizer files of the original model into the folder."
        )
    # Our model type is none of transformers'; a neutral config keeps it from being looked up.
    tokenizer = tokenizer_utils.load(
        folder, {"config": PreTrainedConfig()}, defaults={"tool_parser_type": TOOL_PARSER}
    )
    tokenizer.eos_token_ids = stop_ids(folder, tokenizer)
    return tokenizer


def stop_ids(folder: Path, tokenizer: Any) -> set[int]:
    """Collect the ids that end an answer: what either config says and Gemma 4's own markers."""
    found = set(tokenizer.eos_token_ids)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        stated = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        found |= {stated} if isinstance(stated, int) else set(stated or ())
    vocabulary = tokenizer.get_vocab()
    return found | {vocabulary[token] for token in STOP_TOKENS if token in vocabulary}
