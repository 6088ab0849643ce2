import io

import av
import numpy as np
import pytest
from av.stream import Disposition
from media_data import arrays, digest, inputs, references
from media_files import sound_file, video_file
from PIL import Image

from hlwq_mlx.errors import RequestError
from hlwq_mlx.media import pixels, video
from hlwq_mlx.media.images import image_patches
from hlwq_mlx.media.processor import VideoSettings
from hlwq_mlx.media.video import Clip, clip_patches, frame_indices, make_clip, read_video

TINY = VideoSettings(patch_size=4, pooling_kernel_size=2, max_soft_tokens=16, num_frames=4)
FORMATS = [
    *(("mp4", "mpeg4", "yuv420p"), ("mp4", "libx264", "yuv420p"), ("mov", "libx264", "yuv420p")),
    *(("webm", "libvpx", "yuv420p"), ("webm", "libvpx-vp9", "yuv420p"), ("gif", "gif", "rgb8")),
    *(("avi", "mpeg4", "yuv420p"), ("matroska", "libx264", "yuv420p")),
    *(("mov", "mjpeg", "yuvj420p"), ("mpegts", "mpeg2video", "yuv420p")),
]


def seen(content, settings=TINY):
    """Decode a file in this process, which is the same and faster."""
    arrays = video.decode(io.BytesIO(content), "bytes", settings, settings.max_soft_tokens)
    times, *frames = arrays
    return video._clip(frames, times.tolist(), "bytes")


def ramp(count, height=32, width=48):
    """Frames that tell their index by their brightness: 4 times as bright a grey."""
    return np.stack([np.full((height, width, 3), 4 * i, np.uint8) for i in range(count)])


def noise(count):
    return inputs.noise(count * 64 * 64 * 3, 1).reshape(count, 64, 64, 3).astype(np.uint8)


def indices_of(clip):
    return [round(float(frame.mean()) / 4) for frame in clip.frames]


@pytest.mark.parametrize("row", references("video"), ids=lambda row: str(row["total"]))
def test_indices_and_stamps_equal_the_reference(row):
    indices = frame_indices(row["total"], row["num_frames"])
    assert indices == row["indices"]
    clip = Clip(np.zeros((1, 2, 2, 3), np.uint8), tuple(i / row["fps"] for i in indices))
    assert list(clip.stamps) == row["stamps"]


@pytest.mark.parametrize("total", [0, 1, 5, 31])
def test_a_short_video_gives_all_its_frames(total):
    assert frame_indices(total, 32) == list(range(total))


def test_minutes_grow_past_an_hour():
    clip = Clip(np.zeros((1, 2, 2, 3), np.uint8), (59.99, 60.0, 3599.9, 6000.5))
    assert clip.stamps == ("00:59", "01:00", "59:59", "100:00")


@pytest.mark.parametrize(("form", "codec", "pixels"), FORMATS)
def test_formats_give_the_frames_asked_for(form, codec, pixels):
    for key_every in (6, 250):
        file = video_file(ramp(50), 10, form, codec, pixels, g=key_every)
        clip = seen(file)
        assert indices_of(clip) == [0, 12, 25, 37]
        assert clip.timestamps == (0.0, 1.2, 2.5, 3.7)
        assert clip.stamps == ("00:00", "00:01", "00:02", "00:03")
        assert clip.frames.dtype == np.uint8


@pytest.mark.parametrize(("form", "codec", "pixels"), FORMATS[:-1])  # FFmpeg needs more of mpegts
def test_fewer_frames_than_asked_for_work(form, codec, pixels):
    for count in (1, 3):
        clip = seen(video_file(ramp(count), 10, form, codec, pixels))
        assert indices_of(clip) == list(range(count))


def test_only_what_is_needed_is_decoded(monkeypatch):
    file = video_file(ramp(60), 10, "mp4", "libx264", g=5)
    passed = []
    whole = video._next_frame

    def counted(decoder, time):
        return whole((passed.append(frame) or frame for frame in decoder), time)

    monkeypatch.setattr(video, "_next_frame", counted)
    assert indices_of(seen(file)) == [0, 15, 30, 45]
    assert len(passed) <= 4 * 5


def test_a_container_that_cannot_jump_is_walked_once(monkeypatch):
    file = video_file(ramp(60), 10, "mp4", "libx264", g=5)
    decoder_from, starts = video._decoder_from, []

    def lost(container, stream, time):
        starts.append(time)
        return decoder_from(container, stream, None) if time is None else iter(())

    monkeypatch.setattr(video, "_decoder_from", lost)
    assert indices_of(seen(file)) == [0, 15, 30, 45]
    assert (len(starts), starts.count(None)) == (3, 2)


def test_frames_are_fitted_and_cut_like_images():
    frame = np.asarray(Image.linear_gradient("L").resize((90, 60)).convert("RGB"))
    clip = make_clip([frame, frame], TINY, fps=2.0)
    first, second = clip_patches(clip, TINY)
    expected = image_patches(frame, TINY)
    assert np.array_equal(first.patches, expected.patches)
    assert np.array_equal(second.positions, expected.positions)
    assert first.soft_tokens == expected.soft_tokens <= 16
    assert clip.timestamps == (0.0, 0.5)


def compared(number):
    """A reference clip's row, its patches and ours, of the frames that stand in the file."""
    row = references("clips")[number]
    settings = VideoSettings(row["patch_size"], row["pooling_kernel_size"], row["max_soft_tokens"])
    film = inputs.film(row["height"], row["width"])
    return row, arrays("clips")[str(number)], clip_patches(make_clip(film, settings), settings)


@pytest.mark.parametrize("number", range(len(references("clips"))))
def test_pixels_come_as_close_to_the_reference_as_two_resizers_do(number):
    """The reference resizes video with torch, we with Pillow; both call it bicubic."""
    row, wanted, found = compared(number)
    assert {frame.soft_tokens for frame in found} == {row["soft_tokens"]}
    assert digest(np.stack([frame.positions for frame in found])) == row["positions"]
    got = np.stack([frame.patches[row["chosen"]] for frame in found])
    errors = np.abs(np.rint(got * 255) - wanted)
    assert errors.max() <= 2
    assert errors.mean() < 0.01


def test_pixels_equal_the_reference_where_nothing_is_resized():
    row, _, found = compared(2)
    assert digest(np.stack([frame.patches for frame in found])) == row["patches"]


def test_the_documented_constants_are_70_tokens_for_32_frames():
    clip = read_video(video_file(ramp(40), 10), VideoSettings())
    patches = clip_patches(clip, VideoSettings())
    assert len(patches) == len(clip.stamps) == 32
    assert {cut.soft_tokens for cut in patches} == {60}
    assert all(cut.patches.shape == (540, 768) for cut in patches)
    assert (
        clip_patches(make_clip(ramp(1), VideoSettings(), max_soft_tokens=280), VideoSettings())[
            0
        ].soft_tokens
        > 70
    )


def test_a_variable_rate_is_stamped_by_its_average():
    frames = [Image.new("RGB", (16, 16), (40 * i,) * 3) for i in range(4)]
    durations = [100, 900, 100, 900]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations)
    clip = seen(file.getvalue())
    assert len(clip.frames) == 4
    assert clip.timestamps == pytest.approx((0.0, 0.5, 1.0, 1.5))


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_phones_rotation_is_applied(turns):
    scene = np.zeros((2, 32, 64, 3), np.uint8)
    scene[:, :16] = 200
    file = bytearray(video_file(scene))
    # The matrix of a QuickTime track header, here that of `turns` quarter turns to the right.
    a, b = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns]
    numbers = [a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30]
    start = file.index(b"tkhd") + 4 + 40
    file[start : start + 36] = np.array(numbers, ">i4").tobytes()
    found = seen(bytes(file)).frames[0].astype(int)
    expected = make_clip(np.rot90(scene, -turns, axes=(1, 2)), TINY).frames[0]
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 8


@pytest.mark.parametrize(("form", "codec", "pixels"), FORMATS[:6])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_truncated_files_give_one_clear_error(form, codec, pixels, share):
    whole = video_file(noise(30), 10, form, codec, pixels)
    cut = whole[: max(int(len(whole) * share), 20)]
    if form in ("webm", "gif") and share:  # streams: the frames that are there are a video
        assert 1 <= len(seen(cut).frames) <= 4
    else:
        with pytest.raises(RequestError, match=r"\[bytes\] needed (a video|.* frames)"):
            seen(cut)


@pytest.mark.parametrize("is_clean_cut", [True, False])
def test_an_mp4_whose_end_is_missing_is_refused(is_clean_cut):
    whole = video_file(noise(30), 10, "mp4", movflags="faststart")
    with av.open(io.BytesIO(whole)) as container:
        end = next(p.pos for i, p in enumerate(container.demux(video=0)) if i == 20)
    with pytest.raises(RequestError, match=r"\[bytes\] needed a video that FFmpeg reads"):
        seen(whole[: end + (0 if is_clean_cut else 50)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, I am text and no film", "needed a video that FFmpeg reads"),
        (sound_file(np.zeros(4000), 16_000), "a file without any"),
    ],
    ids=["text", "sound"],
)
@pytest.mark.parametrize("name", ["film.mp4", "film.txt"])
def test_what_is_no_video_is_named(tmp_path, content, message, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message) as caught:
        read_video(path, TINY)
    assert f"{name}]" in str(caught.value)


def test_a_codec_that_nobody_knows_is_named():
    file = video_file(ramp(3), 10, "avi").replace(b"FMP4", b"QQ7?")
    with pytest.raises(RequestError, match="needed a video in a codec that FFmpeg knows"):
        seen(file)


def test_too_many_frames_are_refused(monkeypatch):
    monkeypatch.setattr(video, "MAX_FRAMES", 20)
    with pytest.raises(RequestError, match="at most 20 frames"):
        seen(video_file(ramp(30)))


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        ([], 24.0, "got no sizes"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 40, 3), np.uint8)], 24.0, "got 2 sizes"),
        (ramp(2), 0.0, "positive number, got 0.0"),
        (ramp(2)[..., 0].astype(int), 24.0, "int64"),
    ],
    ids=["none", "sizes", "fps", "type"],
)
def test_arrays_that_are_no_video(frames, fps, message):
    with pytest.raises(RequestError, match=message):
        make_clip(frames, TINY, fps)


def test_a_frame_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(pixels, "PICTURE_BYTES", 7000)
    with pytest.raises(RequestError, match=r"1 to 1,000 pixels .* got 48 x 32"):
        seen(video_file(ramp(3)))


def test_the_cover_of_a_song_is_no_video():
    song = io.BytesIO()
    with av.open(song, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=44_100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 16
        cover.pix_fmt, cover.disposition = "yuvj420p", Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), "fltp", "mono")
        frame.sample_rate = 44_100
        stream.layout = "mono"
        picture = av.VideoFrame.from_ndarray(ramp(1, 16, 16)[0], format="rgb24")
        container.mux(cover.encode(picture) + cover.encode(None))
        container.mux(stream.encode(frame) + stream.encode(None))
    with pytest.raises(RequestError, match="a file without any"):
        seen(song.getvalue())
