"""Sound to log-mel frames, as transformers' feature extractor of Gemma 4 makes them.

Decoding is FFmpeg's, through PyAV. Not here: the audio tower, and how many ids a placeholder
becomes. Letters: N = samples, F = frames.
Source: transformers 5.23.0, models/gemma4/feature_extraction_gemma4.py.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .processor import FRAMES_PER_TOKEN, SoundSettings

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Mel:
    """One clip as the audio tower reads it: frames float32 [F, feature_size], all of them valid."""

    frames: npt.NDArray[np.float32]

    @property
    def soft_tokens(self) -> int:
        """How many soft tokens the tower makes of the frames."""
        return soft_tokens(len(self.frames))


def soft_tokens(frames: int) -> int:
    """Return how many soft tokens the audio tower makes of `frames` mel frames."""
    return -(-frames // FRAMES_PER_TOKEN)


def mel_frames(samples: Samples, settings: SoundSettings) -> npt.NDArray[np.float32]:
    """Return the log-mel frames of one clip, each of whose windows lies inside the clip.

    The first window is half in the silence before the clip. Computed in the reference's
    precisions: window and FFT in float32, filters and logarithm in float64, rounded at the end.
    Shapes: samples float32 [N] -> float32 [F, feature_size], F = ceil(N / hop) - 1 with
    Gemma 4's constants; none for a clip shorter than half a window and a sample.
    """
    size, hop = settings.frame_length, settings.hop_length
    padded = np.concatenate([np.zeros(size // 2, np.float32), samples.astype(np.float32)])
    # The reference cuts windows one sample longer than it transforms; that decides their number.
    if len(padded) <= size:
        return np.zeros((0, settings.feature_size), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, size + 1)[::hop, :size]
    window, filters = _window(size), _mel_filters(settings)
    spectrum = np.abs(np.fft.rfft(windows * window, n=settings.fft_length, axis=-1))
    return np.log(spectrum @ filters + settings.mel_floor).astype(np.float32)


def _window(size: int) -> npt.NDArray[np.float32]:
    """A periodic Hann window."""
    return np.hanning(size + 1)[:-1].astype(np.float32)


@lru_cache
def _mel_filters(settings: SoundSettings) -> npt.NDArray[np.float64]:
    """Triangles, evenly spaced on the HTK mel scale and straight in Hz: [fft/2 + 1, features]."""
    lowest, highest = (
        2595.0 * np.log10(1.0 + hertz / 700.0)
        for hertz in (settings.min_frequency, settings.max_frequency)
    )
    mels = np.linspace(lowest, highest, settings.feature_size + 2)
    corners = 700.0 * (np.power(10, mels / 2595.0) - 1.0)
    bins = np.linspace(0, settings.sampling_rate // 2, settings.fft_length // 2 + 1)
    distance = corners[None, :] - bins[:, None]
    widths = np.diff(corners)
    rising, falling = -distance[:, :-2] / widths[:-1], distance[:, 2:] / widths[1:]
    return np.maximum(0.0, np.minimum(rising, falling))
