"""Write the features of images, sounds and videos over the embeddings of their soft tokens.

L positions, H hidden size.  Source: transformers 5.23.0, modeling_gemma4.py, Gemma4Model.forward.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..errors import RequestError, ShapeError


def insert_features(
    x: mx.array, ids: np.ndarray, kind: str, token_id: int | None, features: Sequence[mx.array]
) -> mx.array:
    """Write features over the embeddings of a soft token, in order of appearance, unscaled.

    Shapes: x [1, L, H], ids int [1, L], features each [n, H] -> [1, L, H].
    Raises: RequestError when the prompt holds more places or fewer; ShapeError.
    """
    places = np.flatnonzero(ids[0] == token_id)
    H = x.shape[-1]
    for rows in features:
        if rows.ndim != 2 or rows.shape[1] != H:
            raise ShapeError(
                f"[model.{kind}] needed features [n, {H}], got {list(rows.shape)}. "
                "Give what the model made of it."
            )
    got = sum(len(rows) for rows in features)
    if got != len(places):
        raise RequestError(
            f"[model.{kind}] needed features for {len(places)} {kind} tokens in the prompt, got "
            f"{got}. Expand each placeholder to as many tokens as its features are."
        )
    if got:
        x[:, mx.array(places)] = mx.concatenate(list(features)).astype(x.dtype)
    return x
