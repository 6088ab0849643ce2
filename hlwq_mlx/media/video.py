"""Convert video to a few frames with their times, each cut into patches like an image.

Frames are chosen and timed as in the reference. They are resized as they are decoded, so memory
does not grow with the video. FFmpeg decodes, through PyAV. Sound tracks are not read, and the text
between frames is made in dialog. Letters: n = frames, h, w = height and width in pixels.
Source: transformers 5.23.0, video_utils.py (default_sample_indices_fn, read_video_pyav) and
models/gemma4/video_processing_gemma4.py.
"""

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ..errors import RequestError
from . import child
from .container import first, open_container
from .images import Patches, cut_patches, read_image, resize_to_budget
from .origin import LOCAL, Access, Origin, name_of, open_origin
from .pixels import Pixels, check_pixels
from .processor import VideoSettings

FALLBACK_FPS = 24.0  # the reference's, where a file does not say
THREADS = 4  # each may hold pictures of its own
MAX_FRAMES = 1_000_000  # 4.6 hours at 60 frames per second


@dataclass(frozen=True)
class Clip:
    """Sampled frames, already at the size that patches are cut from.

    Shapes: frames uint8 [n, h, w, 3]; timestamps in seconds, one per frame.
    """

    frames: Pixels
    timestamps: tuple[float, ...]

    @property
    def stamps(self) -> tuple[str, ...]:
        """The times as the model reads them, "MM:SS", rounded down."""
        return tuple(f"{int(s // 60):02d}:{int(s % 60):02d}" for s in self.timestamps)


def frame_indices(total: int, num_frames: int) -> list[int]:
    """Return at most `num_frames` evenly spaced frames, from the first on."""
    count = min(total, num_frames)
    return [index * total // count for index in range(count)]


def read_video(
    origin: Origin,
    settings: VideoSettings,
    max_soft_tokens: int | None = None,
    access: Access = LOCAL,
) -> Clip:
    """Sample a video's frames and fit them to the budget of one frame.

    Times are index / average frame rate, as the reference has them. A rotation that a phone wrote
    into the file is applied. Only the stretches between the nearest key frames and the chosen
    frames are decoded.
    Raises: RequestError when it is no video, broken, without frames, too long or too large, or not
    allowed; SourceError when a file or server cannot be read.
    """
    where = name_of(origin)
    options = {"settings": asdict(settings), "max_soft_tokens": settings.budget(max_soft_tokens)}
    with open_origin(origin, access) as file:
        times, *frames = child.read("video", file, where, **options)
    return _clip(frames, times.tolist(), where)


def decode(
    file: BinaryIO, where: str, settings: VideoSettings, max_soft_tokens: int
) -> Iterator[npt.NDArray[Any]]:
    """Yield the times of the sampled frames in seconds, and then each frame, resized."""
    with open_container(file, where, "video") as container:
        stream = _pictures(container, where)
        times, keys = _packet_times(container, stream, where)
        indices = frame_indices(len(times), settings.num_frames)
        rate = float(stream.average_rate or FALLBACK_FPS)
        yield np.array(indices) / rate
        wanted = [times[index] for index in indices]
        count = 0
        for frame in _frames_at(container, stream, wanted, keys):
            yield resize_to_budget(_upright(frame, where), settings, max_soft_tokens)
            count += 1
    if count < len(indices):
        raise RequestError(
            f"[{where}] needed {len(indices)} frames, got {count} that can be decoded. "
            "Check that the video is whole."
        )


def make_clip(
    frames: Sequence[Pixels] | Pixels,
    settings: VideoSettings,
    fps: float = FALLBACK_FPS,
    max_soft_tokens: int | None = None,
) -> Clip:
    """Sample and fit frames that are arrays already: uint8 [n, h, w, 3] at `fps` per second.

    Raises: RequestError when there is none, or one is no image.
    """
    if not fps > 0:
        raise RequestError(f"[fps] needed a positive number, got {fps}. Check the frame rate.")
    indices = frame_indices(len(frames), settings.num_frames)
    budget = settings.budget(max_soft_tokens)
    fitted = [resize_to_budget(read_image(frames[index]), settings, budget) for index in indices]
    return _clip(fitted, [index / fps for index in indices], "video")


def clip_patches(clip: Clip, settings: VideoSettings) -> list[Patches]:
    """Cut every frame of a clip into patches."""
    return [cut_patches(frame, settings) for frame in clip.frames]


def _clip(frames: list[Pixels], timestamps: list[float], where: str) -> Clip:
    sizes = {frame.shape for frame in frames}
    if len(sizes) != 1:
        raise RequestError(
            f"[{where}] needed frames of one size, got {len(sizes) or 'no'} sizes. "
            "Encode the video again."
        )
    return Clip(np.stack(frames), tuple(timestamps))


def _pictures(container: InputContainer, where: str) -> VideoStream:
    """Return the video stream of a file; the cover picture of a song does not count."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    stream = first(streams, "video", where)
    if not stream.width * stream.height:
        raise RequestError(
            f"[{where}] needed a video with pictures, got an index without any, or one that does "
            "not fit into memory. Check that the video is whole."
        )
    check_pixels(stream.height, stream.width, where)
    _check_frames(stream.frames, where)
    stream.thread_count = THREADS
    return stream


def _check_frames(count: int, where: str) -> None:
    if count > MAX_FRAMES:
        raise RequestError(
            f"[{where}] needed at most {MAX_FRAMES:,} frames, got more. Cut the video."
        )


def _packet_times(
    container: InputContainer, stream: VideoStream, where: str
) -> tuple[list[int], list[int]]:
    """Return, without decoding, the times of all frames and those of key frames."""
    times, keys = [], []
    for packet in container.demux(stream):
        time = packet.dts if packet.pts is None else packet.pts
        if time is None or not packet.size or packet.is_discard:
            continue
        times.append(time)
        keys += [time] if packet.is_keyframe else []
        _check_frames(len(times), where)
    return sorted(times), sorted(keys)


def _frames_at(
    container: InputContainer, stream: VideoStream, wanted: list[int], keys: list[int]
) -> Iterator[VideoFrame]:
    """Decode the frames at the `wanted` times, seeking past stretches without any of them."""
    decoder = _decoder_from(container, stream, None)
    position: float = -math.inf
    for time in wanted:
        key = keys[max(bisect.bisect(keys, time) - 1, 0)] if keys else -math.inf
        has_jumped = key > position
        if has_jumped:
            decoder = _decoder_from(container, stream, int(key))
        frame = _next_frame(decoder, time)
        if has_jumped and (frame is None or frame.pts != time):
            # Seeking in some containers lands too late: decode from the start, without more
            # seeking.
            keys = []
            decoder = _decoder_from(container, stream, None)
            frame = _next_frame(decoder, time)
        if frame is None:
            return
        position = frame.pts or 0
        yield frame


def _decoder_from(
    container: InputContainer, stream: VideoStream, time: int | None
) -> Iterator[VideoFrame]:
    if time is None:
        container.seek(min(container.start_time or 0, 0))
    else:
        container.seek(time, stream=stream)
    return container.decode(stream)


def _next_frame(decoder: Iterator[VideoFrame], time: int) -> VideoFrame | None:
    return next((frame for frame in decoder if frame.pts is not None and frame.pts >= time), None)


def _upright(frame: VideoFrame, where: str) -> Pixels:
    check_pixels(frame.height, frame.width, where)
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
