"""Project a tower's features into the space of token embeddings.

Source: transformers 5.23.0, modeling_gemma4.py, Gemma4MultimodalEmbedder.
"""

import mlx.core as mx
from mlx import nn


class Embedder(nn.Module):
    """embedding_projection(rms(x)), the norm without weights."""

    def __init__(self, input_dims: int, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.embedding_projection = nn.Linear(input_dims, hidden_size, bias=False)

    def __call__(self, features: mx.array, dtype: mx.Dtype) -> mx.array:
        """Project features into the text model's space, in the dtype given.

        Features may be float32 and larger than `dtype` can hold, so they are rounded after the
        norm.
        Shapes: features [n, input_dims] -> [n, hidden_size].
        """
        h = mx.fast.rms_norm(features, None, self.eps).astype(dtype)
        return self.embedding_projection(h)
