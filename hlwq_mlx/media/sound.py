"""Convert sound to log-mel frames, as transformers' feature extractor of Gemma 4 does.

Decoding is in recordings.py, the audio tower in gemma4, the number of ids for a placeholder in
dialog. Letters: N = samples, F = frames.
Source: transformers 5.23.0, models/gemma4/feature_extraction_gemma4.py.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RequestError
from . import child, recordings
from .origin import LOCAL, Access, Origin, name_of, open_origin
from .plain import is_plain_sound
from .processor import FRAMES_PER_TOKEN, SoundSettings
from .recordings import Samples

logger = logging.getLogger("hlwq_mlx")


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


def read_sound(
    origin: Origin | npt.NDArray[Any],
    settings: SoundSettings,
    rate_hz: int | None = None,
    access: Access = LOCAL,
) -> Samples:
    """Decode a sound to one channel, the mean of all, at the rate that the model hears.

    Arrays are [N] or [N, channels], integers at their full scale or floating point in -1..1, at
    `rate_hz` (the model's own if None); of files it is what the file says.
    Shapes: -> float32 [N].
    Raises: RequestError when it holds no sound, is broken, longer than MAX_SECONDS, or not
    allowed; SourceError when a file or server cannot be read.
    """
    rate = settings.sampling_rate
    if isinstance(origin, np.ndarray):
        return recordings.collect(
            recordings.of_array(origin, rate if rate_hz is None else rate_hz, rate)
        )
    where = name_of(origin)
    with open_origin(origin, access) as file:
        if is_plain_sound(file):
            return recordings.collect(recordings.decode(file, where, rate))
        return recordings.collect(child.read("sound", file, where, rate_hz=rate))


def split(samples: Samples, settings: SoundSettings) -> list[Samples]:
    """Cut a sound into clips that the audio tower takes: 30 s at most, with Gemma 4's constants.

    The model gets a longer sound as several clips in a row, where the reference drops the rest.
    Each cut is at the quietest tenth of a second in the last sixth of a clip, so that words stay
    whole. Cuts are logged.
    Shapes: samples float32 [N] -> list of float32 [n], which joined give the samples.
    """
    longest = settings.max_samples
    clips, rest = [], samples
    search = max(1, longest // 6)
    window = max(1, min(settings.sampling_rate // 10, search))
    while len(rest) > longest:
        tail = rest[longest - search // window * window : longest]
        loudness = np.square(tail.reshape(-1, window)).sum(axis=1)
        latest = int(np.argmin(loudness[::-1]))  # of equally quiet ones
        cut = longest - latest * window - (window + 1) // 2
        clips.append(rest[:cut])
        rest = rest[cut:]
    if clips:
        logger.warning(
            "[sound] %.1f s are more than the model hears at once (%.1f s): cut into %d clips.",
            len(samples) / settings.sampling_rate,
            longest / settings.sampling_rate,
            len(clips) + 1,
        )
    return [*clips, rest]


def sound_mels(samples: Samples, settings: SoundSettings) -> list[Mel]:
    """Turn a sound into what the audio tower reads: one Mel per clip of `split`.

    Raises: RequestError when it is too short for a single frame.
    """
    mels = [Mel(mel_frames(clip, settings)) for clip in split(samples, settings)]
    if not mels[0].soft_tokens:
        raise RequestError(
            f"[sound] needed more than {settings.frame_length - settings.frame_length // 2} "
            f"samples at {settings.sampling_rate} Hz, got {len(samples)}. Record a longer sound."
        )
    return mels


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
    # As in the reference, magnitudes go through the filters, not powers.
    window, filters = _window(size), _mel_filters(settings)
    spectrum = np.abs(np.fft.rfft(windows * window, n=settings.fft_length, axis=-1))
    # The floor is added, not a lower bound, as in the reference.
    return np.log(spectrum @ filters + settings.mel_floor).astype(np.float32)


def _window(size: int) -> npt.NDArray[np.float32]:
    """Return a periodic Hann window: numpy's is symmetric, so its last sample is left out."""
    return np.hanning(size + 1)[:-1].astype(np.float32)


@lru_cache
def _mel_filters(settings: SoundSettings) -> npt.NDArray[np.float64]:
    """Return triangular filters, evenly spaced on the HTK mel scale and linear in Hz.

    Shapes: -> [fft_length / 2 + 1, feature_size].
    """
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
