"""Our model as stock mlx-lm meets it, under the name `mlx_lm.models.hlwq_gemma4`.

mlx-lm builds a model from its config alone and does not say where the folder is, which the row
store and the towers need. `plugin` adds the folder to the config that mlx-lm reads; here the model
gets what it will read of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import mlx.core as mx
import numpy as np
from mlx_lm.processors import PROCESSORS
from transformers import AutoConfig, Gemma4Config

from .. import prompt
from ..dialog.parts import Medium
from ..dialog.placeholders import MARKERS, expand_text
from ..engine.sampling import mask_tokens
from ..errors import CheckpointError
from ..folder import loading
from ..folder.folder import Folder
from ..gemma4 import config, model
from ..media import processor
from ..media.origin import Access
from ..prompt import PreparedMedium
from ..quant.backends.native.library import native_library
from ..quant.plain import is_kept, keep_plain
from .caches import make_caches
from .plugin import FOLDER_KEY, MODEL_TYPE, require_patched

__all__ = ["TOKENIZER_DEFAULTS", "Model", "ModelArgs", "Processor"]

MOST_LOOKED_AT = 16  # positions whose scores somebody reads: drafts, not a prompt
TOKENIZER_DEFAULTS = {"tool_parser_type": "gemma4"}


@dataclass(frozen=True)
class ModelArgs(config.Gemma4Config):
    """Gemma 4's configuration and the folder it was read from."""

    folder: Folder

    @classmethod
    def from_dict(cls, config_: Mapping[str, Any]) -> Self:
        """Read a parsed config.json that `plugin` has added the folder to.

        Raises: ConfigError as Gemma4Config does; CheckpointError when there is no folder;
        DeviceError when this mlx-lm cannot tell it.
        """
        path = config_.get(FOLDER_KEY)
        if path is None:
            require_patched()
            raise CheckpointError(
                "[config] needed the folder of the model, got none. Import hlwq_mlx before mlx-lm "
                "loads a model, or run `python -m hlwq_mlx.register` once."
            )
        folder = Folder(Path(path), config_)
        values = {field.name: getattr(folder.args, field.name) for field in fields(folder.args)}
        return cls(**values, folder=folder)


class Model(model.Model):
    """Gemma 4 with rows and towers from its folder."""

    def __init__(self, args: ModelArgs) -> None:
        loading.require_own_shards(args.folder)
        super().__init__(args, loading.resources(args.folder))
        self._mask = mask_tokens(args.media_token_ids, args.text_config.vocab_size)
        self._folder = args.folder

    def make_cache(self) -> list[Any]:  # type: ignore[override]  # mlx-lm passes nothing
        """Make an empty cache of mlx-lm's own for each layer that makes keys and values."""
        return make_caches(self.args.text_config)

    def __call__(
        self,
        inputs: mx.array,
        cache: Sequence[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Score every position as the base does, but leave media tokens no chance: stock samplers
        know nothing of them.

        mlx-lm drops the scores of a prompt's pieces, which go into a cache. The native library
        cannot know that before it has computed them, so stock MLX does, slowly, if somebody looks.
        """
        hidden = self.states(inputs, cache, input_embeddings)
        is_piece = cache is not None and inputs.shape[1] > MOST_LOOKED_AT
        if is_piece and native_library():
            return self._mask(self.model.language_model.logits_later(hidden))
        return self._mask(self.logits(hidden))

    def embed_inputs(self, tokens: mx.array, *, pixel_values: Sequence[PreparedMedium]) -> mx.array:
        """Make the embeddings of a prompt and of what `Processor` made of its media.

        Shapes: tokens [L] -> [L, H].
        Raises: RequestError for a medium whose tower is not there.
        """
        for span, *_ in pixel_values:
            prompt.require_tower(self.args, span.kind)
        media = prompt.with_features(self, pixel_values)
        return prompt.embed_with_media(self, np.array(tokens).tolist(), media)[0]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Drop what the tree has no place for, and cast the rest to what this machine runs.

        Raises: CheckpointError listing all that is missing, extra or of another shape.
        """
        kept = super().sanitize(weights)
        loading.check_weights(self, kept, self._folder)
        return loading.cast(kept, stays=is_kept)

    def load_weights(self, *weights: Any, **options: Any) -> "Model":
        """Load weights as any module does, and keep those of 16 bits where the library reads them.

        Raises: ValueError as any module does.
        """
        super().load_weights(*weights, **options)
        keep_plain(self)
        return self


@dataclass(frozen=True)
class Processor:
    """The processor that mlx-lm calls for a prompt's pictures."""

    image_token: ClassVar[str] = MARKERS["image"]

    settings: processor.Processor
    context: int  # soft tokens that media may take

    @classmethod
    def from_config(cls, config_: Mapping[str, Any]) -> Self:
        """Read the processor file of the folder that `plugin` named in the config."""
        args = ModelArgs.from_dict(config_)
        settings = processor.Processor.from_folder(args.folder.path)
        return cls(settings, args.text_config.max_position_embeddings)

    def __call__(
        self, text: str, *, images: Sequence[np.ndarray]
    ) -> tuple[str, list[PreparedMedium]]:
        """Prepare images and write their soft tokens in the place of the text's placeholders.

        Shapes: image uint8 [h, w, 3].
        Raises: RequestError for images that cannot be read, or are not as many as placeholders.
        """
        media = [Medium("image", each) for each in images]
        prepared = prompt.prepare_media(media, self.settings, Access(files=False), self.context)
        return expand_text(text, [span for span, *_ in prepared]), prepared


PROCESSORS[MODEL_TYPE] = Processor


class _Config(Gemma4Config):  # type: ignore[misc]  # transformers is untyped
    model_type = MODEL_TYPE


# mlx-lm looks the tokenizer up by model type, and transformers warns of types it does not know.
AutoConfig.register(MODEL_TYPE, _Config, exist_ok=True)
