"""The sound encoder: mel frames of one clip in, one feature for every four of them out.

Two convolutions and a stack of conformer layers, in whose attention a frame sees itself and a band
of frames before it. Attribute names, and the layout of convolution weights, are the checkpoint's.
Mel frames are made in media. Clips come one at a time and unpadded, because the reference's padding
does not change its results.
F mel frames, N frames behind the convolutions, H hidden size, D head dimensions, W band width.
Source: transformers 5.23.0, modeling_gemma4.py, Gemma4AudioModel.
"""

import math

import mlx.core as mx
import numpy as np
from mlx import nn

from ...errors import ShapeError
from .clipped import ClippedLinear
from .config import AudioConfig

# The reference makes some norms without the config's eps, and so with its class's default.
EPS = 1e-6


def bounded(x: mx.array, limit: float) -> mx.array:
    """Clip to the limit, or to x's dtype where that is narrower: float16 would overflow."""
    limit = min(limit, mx.finfo(x.dtype).max)
    return mx.clip(x, -limit, limit)


class Conv2d(nn.Module):
    """A convolution of 3 x 3, stride 2, padding 1; weight [out, in, 3, 3] as on disk."""

    def __init__(self, input_channels: int, output_channels: int) -> None:
        super().__init__()
        self.weight = mx.zeros((output_channels, input_channels, 3, 3))

    def __call__(self, x: mx.array) -> mx.array:
        """Shapes: x [1, F, bins, in] -> [1, F/2, bins/2, out], rounded up."""
        # MLX has channels last, in weights too.
        return mx.conv2d(x, self.weight.transpose(0, 2, 3, 1), stride=2, padding=1)


class DepthwiseConv1d(nn.Module):
    """A convolution of each channel with the frames before it; weight [H, 1, width] as on disk."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = mx.zeros((channels, 1, width))

    def __call__(self, x: mx.array) -> mx.array:
        """Shapes: x [N, H] -> [N, H]."""
        channels, _, width = self.weight.shape
        # All padding stands in front, so that a frame sees itself and earlier ones alone.
        padded = mx.pad(x, [(width - 1, 0), (0, 0)])[None]
        return mx.conv1d(padded, self.weight.transpose(0, 2, 1), groups=channels)[0]


class SubsampleLayer(nn.Module):
    """Convolution, norm over channels, ReLU."""

    def __init__(self, input_channels: int, output_channels: int, eps: float) -> None:
        super().__init__()
        self.conv = Conv2d(input_channels, output_channels)
        self.norm = nn.LayerNorm(output_channels, eps, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """Shapes: x [1, F, bins, in] -> [1, F/2, bins/2, out], rounded up."""
        return mx.maximum(self.norm(self.conv(x)), 0)


class SubsampleProjection(nn.Module):
    """Two convolutions, which leave a quarter of frames and bins, and a linear map of the rest."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        first, second = config.subsampling_conv_channels
        self.layer0 = SubsampleLayer(1, first, config.rms_norm_eps)
        self.layer1 = SubsampleLayer(first, second, config.rms_norm_eps)
        width = config.mel_groups * second
        self.input_proj_linear = nn.Linear(width, config.hidden_size, bias=False)

    def __call__(self, mel: mx.array) -> mx.array:
        """Shapes: mel [F, bins] -> [N, H]; in a row the channel is fastest."""
        x = self.layer1(self.layer0(mel[None, :, :, None]))
        return self.input_proj_linear(x.reshape(x.shape[1], -1))


class FeedForward(nn.Module):
    """Half a step of a conformer layer: two layers between two norms, added with a weight."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        H, has_bounds = config.hidden_size, config.use_clipped_linears
        self.limit = config.gradient_clipping
        self.residual_weight = config.residual_weight
        self.ffw_layer_1 = ClippedLinear(H, 4 * H, has_bounds)
        self.ffw_layer_2 = ClippedLinear(4 * H, H, has_bounds)
        self.pre_layer_norm = nn.RMSNorm(H, EPS)
        self.post_layer_norm = nn.RMSNorm(H, EPS)

    def __call__(self, x: mx.array) -> mx.array:
        """Shapes: x [N, H] -> [N, H]."""
        h = self.pre_layer_norm(bounded(x, self.limit))
        h = self.ffw_layer_2(nn.silu(self.ffw_layer_1(h)))
        h = self.post_layer_norm(bounded(h, self.limit))
        return x + h * self.residual_weight


class Attention(nn.Module):
    """Attention of a frame to itself and the band of frames before it, in float32.

    A key is the sum of the frame's own key and a key for its distance. The reference works on
    chunks of frames; here the chunk only fixes where distances are counted from.
    """

    def __init__(self, config: AudioConfig, distances: mx.array) -> None:
        super().__init__()
        H, has_bounds = config.hidden_size, config.use_clipped_linears
        self.head_dim = config.head_dim
        self.band = config.attention_context_left - 1
        self.cap = config.attention_logit_cap
        self._sinusoids = distances
        self.q_proj = ClippedLinear(H, H, has_bounds)
        self.k_proj = ClippedLinear(H, H, has_bounds)
        self.v_proj = ClippedLinear(H, H, has_bounds)
        self.post = ClippedLinear(H, H, has_bounds)
        self.relative_k_proj = nn.Linear(H, H, bias=False)
        self.per_dim_scale = mx.zeros(self.head_dim)

    def __call__(self, h: mx.array) -> mx.array:
        """Shapes: h [N, H] -> [N, H]."""
        N = h.shape[0]
        queries, keys, values = (
            self._heads(projection(h)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        # softplus(0) is log 2: with that divisor, a learned scale of 0 multiplies by 1.
        scale = self.head_dim**-0.5 / math.log(2)
        queries = queries * scale * nn.softplus(self.per_dim_scale.astype(mx.float32))
        # log(1 + e) is softplus(1): the reference fixes the keys' scale at 1 in the same form.
        keys = keys * (math.log(1 + math.e) / math.log(2))
        distances = self._heads(self.relative_k_proj(self._sinusoids.astype(h.dtype)))

        frames = np.arange(N)[:, None] - np.arange(self.band)
        seen = mx.array(np.maximum(frames, 0))
        keys = (keys[seen] + distances).transpose(0, 2, 3, 1)  # [N, heads, D, W]
        logits = mx.tanh(queries[:, :, None] @ keys / self.cap) * self.cap
        # The reference masks with -1e9, whose weight in float32 is 0 as well.
        logits = mx.where(mx.array(frames >= 0)[:, None, None], logits, -mx.inf)
        weights = mx.softmax(logits, axis=-1)
        out = weights @ values[seen].transpose(0, 2, 1, 3)  # [N, heads, 1, D]
        return self.post(out.reshape(N, -1).astype(h.dtype))

    def _heads(self, x: mx.array) -> mx.array:
        """[rows, H] -> float32 [rows, heads, D]"""
        return x.astype(mx.float32).reshape(len(x), -1, self.head_dim)


class LightConv1d(nn.Module):
    """A gated depthwise convolution between two linear layers, added to its input."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        H, has_bounds, eps = config.hidden_size, config.use_clipped_linears, config.rms_norm_eps
        self.limit = config.gradient_clipping
        self.linear_start = ClippedLinear(H, 2 * H, has_bounds)
        self.linear_end = ClippedLinear(H, H, has_bounds)
        self.depthwise_conv1d = DepthwiseConv1d(H, config.conv_kernel_size)
        self.pre_layer_norm = nn.RMSNorm(H, eps)
        self.conv_norm = nn.RMSNorm(H, eps)

    def __call__(self, x: mx.array) -> mx.array:
        """Shapes: x [N, H] -> [N, H]."""
        h = nn.glu(self.linear_start(self.pre_layer_norm(x)))
        h = self.conv_norm(bounded(self.depthwise_conv1d(h), self.limit))
        return self.linear_end(nn.silu(h)) + x


class ConformerLayer(nn.Module):
    """Feed forward, attention, convolution, feed forward, norm."""

    def __init__(self, config: AudioConfig, distances: mx.array) -> None:
        super().__init__()
        H = config.hidden_size
        self.limit = config.gradient_clipping
        self.feed_forward1 = FeedForward(config)
        self.feed_forward2 = FeedForward(config)
        self.self_attn = Attention(config, distances)
        self.lconv1d = LightConv1d(config)
        self.norm_pre_attn = nn.RMSNorm(H, EPS)
        self.norm_post_attn = nn.RMSNorm(H, EPS)
        self.norm_out = nn.RMSNorm(H, EPS)

    def __call__(self, x: mx.array) -> mx.array:
        """Shapes: x [N, H] -> [N, H]."""
        x = self.feed_forward1(x)
        h = self.self_attn(self.norm_pre_attn(bounded(x, self.limit)))
        x = x + self.norm_post_attn(bounded(h, self.limit))
        x = self.feed_forward2(self.lconv1d(x))
        return self.norm_out(bounded(x, self.limit))


class AudioTower(nn.Module):
    """Subsampling, conformer layers and a linear map to the width that is embedded."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.subsample_conv_projection = SubsampleProjection(config)
        distances = sinusoids(config)
        self.layers = [ConformerLayer(config, distances) for _ in range(config.num_hidden_layers)]
        self.output_proj = nn.Linear(config.hidden_size, config.output_proj_dims)

    def __call__(self, mel: mx.array) -> mx.array:
        """Encode one clip.

        Shapes: mel [F, bins], frames of sound alone -> [ceil(ceil(F / 2) / 2), output_proj_dims].
        Raises: ShapeError.
        """
        groups = self.config.mel_groups
        if mel.ndim != 2 or not mel.size or -(-mel.shape[1] // 4) != groups:
            raise ShapeError(
                f"[audio.mel] needed [frames, {4 * groups - 3} to {4 * groups}], got "
                f"{list(mel.shape)}. Give one clip of at least one frame, without padding."
            )
        dtype = self.output_proj.bias.dtype
        x = self.subsample_conv_projection(mel.astype(dtype))
        for layer in self.layers:
            x = layer(x)
        return self.output_proj(x)


def sinusoids(config: AudioConfig) -> mx.array:
    """Encode the distances 0 to W - 1 between a frame and those that it sees.

    The reference's table ends at half of a chunk's context and is read from its end, so distances
    are counted from there; rows beyond the end are zero.
    Shapes: float32 [W, H].
    """
    band, half = config.attention_context_left - 1, config.hidden_size // 2
    distances = np.arange(band) + (config.attention_chunk_size + band) // 2 - band
    # half - 1 steps lie between the first scale and the last, unlike in rotary embeddings.
    scales = np.exp(-np.arange(half) * (math.log(10_000.0) / max(half - 1, 1)))
    turned = distances[:, None] * scales
    table = np.concatenate([np.sin(turned), np.cos(turned)], axis=1)
    return mx.array((table * (distances >= 0)[:, None]).astype(np.float32))
