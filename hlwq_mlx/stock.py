"""Our model as stock mlx-lm meets it, under the name `mlx_lm.models.hlwq_gemma4`.

mlx-lm builds a model from its config alone and does not say where the folder is, which the row
store and the towers need. `plugin` adds the folder to the config that mlx-lm reads; here the model
gets what it will read of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
from transformers import AutoConfig, Gemma4Config

from .dialog.tokenizer import TOOL_PARSER
from .errors import CheckpointError
from .gemma4 import config, model
from .plugin import FOLDER_KEY, MODEL_TYPE
from .store import checkpoint

__all__ = ["TOKENIZER_DEFAULTS", "Model", "ModelArgs"]

TOKENIZER_DEFAULTS = {"tool_parser_type": TOOL_PARSER}


@dataclass(frozen=True)
class ModelArgs(config.Gemma4Config):
    """Gemma 4's configuration and the folder it was read from."""

    folder: Path

    @classmethod
    def from_dict(cls, config_: Mapping[str, Any]) -> Self:
        """Read a parsed config.json that `plugin` has added the folder to.

        Raises: ConfigError as Gemma4Config does; CheckpointError when there is no folder.
        """
        folder = config_.get(FOLDER_KEY)
        if folder is None:
            raise CheckpointError(
                "[config] needed the folder of the model, got none. Import hlwq_mlx before mlx-lm "
                "loads a model, or run `python -m hlwq_mlx.register` once."
            )
        plain = config.Gemma4Config.from_dict(config_)
        values = {field.name: getattr(plain, field.name) for field in fields(plain)}
        return cls(**values, folder=Path(folder))


class Model(model.Model):
    """Gemma 4 with rows and towers from its folder."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        checkpoint.attach(self, args.folder)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Drop what the tree has no place for, and cast the rest to what this machine runs."""
        return checkpoint.cast(super().sanitize(weights))


class _Config(Gemma4Config):  # type: ignore[misc]  # transformers is untyped
    model_type = MODEL_TYPE


# mlx-lm looks the tokenizer up by model type, and transformers warns of types it does not know.
AutoConfig.register(MODEL_TYPE, _Config, exist_ok=True)
