"""Print how far one process's own rounding moves the demo's logits: what a group can be held to.

    python scripts/sharding/rounding.py

A group by tensors sums the columns of o_proj and down_proj in parts, so it rounds otherwise than
one process. Here one process sums them in float64 instead, and is compared with itself.
"""

import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn

from hlwq_mlx.folder import loading
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.quant.activation import Activation, Input
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert
from hlwq_mlx.write.cache import DEMO
from scripts.sharding.rank import PROMPT

PROMPTS = 5


class Exact(nn.Module):
    """A product of plain numbers whose sums are taken in float64, and rounded once."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._weight = np.array(inner.weight.astype(mx.float32)).astype(np.float64)

    def __call__(self, x: Input) -> mx.array:
        """Multiply: x [..., K] -> [..., N]."""
        plain = np.array(Activation.of(x).plain).astype(np.float64)
        return mx.array((plain @ self._weight.T).astype(np.float32))


def main() -> None:
    """Print a line for each prompt."""
    mx.set_default_device(mx.cpu)
    with tempfile.TemporaryDirectory() as work:
        convert.convert(Source(DEMO), Path(work) / "demo")
        one, exact = (loading.load_folder(Folder.open(Path(work) / "demo")) for _ in range(2))
        for layer in exact.layers:
            layer.self_attn.o_proj = Exact(layer.self_attn.o_proj)
            layer.mlp.down_proj = Exact(layer.mlp.down_proj)
        print("| prompt | largest logit | sums in float64 differ by |\n|---|---|---|")
        for seed in range(1, PROMPTS + 1):
            most = min(one.args.media_token_ids)
            ids = mx.array(np.random.default_rng(seed).integers(3, most, (1, PROMPT)))
            here, there = np.array(one(ids)), np.array(exact(ids))
            print(f"| {seed} | {np.abs(here).max():.1f} | {np.abs(here - there).max():.1e} |")


if __name__ == "__main__":
    main()
