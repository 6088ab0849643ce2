"""Open sound and video files with FFmpeg, through PyAV, without access to anything else.

FFmpeg also reads playlists and scripts, which name other files and servers. So only formats that
contain their media are allowed, and no protocols.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

import av
from av.container import InputContainer
from av.stream import Stream

from ..errors import RequestError

Some = TypeVar("Some", bound=Stream)

FORMATS = (
    *("wav", "w64", "aiff", "au", "caf", "mp3", "flac", "ogg", "aac", "ac3", "eac3", "amr"),
    *("ape", "wv", "tta", "loas", "mov", "mp4", "m4a", "3gp", "3g2", "matroska", "webm"),
    *("avi", "asf", "flv", "mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc", "ivf", "gif"),
    *("apng", "mxf", "dv", "rm", "nut"),
)
OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}


@contextmanager
def open_container(file: BinaryIO, where: str, kind: str) -> Iterator[InputContainer]:
    """Open a file of `kind` ("sound", "video") from its start.

    Raises: RequestError when FFmpeg cannot read it, here or within the block; MemoryError when
    FFmpeg runs into the process's memory limit.
    """
    file.seek(0)
    try:
        with av.open(file, "r", options=OPTIONS, metadata_errors="ignore") as container:
            yield container
    except (av.FFmpegError, OSError) as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        raise RequestError(
            f"[{where}] needed a {kind} that FFmpeg reads, got: {error}. "
            f"Check that it is a {kind} and whole."
        ) from error


def first(streams: Sequence[Some], kind: str, where: str) -> Some:
    """Return the stream of a file that is to be read.

    Raises: RequestError when there is none, or FFmpeg does not know its codec.
    """
    if not streams:
        raise RequestError(f"[{where}] needed a {kind}, got a file without any. Check the file.")
    if streams[0].codec_context is None:
        raise RequestError(
            f"[{where}] needed a {kind} in a codec that FFmpeg knows, got another. Encode it again."
        )
    return streams[0]
