"""Sound and video files for the media tests, written by FFmpeg's own encoders through PyAV."""

import io
import wave
from fractions import Fraction

import av
import numpy as np


class Pipe:
    """What cannot go back to write a length, as standard output cannot."""

    def __init__(self):
        self._content = bytearray()

    def write(self, content):
        self._content += content
        return len(content)

    def getvalue(self):
        return bytes(self._content)


def sound_file(samples, rate, form="wav", codec="pcm_f32le", layout=None, into=None, **options):
    """Encode float samples [N] or [N, channels] at `rate`."""
    channels = np.asarray(samples, np.float32).reshape(len(samples), -1)
    layout = layout or {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[channels.shape[1]]
    frame = av.AudioFrame.from_ndarray(channels.reshape(1, -1), format="flt", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    file = into or io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.layout = layout
        stream.codec_context.open()
        to_format = av.AudioResampler(stream.codec_context.format, layout, rate)
        queue = av.AudioFifo()
        for piece in to_format.resample(frame) + to_format.resample(None):
            queue.write(piece)
        while piece := queue.read(stream.codec_context.frame_size or 1024, partial=True):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return file.getvalue()


def empty_sound():
    """Write a wav file that has a header and nothing behind it."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
    return file.getvalue()


def video_file(frames, fps=10, form="mp4", codec="mpeg4", pixels="yuv420p", **options):
    """Encode frames uint8 [n, h, w, 3]; h and w are even."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.bit_rate = 4_000_000
        stream.pix_fmt, stream.options = pixels, {k: str(v) for k, v in options.items()}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()
