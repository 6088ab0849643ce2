"""A linear layer of a tower, whose input and output are kept inside bounds from the checkpoint.

Source: transformers 5.23.0, modeling_gemma4.py, Gemma4ClippableLinear.
"""

import mlx.core as mx
from mlx import nn


class ClippedLinear(nn.Module):
    """clip(linear(clip(x))) with the bounds of each clip as scalars; without bounds, linear(x).

    `linear` may be coded. The bounds were learned: leaving them out changes the results.
    """

    def __init__(self, input_dims: int, output_dims: int, has_bounds: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(input_dims, output_dims, bias=False)
        if has_bounds:
            self.input_min = mx.array(-mx.inf)
            self.input_max = mx.array(mx.inf)
            self.output_min = mx.array(-mx.inf)
            self.output_max = mx.array(mx.inf)

    def __call__(self, x: mx.array) -> mx.array:
        """Shapes: x [..., input_dims] -> [..., output_dims]."""
        if "input_min" not in self:
            return self.linear(x)
        y = self.linear(mx.clip(x, self.input_min, self.input_max))
        return mx.clip(y, self.output_min, self.output_max)
