"""The whole model: token ids and caches in, logits out.

Its module tree carries the checkpoint's names. It reads no files: weights are loaded into it, and
`Resources` provides the rows of the per-layer-embedding table, and a tower when the first image or
sound needs one. It does not sample.
B batch, L positions, H hidden size, V vocabulary, N layers, d per-layer input width.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx
import numpy as np
from mlx import nn

from ..errors import CheckpointError, RequestError, ShapeError
from ..quant.layers import code_modules
from .caches import WHOLE, Caching, make_caches
from .config import FLAT, Gemma4Config
from .experts import canonical
from .features import insert_features
from .late_rows import LateRows
from .masks import Mask, attention_masks
from .text import AfterLayer, Filled, Shared, TextModel, nothing
from .towers.config import AUDIO, VISION
from .towers.tower import TOWER_PREFIXES, Tower, no_tower

ModelArgs = Gemma4Config

KEY_VALUE_PARTS = ("k_proj", "v_proj", "k_norm")
KEY_VALUE = re.compile(
    rf"^model\.language_model\.layers\.(\d{{1,6}})\.self_attn\.({'|'.join(KEY_VALUE_PARTS)})\."
)


def _no_rows(ids: np.ndarray) -> mx.array:
    raise CheckpointError(
        "[model.rows] needed the row store of embed_tokens_per_layer, got none. "
        "Give Model its resources; loading a folder does it."
    )


def _no_loader(kind: str) -> Tower:
    raise CheckpointError(
        f"[model.load_tower] needed a loader of the {kind} tower, got none. "
        "Give Model its resources; loading a folder does it."
    )


class Resources(NamedTuple):
    """Sources that a model reads while it runs.

    `rows` turns int ids [B, L] on the host into the rows [B, L, N * d] of
    `embed_tokens_per_layer`, unscaled; a model without per-layer embeddings needs none.
    `load_tower` returns the `vision` or the `audio` tower with its weights. `folder` holds the
    settings by which media are prepared.
    """

    rows: Callable[[np.ndarray], mx.array] = _no_rows
    load_tower: Callable[[str], Tower] = _no_loader
    folder: Path | None = None


NO_RESOURCES = Resources()


class _Towers:
    """Towers, each loaded when it is first used.

    This is no nn.Module, so that towers stay outside the model's tree, which is the text model's.
    """

    def __init__(self, load: Callable[[str], Tower]) -> None:
        self._load = load
        self._loaded: dict[str, Tower] = {}

    def __getitem__(self, kind: str) -> Tower:
        if kind not in self._loaded:
            self._loaded[kind] = self._load(kind)
        return self._loaded[kind]


class Start(NamedTuple):
    """What a forward pass begins with: x [B, L, H], rows [B, L, N * d], and where blocks are.

    `x` are the embeddings, of which per-layer inputs are made. The first layer reads them too, or
    what has `arrived` [B, L, H] from layers that another machine holds.
    """

    x: mx.array
    rows: mx.array | None
    cache: Sequence[Any]
    is_vision: np.ndarray | None
    arrived: mx.array | None = None

    @property
    def stream(self) -> mx.array:
        """What the first layer reads."""
        return self.x if self.arrived is None else self.arrived


class Pass(NamedTuple):
    """A forward pass between the layers that make keys and values and those that share them."""

    x: mx.array
    per_layer: Sequence[mx.array | None]
    shared: dict[str, Shared]


class CheckpointRoot(nn.Module):
    """The level `model.` of the checkpoint's names."""

    def __init__(self, args: Gemma4Config) -> None:
        super().__init__()
        self.language_model = TextModel(args.text_config)


class Model(nn.Module):
    """Gemma 4; its modules are coded where the config's HLWQ manifest says so."""

    # Whether a pass can be built before its tokens are known.
    works_ahead: ClassVar[bool] = True

    def __init__(self, args: Gemma4Config, resources: Resources = NO_RESOURCES) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = CheckpointRoot(args)
        self.resources = resources
        self._towers = _Towers(resources.load_tower)
        code_modules(self, args.manifest(lambda name: not name.startswith(TOWER_PREFIXES)))

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, where mlx-lm looks for them."""
        return self.model.language_model.layers

    def make_cache(self, caching: Caching = WHOLE) -> list[Any]:
        """Make an empty cache for each layer that makes keys and values.

        Raises: RequestError when they cannot be kept so.
        """
        return make_caches(self.args.text_config, caching)

    def embed(self, inputs: mx.array) -> mx.array:
        """Make input embeddings, scaled; soft tokens get the padding token's.

        Features from a tower replace those rows as they are, without scaling.
        Shapes: inputs int [B, L] -> [B, L, H].
        Raises: ShapeError, RequestError when an id is outside the vocabulary.
        """
        return self.model.language_model.embed(mx.array(self._hard(self._ids(inputs))))

    def image_features(self, patches: mx.array, positions: mx.array) -> mx.array:
        """Make the features of one image, or of one frame of a video.

        Shapes: as vision.VisionTower's, but the features are [n, H].
        Raises: ShapeError; RequestError for a checkpoint without the tower; CheckpointError when
        it cannot be loaded.
        """
        return self._tower(VISION)(patches, positions, dtype=self._dtype)

    def audio_features(self, mel: mx.array) -> mx.array:
        """Make the features of one clip.

        Shapes: as audio.AudioTower's, but the features are [n, H].
        Raises: as `image_features`.
        """
        return self._tower(AUDIO)(mel, dtype=self._dtype)

    def embed_media(
        self,
        inputs: mx.array,
        images: Sequence[mx.array] = (),
        sounds: Sequence[mx.array] = (),
        videos: Sequence[mx.array] = (),
    ) -> mx.array:
        """Make the input embeddings of a prompt with features in their places.

        Each kind's features stand in order of appearance; of a video they are its frames'.
        Shapes: inputs int [1, L], features each [n, H] -> [1, L, H].
        Raises: RequestError when a kind's features are not as many as its soft tokens; ShapeError.
        """
        ids = self._ids(inputs)
        if len(ids) != 1:
            raise ShapeError(
                f"[model.inputs] needed one prompt [1, L], got {list(ids.shape)}. "
                "Embed the prompts one by one."
            )
        x = self.embed(inputs)
        x = insert_features(x, ids, "image", self.args.image_token_id, images)
        x = insert_features(x, ids, "audio", self.args.audio_token_id, sounds)
        return insert_features(x, ids, "video", self.args.video_token_id, videos)

    def __call__(
        self,
        inputs: mx.array,
        cache: Sequence[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Score every position; a cache, if given, takes the new positions.

        `input_embeddings` are final, as `embed` makes them, with features in place; the ids are
        needed beside them for the per-layer embeddings. This differs from mlx-lm's Gemma 4, which
        scales what it is given.
        Shapes: inputs int [B, L], input_embeddings [B, L, H] -> float32 [B, L, V].
        Raises: ShapeError, RequestError; CheckpointError when rows are needed and there are none.
        """
        return self.logits(self.states(inputs, cache, input_embeddings))

    def states(
        self,
        inputs: mx.array,
        cache: Sequence[Any] | None = None,
        input_embeddings: mx.array | None = None,
        after_layer: AfterLayer = nothing,
    ) -> mx.array:
        """Return the hidden state behind the norm at every position, as `__call__` scores it.

        Shapes: as `__call__`'s -> [B, L, H].
        """
        begun = self.run(self.start(inputs, cache, input_embeddings), after_layer)
        return self.finish(begun, after_layer)

    def logits(self, hidden: mx.array) -> mx.array:
        """Score the vocabulary: hidden [B, L, H] -> float32 [B, L, V]."""
        return self.model.language_model.logits(hidden)

    def decode(self, inputs: mx.array, cache: Sequence[Any]) -> mx.array:
        """Score the next token of each row as `__call__` does, but begin with the work at once.

        MLX runs the first layers while Python still builds the later ones; the results are the
        same. Shapes: inputs int [B, 1] -> float32 [B, V].
        """
        return self.logits(self.states(inputs, cache, None, mx.async_eval))[:, -1]

    def decode_likeliest(
        self, inputs: mx.array, cache: Sequence[Any], most: int
    ) -> tuple[mx.array, mx.array]:
        """Score the next token of each row as `decode` does; return the logarithm of their sum too.

        Scores of others than the `most` likeliest may be -inf, where machines share the tokens.
        Shapes: inputs int [B, 1] -> float32 [B, V], [B, 1].
        """
        logits = self.decode(inputs, cache)
        return logits, mx.logsumexp(logits, axis=-1, keepdims=True)

    def check(self, inputs: mx.array, cache: Sequence[Any]) -> tuple[mx.array, mx.array]:
        """Score the token behind each of a few positions; return the hidden states behind the norm.

        A few positions score as they would one by one (see attention.FEW).
        Shapes: inputs int [1, L] -> [1, L, H], float32 [L, V].
        """
        hidden = self.states(inputs, cache, None, mx.async_eval)
        return hidden, self.logits(hidden)[0]

    def decode_late(
        self,
        inputs: mx.array,
        rows: LateRows | None,
        cache: Sequence[Any],
        after_layer: AfterLayer = nothing,
    ) -> mx.array:
        """Score the next token of each row as `decode` does, from tokens that may be under way.

        Nothing waits for them, and they are not checked: they are what a chooser chose. `rows`, of
        `late_rows`, are to be filled before anything is evaluated, which is why all coded layers
        have to be lazy (quant.layers.is_lazy). Shapes: inputs int [B, 1] -> float32 [B, V].
        """
        x = self.model.language_model.embed(inputs)
        array = None if rows is None else rows.array
        start = Start(x.astype(self._dtype), array, cache, None)
        return self.logits(self.finish(self.run(start, after_layer), after_layer))[:, -1]

    def late_rows(self, sequences: int) -> LateRows | None:
        """Return what stands for the rows of a token of each sequence; None if there are none."""
        width = self.args.text_config.per_layer_width
        return LateRows(sequences, width) if width else None

    def read_rows(self, ids: np.ndarray) -> mx.array:
        """Read rows of the per-layer table.

        Shapes: ids int [B, L], none of a soft token -> [B, L, N * d].
        Raises: ShapeError when they are of another width; CheckpointError when there are none.
        """
        rows, width = self.resources.rows(ids), self.args.text_config.per_layer_width
        if rows.shape != (*ids.shape, width):
            raise ShapeError(
                f"[model.rows] needed rows of shape {(*ids.shape, width)}, got {rows.shape}. "
                "Give the row store of this model's embed_tokens_per_layer."
            )
        return rows

    def prefill(
        self,
        inputs: mx.array,
        cache: Sequence[Any],
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Fill the cache and score the last position, running for it alone what makes no keys.

        Shapes: as `__call__`'s, but the logits are [B, 1, V].
        """
        return self.prefill_state(inputs, cache, input_embeddings)[1]

    def prefill_state(
        self,
        inputs: mx.array,
        cache: Sequence[Any],
        input_embeddings: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Prefill, and return the last position's hidden state behind the norm beside its scores.

        Shapes: as `prefill`'s -> [B, 1, H], float32 [B, 1, V].
        """
        hidden = self.last_state(inputs, cache, input_embeddings)
        return hidden, self.logits(hidden)

    def last_state(
        self,
        inputs: mx.array,
        cache: Sequence[Any],
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Fill the cache; return the last position's hidden state behind the norm.

        Shapes: as `prefill`'s -> [B, 1, H].
        """
        start = self.start(inputs, cache, input_embeddings)
        return self.finish_last(start, self.fill(start))

    def fill_cache(
        self,
        inputs: mx.array,
        cache: Sequence[Any],
        input_embeddings: mx.array | None = None,
    ) -> None:
        """Fill the cache with a chunk that is not the prompt's last, scoring nothing.

        The caches hold unevaluated arrays afterwards: evaluate their `state` between chunks.
        """
        self.fill(self.start(inputs, cache, input_embeddings))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Drop tensors the tree has no place for, and put flat text checkpoints into it.

        Dropped are the towers' and the k_proj, v_proj and k_norm that released files carry for
        layers that share another layer's keys and values.
        """
        kept = {}
        for name, weight in weights.items():
            if self.args.model_type == FLAT:
                name = re.sub(r"^model\.(?!language_model\.)", "model.language_model.", name)
            name = canonical(name)
            if not name.startswith(TOWER_PREFIXES) and not self.is_dead(name):
                kept[name] = weight
        return kept

    def is_dead(self, name: str) -> bool:
        """Return whether a tensor makes keys or values in a layer that uses another layer's."""
        key_value = KEY_VALUE.match(name)
        return key_value is not None and int(key_value[1]) >= self.args.text_config.first_shared

    def start(
        self,
        inputs: mx.array,
        cache: Sequence[Any] | None = None,
        input_embeddings: mx.array | None = None,
        arrived: mx.array | None = None,
    ) -> Start:
        """Begin a pass: check the ids, embed them, read their rows.

        Shapes: as `__call__`'s, `arrived` [B, L, H]. Raises: as `__call__`.
        """
        text = self.model.language_model
        ids = self._ids(inputs)
        is_vision = self._blocks(ids, is_cached=cache is not None)
        entries = self.make_cache() if cache is None else cache
        first_shared = self.args.text_config.first_shared
        if len(entries) != first_shared:
            raise ShapeError(
                f"[model.cache] needed {first_shared} entries, got {len(entries)}. "
                "Use Model.make_cache(): layers that share keys and values have none."
            )
        hard = self._hard(ids)
        x = text.embed(mx.array(hard)) if input_embeddings is None else input_embeddings
        if x.shape != (*ids.shape, self.args.text_config.hidden_size):
            raise ShapeError(
                f"[model.input_embeddings] needed shape "
                f"{(*ids.shape, self.args.text_config.hidden_size)}, got {x.shape}. "
                "Give one embedding for each id."
            )
        rows = self.read_rows(hard) if self.args.text_config.per_layer_width else None
        return Start(x.astype(text.dtype), rows, entries, is_vision, arrived)

    def run(self, start: Start, after_layer: AfterLayer = nothing) -> Pass:
        """Run the layers that make keys and values."""
        per_layer = self._per_layer(start.x, start.rows, slice(None))
        x, shared = self.model.language_model.run_kv_layers(
            start.stream, per_layer, self._masks(start), start.cache, after_layer
        )
        return Pass(x, per_layer, shared)

    def fill(self, start: Start) -> Filled:
        """Run the same layers, the last one as far as its keys and values.

        Each is evaluated before the next one is built, or the activations of all could be in memory
        at once: MLX gives back what a GPU used when all that it was handed together is done.
        """
        making = slice(self.args.text_config.first_shared - 1)
        per_layer = self._per_layer(start.x, start.rows, making)
        return self.model.language_model.fill_caches(
            start.stream, per_layer, self._masks(start), start.cache, mx.eval
        )

    def finish(self, begun: Pass, after_layer: AfterLayer = nothing) -> mx.array:
        """Run the layers that share keys and values, and the norm: -> [B, L, H]."""
        text = self.model.language_model
        return text.run_shared_layers(begun.x, begun.per_layer, begun.shared, after_layer)

    def finish_last(self, start: Start, filled: Filled) -> mx.array:
        """Run the rest of a pass whose caches are filled, for the last position: -> [B, 1, H]."""
        first = self.args.text_config.first_shared
        rows = None if start.rows is None else start.rows[:, -1:]
        own, *others = self._per_layer(start.x[:, -1:], rows, slice(first - 1, None))
        x, shared = self.model.language_model.go_on(filled, own)
        return self.finish(Pass(x, [*[None] * first, *others], shared))

    @property
    def _dtype(self) -> mx.Dtype:
        """The dtype of activations."""
        return self.model.language_model.dtype

    def _tower(self, kind: str) -> Tower:
        if kind not in self.args.towers:
            raise no_tower(kind)
        return self._towers[kind]

    def _per_layer(
        self, x: mx.array, rows: mx.array | None, layers: slice
    ) -> Sequence[mx.array | None]:
        if rows is None:
            return [None] * len(self.layers[layers])
        return self.model.language_model.per_layer_inputs(x, rows, layers)

    def _masks(self, start: Start) -> Mapping[str, Mask]:
        length = start.x.shape[1]
        return attention_masks(self.args.text_config, start.cache, length, start.is_vision)

    def _ids(self, inputs: mx.array) -> np.ndarray:
        """The step's ids on the host: the one place that waits for them."""
        if inputs.ndim != 2 or not inputs.size or not mx.issubdtype(inputs.dtype, mx.integer):
            raise ShapeError(
                f"[model.inputs] needed integer ids [B, L], got {inputs.dtype} "
                f"{list(inputs.shape)}. Give at least one token for each sequence."
            )
        ids = np.array(inputs)
        vocab_size = self.args.text_config.vocab_size
        outside = ids[(ids < 0) | (ids >= vocab_size)]
        if outside.size:
            raise RequestError(
                f"[model.inputs] needed ids from 0 to {vocab_size - 1}, got {outside[0]}. "
                "Use this model's tokenizer."
            )
        return ids

    def _hard(self, ids: np.ndarray) -> np.ndarray:
        """Return the ids with soft tokens replaced by padding, as in the reference."""
        soft = np.isin(ids, self.args.soft_token_ids)
        return np.where(soft, self.args.text_config.pad_token_id, ids)

    def _blocks(self, ids: np.ndarray, is_cached: bool) -> np.ndarray | None:
        """Return where bidirectional blocks are, or None if there are none."""
        if self.args.text_config.use_bidirectional_attention is None or ids.shape[1] == 1:
            return None
        is_vision = np.isin(ids, self.args.vision_token_ids)
        if is_cached and is_vision[:, -1].any():
            raise RequestError(
                "[model.inputs] needed chunks that hold image and video blocks whole, "
                "got one that ends on a soft token. End the chunk behind the block."
            )
        return is_vision if is_vision.any() else None
