"""Sound to log-mel frames, as transformers' feature extractor of Gemma 4 makes them.

Decoding is FFmpeg's, through PyAV. Not here: the audio tower, and how many ids a placeholder
becomes. Letters: N = samples, F = frames.
Source: transformers 5.23.0, models/gemma4/feature_extraction_gemma4.py.
"""

import io
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.filter import Graph

from ..errors import RequestError
from .container import first, open_container
from .origin import LOCAL, Access, Origin, name_of
from .processor import FRAMES_PER_TOKEN, SoundSettings

logger = logging.getLogger("hlwq_mlx")

Samples = npt.NDArray[np.float32]

MAX_SECONDS = 3600.0
RATES_HZ = (1_000, 1_000_000)
CHUNK = 1 << 16  # samples
# Flat up to 7.5 kHz and below -100 dB from 8.2 kHz on, where FFmpeg's default lets through -15 dB.
RESAMPLER = "filter_size=256:cutoff=0.97"
STREAMED_BYTES = 0xFFFF0000  # from here on a WAV says that its writer did not know its length
# Containers whose stated length is exact, so that a shorter sound is a broken file.
EXACT = {"wav", "flac", "aiff", "mov,mp4,m4a,3gp,3g2,mj2"}


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
    where = name_of(origin)
    if isinstance(origin, np.ndarray):
        samples = _mono(origin)
        chunks = (samples[i : i + CHUNK] for i in range(0, len(samples), CHUNK))
        rate = settings.sampling_rate if rate_hz is None else rate_hz
        return _collected(_resampled(chunks, rate, settings.sampling_rate), settings, where)
    with open_container(origin, access, "sound") as (container, file):
        samples = _decoded(container, settings, where)
        if _is_cut_wav(file):
            raise _cut_short(len(samples) / settings.sampling_rate, where)
        return samples


def split(samples: Samples, settings: SoundSettings) -> list[Samples]:
    """Cut a sound into clips that the audio tower takes: 30 s at most, with Gemma 4's constants.

    The model hears a longer sound as several clips in a row, where the reference drops the rest.
    Each cut is at the quietest tenth of a second in the last sixth of a clip, so that words stay
    whole; that it was cut is logged.
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
    window, filters = _window(size), _mel_filters(settings)
    spectrum = np.abs(np.fft.rfft(windows * window, n=settings.fft_length, axis=-1))
    return np.log(spectrum @ filters + settings.mel_floor).astype(np.float32)


def _decoded(container: InputContainer, settings: SoundSettings, where: str) -> Samples:
    stream = first(container.streams.audio, "sound", where)
    # A stream may change its rate half-way, as files that were strung together do.
    pieces = (
        _resampled((chunk for _, chunk in run), rate, settings.sampling_rate)
        for rate, run in groupby(_frames(container, stream), key=itemgetter(0))
    )
    samples = _collected(chain.from_iterable(pieces), settings, where)
    seconds = len(samples) / settings.sampling_rate
    stated = 0.0
    if container.format.name in EXACT and stream.duration and stream.time_base:
        stated = float(stream.duration * stream.time_base)
    if seconds < 0.98 * stated - 0.1:
        raise _cut_short(seconds, where)
    return samples


def _cut_short(seconds: float, where: str) -> RequestError:
    return RequestError(
        f"[{where}] needed the whole sound that the file announces, got {seconds:.1f} s and the "
        "end of the file. Fetch the file again."
    )


def _is_cut_wav(file: BinaryIO) -> bool:
    """Compare a WAV's size with its header, which FFmpeg corrects in silence."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    header = file.read(12)
    stated = int.from_bytes(header[4:8], "little") + 8
    is_streamed = stated >= STREAMED_BYTES
    return header[:4] == b"RIFF" and header[8:] == b"WAVE" and not is_streamed and size < stated


def _frames(container: InputContainer, stream: AudioStream) -> Iterator[tuple[int, Samples]]:
    """Decode to (rate, mono samples), skipping single broken packets as players do."""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        for frame in chain.from_iterable(map(_readable, frames)):
            values = frame.to_ndarray()
            is_planar = frame.format.is_planar
            channels = values.T if is_planar else values.reshape(frame.samples, -1)
            yield frame.sample_rate, _mono(channels)


def _readable(frame: av.AudioFrame) -> list[av.AudioFrame]:
    """Pack the channels of a frame that PyAV 18.1 reads past the end of: planes are counted up to
    a null pointer, which does not follow eight.
    """
    if frame.layout.nb_channels < 8 or not frame.format.is_planar:
        return [frame]
    packer = av.AudioResampler(frame.format.packed, frame.layout, frame.sample_rate)
    return packer.resample(frame)


def _mono(values: npt.NDArray[Any]) -> Samples:
    """Mean over channels, integers brought to -1..1: [N] or [N, channels] -> float32 [N]."""
    kind = values.dtype
    if values.ndim not in (1, 2) or kind.kind not in "iuf":
        raise RequestError(
            "[sound] needed an array [N] or [N, channels] of integers or floating point, got "
            f"{kind} {list(values.shape)}. Convert it first."
        )
    if kind.kind == "f":
        scaled = values
    else:
        half = 2.0 ** (8 * kind.itemsize - 1)
        scaled = (values - (half if kind.kind == "u" else 0.0)) / half
    mono = scaled.mean(axis=1) if values.ndim == 2 else scaled
    if not np.isfinite(mono).all():
        raise RequestError("[sound] needed numbers, got NaN or infinity. Check the array.")
    return mono.astype(np.float32)


def _collected(chunks: Iterable[Samples], settings: SoundSettings, where: str) -> Samples:
    """Join chunks, of which there must be some, but no more than MAX_SECONDS."""
    kept, n = [], 0
    for chunk in chunks:
        kept.append(chunk)
        n += len(chunk)
        if n > MAX_SECONDS * settings.sampling_rate:
            raise RequestError(
                f"[{where}] needed at most {MAX_SECONDS / 60:g} minutes of sound, got more. "
                "Send it in parts."
            )
    if not n:
        raise RequestError(f"[{where}] needed a sound, got no samples. Check that it is whole.")
    return np.concatenate(kept)


def _resampled(chunks: Iterable[Samples], rate: int, to_rate: int) -> Iterator[Samples]:
    """Band-limit and resample mono chunks, with FFmpeg's windowed sinc in float32."""
    if rate == to_rate:
        yield from chunks
        return
    if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise RequestError(
            f"[sound] needed a rate of {RATES_HZ[0]:,} to {RATES_HZ[1]:,} Hz, got {rate:,}. "
            "Check what the sound was recorded at."
        )
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=rate, format="fltp", layout="mono", time_base=Fraction(1, rate)
    )
    sink = graph.add("abuffersink")
    graph.link_nodes(source, graph.add("aresample", f"{to_rate}:{RESAMPLER}"), sink).configure()
    start = 0
    for chunk in chunks:
        frame = av.AudioFrame.from_ndarray(chunk[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        start += len(chunk)
        source.push(frame)
        yield from _pulled(sink)
    source.push(None)
    yield from _pulled(sink)


def _pulled(sink: Any) -> Iterator[Samples]:
    while True:
        try:
            yield sink.pull().to_ndarray()[0]
        except (av.BlockingIOError, av.EOFError):
            return


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
