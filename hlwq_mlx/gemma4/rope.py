"""Rotary position embedding, half-split, with the frequencies of both layer types given explicitly.

"Proportional" rotary (full layers) keeps the exponent's denominator at the whole head and turns
only the first part of the angles: with D = 512 and a quarter, dimensions 0..63 and 256..319
rotate. It is not the classic partial rotary, which rotates the first D/4 dimensions.
D head dimensions, L positions.  Source: spec section 2.4 of Gemma 4; transformers 5.23.0,
modeling_rope_utils.py, _compute_proportional_rope_parameters.
"""

import mlx.core as mx
import numpy as np

from .config import RopeConfig


def wavelengths(rope: RopeConfig, head_dim: int) -> mx.array:
    """Return the inverse of each angle's frequency, infinite where nothing rotates.

    `mx.fast.rope` divides positions by these numbers, so infinity is an angle of 0.
    Shapes: float32 [D/2]. Powers are taken in float64 and rounded once.
    """
    rotated = int(rope.partial_rotary_factor * head_dim // 2)
    powers = rope.rope_theta ** (np.arange(0, 2 * rotated, 2) / head_dim)
    # They come last: rotation is half-split, so D/2 angles serve D dimensions.
    still = np.full(head_dim // 2 - rotated, np.inf)
    return mx.array(np.concatenate([powers, still]).astype(np.float32))


def rotate(x: mx.array, waves: mx.array, offset: int | mx.array) -> mx.array:
    """Rotate the head dimensions of consecutive positions, the first of which is `offset`.

    Shapes: x [B, heads, L, D], waves [D/2], offset a number or int [B] -> x's.
    Angles are float32.
    """
    return mx.fast.rope(
        x, x.shape[-1], traditional=False, base=None, scale=1.0, offset=offset, freqs=waves
    )
