"""The image encoder: patches of one image in, one feature for each cell of pooled patches out.

Attribute names are the checkpoint's. Images are resized and cut into patches in media. They come
one at a time and unpadded, because the reference's padding does not change its results. P patches,
p patch width, H hidden size, D head dimensions, k pooling width, n cells.
Source: transformers 5.23.0, modeling_gemma4.py, Gemma4VisionModel.
"""

from typing import NamedTuple

import mlx.core as mx
import numpy as np
from mlx import nn

from ...errors import ShapeError
from ...quant.ops import gelu_mul
from .clipped import ClippedLinear
from .config import VisionConfig


class Turn(NamedTuple):
    """Cosines and sines of every patch's angles: float32 [P, 1, 2, 1, D/4], x's before y's."""

    cos: mx.array
    sin: mx.array


class PatchEmbedder(nn.Module):
    """A linear map of a patch's values, and a learned row for its column and for its row."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        H = config.hidden_size
        self.input_proj = nn.Linear(3 * config.patch_size**2, H, bias=False)
        self.position_embedding_table = mx.ones((2, config.position_embedding_size, H))

    def __call__(self, patches: mx.array, positions: mx.array) -> mx.array:
        """Shapes: patches [P, 3*p*p] in [0, 1], positions int [P, 2] -> [P, H]."""
        columns, rows = self.position_embedding_table
        # The model itself, not the processor, maps 0..1 to -1..1.
        values = (2 * (patches.astype(mx.float32) - 0.5)).astype(columns.dtype)
        x = self.input_proj(values)
        return x + (columns[positions[:, 0]] + rows[positions[:, 1]])


class Attention(nn.Module):
    """Every patch attends to every patch: normed queries, keys and values, scale 1."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        H, D, has_bounds = config.hidden_size, config.head_dim, config.use_clipped_linears
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = D
        self.eps = config.rms_norm_eps
        self.q_proj = ClippedLinear(H, heads * D, has_bounds)
        self.k_proj = ClippedLinear(H, kv_heads * D, has_bounds)
        self.v_proj = ClippedLinear(H, kv_heads * D, has_bounds)
        self.o_proj = ClippedLinear(heads * D, H, has_bounds)
        self.q_norm = nn.RMSNorm(D, self.eps)
        self.k_norm = nn.RMSNorm(D, self.eps)

    def __call__(self, h: mx.array, turn: Turn) -> mx.array:
        """Shapes: h [P, H] -> [P, H]. Softmax is float32."""
        P = h.shape[0]
        queries, keys, values = (
            projection(h).reshape(P, -1, self.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        queries = rotate_axes(self.q_norm(queries), turn)
        keys = rotate_axes(self.k_norm(keys), turn)
        values = mx.fast.rms_norm(values, None, self.eps)
        queries, keys, values = (x.transpose(1, 0, 2)[None] for x in (queries, keys, values))
        out = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0)
        return self.o_proj(out[0].transpose(1, 0, 2).reshape(P, -1))


class MLP(nn.Module):
    """down(gelu(gate(x)) * up(x)) of clipped layers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        H, width = config.hidden_size, config.intermediate_size
        self.gate_proj = ClippedLinear(H, width, config.use_clipped_linears)
        self.up_proj = ClippedLinear(H, width, config.use_clipped_linears)
        self.down_proj = ClippedLinear(width, H, config.use_clipped_linears)

    def __call__(self, h: mx.array) -> mx.array:
        """Shapes: h [P, H] -> [P, H]."""
        return self.down_proj(gelu_mul(self.gate_proj(h), self.up_proj(h)))


class EncoderLayer(nn.Module):
    """Attention, then MLP, each between two norms."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        H, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(H, eps)
        self.post_attention_layernorm = nn.RMSNorm(H, eps)
        self.pre_feedforward_layernorm = nn.RMSNorm(H, eps)
        self.post_feedforward_layernorm = nn.RMSNorm(H, eps)

    def __call__(self, x: mx.array, turn: Turn) -> mx.array:
        """Shapes: x [P, H] -> [P, H]."""
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), turn))
        h = self.mlp(self.pre_feedforward_layernorm(x))
        x = x + self.post_feedforward_layernorm(h)
        return x


class Encoder(nn.Module):
    """The level `encoder.` of the checkpoint's names."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = [EncoderLayer(config) for _ in range(config.num_hidden_layers)]


class VisionTower(nn.Module):
    """Patch embedder, encoder and pooling; `standardize` shifts and scales what is pooled."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedder = PatchEmbedder(config)
        self.encoder = Encoder(config)
        if config.standardize:
            self.std_bias = mx.zeros(config.hidden_size)
            self.std_scale = mx.ones(config.hidden_size)

    def __call__(self, patches: mx.array, positions: mx.array) -> mx.array:
        """Encode one image.

        Shapes: patches [P, 3*p*p] in [0, 1], each row-major with its colours last; positions int
        [P, 2], column before row, of a grid whose sides are multiples of k -> float32 [n, H], cells
        in rows.
        Raises: ShapeError.
        """
        grid = self._grid(patches, positions)
        x = self.patch_embedder(patches, mx.array(grid))
        turn = angles(grid, self.config)
        for layer in self.encoder.layers:
            x = layer(x, turn)
        # In float32: the factor takes the features beyond what float16 holds.
        pooled = pool(x, grid, self.config.pooling_kernel_size) * self.config.hidden_size**0.5
        if self.config.standardize:
            pooled = (pooled - self.std_bias) * self.std_scale
        return pooled

    def _grid(self, patches: mx.array, positions: mx.array) -> np.ndarray:
        """The positions on the host, checked to be a whole grid in some order."""
        config, width = self.config, 3 * self.config.patch_size**2
        if patches.ndim != 2 or patches.shape[1] != width or not patches.size:
            raise ShapeError(
                f"[vision.patches] needed [patches, {width}], got {list(patches.shape)}. "
                f"A patch is {config.patch_size} pixels wide and has three colours."
            )
        grid = np.array(positions)
        if grid.shape != (len(patches), 2) or not np.issubdtype(grid.dtype, np.integer):
            raise ShapeError(
                f"[vision.positions] needed integers [{len(patches)}, 2], got {grid.dtype} "
                f"{list(grid.shape)}. Give column and row of each patch."
            )
        k, size = config.pooling_kernel_size, config.position_embedding_size
        columns, rows = grid.max(axis=0) + 1
        is_whole = columns * rows == len(grid) == len(np.unique(grid, axis=0)) and grid.min() == 0
        if not is_whole or columns % k or rows % k or max(columns, rows) > size:
            raise ShapeError(
                f"[vision.positions] needed each place once in a grid whose sides are multiples of "
                f"{k} and at most {size}, got {len(grid)} patches on {columns} x {rows}. "
                "Resize the image first, and leave padding out."
            )
        return grid


def angles(grid: np.ndarray, config: VisionConfig) -> Turn:
    """Compute the rotary angles of both axes; each axis turns half of a head's dimensions.

    Shapes: grid int [P, 2].
    """
    half = config.head_dim // 2
    frequencies = config.rope_theta ** -(np.arange(0, half, 2) / half)
    turned = grid[:, None, :, None, None] * frequencies
    return Turn(
        mx.array(np.cos(turned).astype(np.float32)), mx.array(np.sin(turned).astype(np.float32))
    )


def rotate_axes(x: mx.array, turn: Turn) -> mx.array:
    """Rotate one half of a head by the patch's column and one by its row, each half-split.

    Shapes: x [P, heads, D] -> x's. Float32, rounded once.
    """
    first, second = mx.split(x.astype(mx.float32).reshape(*x.shape[:2], 2, 2, -1), 2, axis=3)
    cos, sin = turn
    turned = mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=3)
    return turned.reshape(x.shape).astype(x.dtype)


def pool(x: mx.array, grid: np.ndarray, k: int) -> mx.array:
    """Average each cell of k x k patches, in float32.

    Shapes: x [P, H], grid int [P, 2] -> float32 [n, H], cells in rows.
    """
    cells = grid // k
    order = np.argsort(cells[:, 1] * (cells[:, 0].max() + 1) + cells[:, 0], kind="stable")
    grouped = x[mx.array(order)].astype(mx.float32).reshape(-1, k * k, x.shape[-1])
    return grouped.mean(axis=1)
