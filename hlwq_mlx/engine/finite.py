"""Notice scores that are not finite, and find the weight at fault.

A NaN or an infinity among the logits makes the log probability of every token NaN, so looking at
the chosen one costs nothing. The weights are searched only after that.
V vocabulary.
"""

import math
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..errors import CheckpointError
from ..gemma4.model import Model

_ROWS = 1024  # of the row store at a time


def require_finite(model: Model, token: int, scores: mx.array) -> None:
    """Check that a token was chosen from finite scores.

    Shapes: scores, log probabilities float32 [V], evaluated; they are read without a copy.
    Raises: CheckpointError that names the first weight which is not finite.
    """
    if not math.isfinite(np.array(scores, copy=False)[token]):
        raise not_finite(model)


def not_finite(model: Model) -> CheckpointError:
    """Return an error that names the first weight which is NaN or infinite."""
    name = next(_bad_weights(model), None)
    if name is None:
        return CheckpointError(
            "[scores] needed finite numbers, got NaN or infinity from weights that are all finite. "
            "A number in config.json is wrong: convert the model again."
        )
    return CheckpointError(
        f"[{name}] needed finite weights, got NaN or infinity, and no answer is possible. "
        "Convert the model again, or ask its publisher for a whole one."
    )


def _bad_weights(model: Model) -> Iterator[str]:
    for name, weight in tree_flatten(model.parameters()):
        if not _is_finite(weight):
            yield name
    text = model.args.text_config
    if not text.hidden_size_per_layer_input:
        return
    for start in range(0, text.vocab_size_per_layer_input, _ROWS):
        ids = np.arange(start, min(start + _ROWS, text.vocab_size_per_layer_input))
        finite = np.array(mx.isfinite(model.resources.rows(ids)).all(axis=-1))
        if not finite.all():
            yield f"row {ids[~finite][0]} of the per-layer embeddings"


def _is_finite(weight: mx.array) -> bool:
    return not mx.issubdtype(weight.dtype, mx.floating) or bool(mx.isfinite(weight).all().item())
