"""The tokenizer of a folder, with every id that ends an answer.

mlx-lm's wrapper does the work; two things about it are wrong for Gemma 4 in 0.32.2. It takes the
stop ids of config.json or generation_config.json, not both: our own commands take both. Its
template call turns thinking on unless told not to, so `dialog.template` always tells it.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mlx_lm import tokenizer_utils
from transformers import PreTrainedConfig

from ..errors import CheckpointError, ConfigError, SourceError
from . import trial

FILE_NAME = "tokenizer.json"
STOP_TOKENS = ("<eos>", "<turn|>", "<|tool_response>")
TOOL_PARSER = "gemma4"
# A tokenizer of another class would read the file in a way that Gemma was not trained with.
CLASSES = (
    *("GemmaTokenizer", "GemmaTokenizerFast"),
    *("PreTrainedTokenizerFast", "TokenizersBackend"),
)
_SAMPLE = "Hello, world! 2+2=4\n\tü🤖"


def load_tokenizer(
    folder: Path, configs: Iterable[Mapping[str, Any]] = (), passed: Collection[str] = ()
) -> Any:
    """Load the tokenizer of a model folder as mlx-lm's TokenizerWrapper.

    `configs` are the folder's parsed config files, each of which may name stop ids; `passed` are
    digests of chat templates that were tried before. Nothing in the folder is executed.
    Raises: SourceError when there is no tokenizer.json; CheckpointError when a file is damaged, or
    the chat template takes too long or too much memory; ConfigError for stop ids that are no ids.
    """
    if not (folder / FILE_NAME).is_file():
        raise SourceError(
            f"[{folder}] needed {FILE_NAME}, got none. "
            "Copy the tokenizer files of the original model into the folder it was made of, and "
            "convert the model again."
        )
    try:
        # Our model type is none of transformers'; a neutral config keeps it from being looked up.
        tokenizer = tokenizer_utils.load(
            folder,
            {"config": PreTrainedConfig(), "trust_remote_code": False},
            defaults={"tool_parser_type": TOOL_PARSER},
        )
        _require_same_text(tokenizer)
    except Exception as problem:
        raise _damaged(folder, problem) from problem
    trial.require_harmless(trial.templates_of(tokenizer), passed, folder / "chat_template.jinja")
    tokenizer.eos_token_ids = stop_ids(tokenizer, configs)
    return tokenizer


def _require_same_text(tokenizer: Any) -> None:
    """Raise ValueError unless ids of a text give the text again."""
    got = tokenizer.decode(tokenizer.encode(_SAMPLE, add_special_tokens=False))
    if got != _SAMPLE:
        raise ValueError(f"{got!r} for {_SAMPLE!r}")


def _damaged(folder: Path, problem: Exception) -> CheckpointError:
    got = " ".join(f"{type(problem).__name__}: {problem}".split())[:200]
    return CheckpointError(
        f"[{folder / FILE_NAME}] needed the tokenizer of a Gemma 4, with tokenizer_config.json "
        f"beside it, got {got}. Fetch both files again."
    )


def stop_ids(tokenizer: Any, configs: Iterable[Mapping[str, Any]]) -> set[int]:
    """Collect the ids that end an answer: what any config says and Gemma 4's own markers.

    Raises: ConfigError as `stated_ids`.
    """
    found = set(tokenizer.eos_token_ids)
    for config in configs:
        found |= stated_ids(config)
    vocabulary = tokenizer.get_vocab()
    return found | {vocabulary[token] for token in STOP_TOKENS if token in vocabulary}


def stated_ids(config: Mapping[str, Any], where: str = "config.json") -> set[int]:
    """Return the stop ids that a config states: one, several or none.

    Raises: ConfigError for anything else.
    """
    stated = config.get("eos_token_id")
    listed = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if not all(type(token) is int and token >= 0 for token in listed):
        raise ConfigError(
            f"[{where}] needed token ids as eos_token_id, got {str(stated)[:80]!r}. "
            "Fetch the file again."
        )
    return set(listed)


def require_gemma_class(settings: Mapping[str, Any], where: str) -> None:
    """Refuse the settings of another kind of tokenizer.

    Raises: ConfigError.
    """
    named = settings.get("tokenizer_class")
    if named is not None and named not in CLASSES:
        raise ConfigError(
            f"[{where}] needed {CLASSES[0]} as tokenizer_class, got {str(named)[:80]!r}. "
            "Take the tokenizer files of the original model."
        )
