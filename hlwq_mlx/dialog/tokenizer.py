"""The tokenizer of a folder, with every id that ends an answer.

mlx-lm's wrapper does the work; two things about it are wrong for Gemma 4 in 0.32.2. It takes the
stop ids of config.json or generation_config.json, not both: our own commands take both. Its
template call turns thinking on unless told not to, so `dialog.template` always tells it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlx_lm import tokenizer_utils
from transformers import PreTrainedConfig

from ..errors import SourceError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
STOP_TOKENS = ("<eos>", "<turn|>", "<|tool_response>")
TOOL_PARSER = "gemma4"


def load_tokenizer(folder: Path, configs: Iterable[Mapping[str, Any]] = ()) -> Any:
    """Load the tokenizer of a model folder as mlx-lm's TokenizerWrapper.

    `configs` are the folder's parsed config files, each of which may name stop ids.
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
    tokenizer.eos_token_ids = stop_ids(tokenizer, configs)
    return tokenizer


def stop_ids(tokenizer: Any, configs: Iterable[Mapping[str, Any]]) -> set[int]:
    """Collect the ids that end an answer: what any config says and Gemma 4's own markers."""
    found = set(tokenizer.eos_token_ids)
    for config in configs:
        stated = config.get("eos_token_id")
        found |= {stated} if isinstance(stated, int) else set(stated or ())
    vocabulary = tokenizer.get_vocab()
    return found | {vocabulary[token] for token in STOP_TOKENS if token in vocabulary}
