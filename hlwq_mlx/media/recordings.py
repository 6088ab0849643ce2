"""Convert sound files and arrays to mono samples at a given rate, chunk by chunk.

FFmpeg decodes and resamples, through PyAV. What the model gets of the samples, and which process
decodes, are in sound.py. Letters: N = samples.
"""

import io
import logging
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
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

logger = logging.getLogger("hlwq_mlx")

Samples = npt.NDArray[np.float32]

MAX_SECONDS = 2700.0  # 45 minutes: 173 MB at 16 kHz, and as mel frames 138 MB
RATES_HZ = (1_000, 1_000_000)
CHUNK = 1 << 16  # samples
# At 16 kHz: flat up to 7.5 kHz, below -100 dB from 8.2 kHz on. FFmpeg's default has -15 dB there.
RESAMPLER = "filter_size=256:cutoff=0.97"
PLACEHOLDER_BYTES = 0x7FFF0000  # writers to a pipe do not know the size and state this or more
# Where a file states its length: by its first bytes, (struct format, offset, bytes not counted).
STATED_SIZES = {b"RIFF": ("<I", 4, 8), b"RF64": ("<Q", 20, 8), b"riff": ("<Q", 16, 0)}
# Containers whose stated length is exact, so that a shorter sound is a broken file.
EXACT = {"flac", "mov,mp4,m4a,3gp,3g2,mj2"}
# Containers of uncompressed samples, which are used up to where the file ends.
BARE = {"aiff", "au", "caf"}


def decode(file: BinaryIO, where: str, rate_hz: int) -> Iterator[Samples]:
    """Decode a sound file to one channel, the mean of all.

    Packets are counted before any is decoded, because a header need not state the true length. A
    sound that ends before its stated length is an error if it is compressed, else a warning.
    Shapes: -> float32 [N] each.
    Raises: RequestError when it holds no sound, is broken or longer than MAX_SECONDS.
    """
    with open_container(file, where, "sound") as container:
        _check_length(container, first(container.streams.audio, "sound", where), where)
    with open_container(file, where, "sound") as container:
        stream = first(container.streams.audio, "sound", where)
        # The rate may change within a stream, as in files that were concatenated.
        count = 0
        for rate, run in groupby(_frames(container, stream), key=itemgetter(0)):
            for chunk in _resampled(_joined(samples for _, samples in run), rate, rate_hz):
                count += len(chunk)
                if count > MAX_SECONDS * rate_hz:
                    raise _too_long(where)
                yield chunk
        _check_whole(container, stream, count / rate_hz, where)
    if not count:
        raise _no_samples(where)
    _warn_if_shorter(file, count / rate_hz, where)


def of_array(array: npt.NDArray[Any], rate: int, to_rate: int) -> Iterator[Samples]:
    """Resample an array [N] or [N, channels] of full-scale integers or floats in -1..1."""
    if array.ndim and len(array) > MAX_SECONDS * rate > 0:
        raise _too_long("sound")
    if not array.size:
        raise _no_samples("sound")
    chunks = (_mono(array[i : i + CHUNK]) for i in range(0, len(array), CHUNK))
    return _resampled(chunks, rate, to_rate)


def collect(chunks: Iterable[Samples]) -> Samples:
    """Join chunks without holding them twice: float32 [N]."""
    content = bytearray()
    for chunk in chunks:
        content += chunk.tobytes()
    return np.frombuffer(content, np.float32)


def _too_long(where: str) -> RequestError:
    return RequestError(
        f"[{where}] needed at most {MAX_SECONDS / 60:g} minutes of sound, got more. "
        "Send it in parts."
    )


def _no_samples(where: str) -> RequestError:
    return RequestError(f"[{where}] needed a sound, got no samples. Check that it is whole.")


def _check_length(container: InputContainer, stream: AudioStream, where: str) -> None:
    if container.format.name in EXACT and _stated(stream) > MAX_SECONDS:
        raise _too_long(where)
    seconds = 0.0
    for packet in container.demux(stream):
        if packet.duration and packet.time_base:
            seconds += float(packet.duration * packet.time_base)
        if seconds > MAX_SECONDS:
            raise _too_long(where)


def _stated(stream: AudioStream) -> float:
    return float((stream.duration or 0) * (stream.time_base or 0))


def _check_whole(
    container: InputContainer, stream: AudioStream, seconds: float, where: str
) -> None:
    """Compare the decoded length with the stated one."""
    stated = _stated(stream)
    if container.format.name in EXACT and seconds < 0.98 * stated - 0.1:
        raise RequestError(
            f"[{where}] needed the whole sound that the file announces, got {seconds:.1f} s and "
            "the end of the file. Fetch the file again."
        )
    # A stated length above the limit is a placeholder, as writers to a pipe use.
    if container.format.name in BARE and seconds < 0.98 * stated - 0.1 <= MAX_SECONDS:
        _warn_cut(seconds, where)


def _warn_if_shorter(file: BinaryIO, seconds: float, where: str) -> None:
    """Warn if a file is shorter than its header states, which FFmpeg corrects silently."""
    file.seek(0)
    header = file.read(28)
    for magic, (form, at, rest) in STATED_SIZES.items():
        if header.startswith(magic) and len(header) == 28:
            stated = struct.unpack_from(form, header, at)[0] + rest
            if file.seek(0, io.SEEK_END) < stated < PLACEHOLDER_BYTES:
                _warn_cut(seconds, where)


def _warn_cut(seconds: float, where: str) -> None:
    logger.warning(
        "[%s] the file ends before the sound that it announces: %.1f s are heard.", where, seconds
    )


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
    """Interleave the channels of a planar frame with eight or more.

    PyAV 18.1 would read past its end: it counts planes up to a null pointer, and none follows
    eight.
    """
    if frame.layout.nb_channels < 8 or not frame.format.is_planar:
        return [frame]
    packer = av.AudioResampler(frame.format.packed, frame.layout, frame.sample_rate)
    return packer.resample(frame)


def _mono(values: npt.NDArray[Any]) -> Samples:
    """Return the mean of all channels, integers scaled to -1..1.

    Shapes: [N] or [N, channels] -> float32 [N].
    """
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


def _joined(chunks: Iterable[Samples]) -> Iterator[Samples]:
    """Join a codec's small frames, because a step of the resampler costs the same for any size."""
    held, n = [], 0
    for chunk in chunks:
        held.append(chunk)
        n += len(chunk)
        if n >= CHUNK:
            yield np.concatenate(held)
            held, n = [], 0
    if held:
        yield np.concatenate(held)


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
