"""The process that decodes: how it is ended, and what it hands back."""

import io
import logging
import signal
import subprocess
import sys

import numpy as np
import pytest
from media_files import sound_file, video_file
from PIL import Image
from test_plain import encoded

from hlwq_mlx.errors import RequestError
from hlwq_mlx.media import child
from hlwq_mlx.media.images import read_image
from hlwq_mlx.media.processor import SoundSettings, VideoSettings
from hlwq_mlx.media.sound import read_sound
from hlwq_mlx.media.video import read_video

GREEDY = "import mmap, time; m = mmap.mmap(-1, 1 << 30); m.write(bytes(1 << 29)); time.sleep(60)"


def test_what_holds_too_much_is_ended():
    """Memory that is shared is not counted by the system's limit, but by the watch."""
    process = subprocess.Popen([sys.executable, "-c", GREEDY])
    with child.watched(process, child.Limits(60, child.MEMORY_BYTES)) as reasons:
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert reasons == ["more than 355 MB of memory"]


def test_a_process_that_nobody_reads_from_is_ended():
    arrays = child.read("image", io.BytesIO(encoded("TIFF", size=(2000, 2000))), "bytes")
    next(arrays)
    arrays.close()  # which waits for it


def test_memory_is_limited(monkeypatch):
    monkeypatch.setattr(child, "MEMORY_BYTES", 90_000_000)
    with pytest.raises(RequestError, match=r"within 90 MB and 60 s, got more (than|memory)"):
        read_image(encoded("TIFF", size=(6000, 5000), compression="raw"))


def test_time_is_limited(monkeypatch):
    """A progressive JPEG whose last scan comes again and again."""
    monkeypatch.setitem(child.CPU_SECONDS, "image", 1)
    photo = encoded("JPEG", size=(3000, 3000), progressive=True)
    scan = photo.rindex(b"\xff\xda")
    with pytest.raises(RequestError, match=r"within \d+ MB and 1 s, got more time"):
        read_image(photo[:scan] + photo[scan:-2] * 2000 + photo[-2:])


def test_a_process_imports_nothing_from_the_current_folder(tmp_path, monkeypatch):
    for name in ("numpy", "PIL", "av", "json", "hlwq_mlx"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    assert read_image(encoded("TIFF")).shape == (48, 64, 3)
    assert not (tmp_path / "ran").exists()


def test_another_process_reads_the_same(tmp_path, caplog):
    picture = np.asarray(Image.open(io.BytesIO(encoded("TIFF"))))
    path = tmp_path / "picture"
    path.write_bytes(encoded("TIFF"))
    assert np.array_equal(read_image(path), picture)
    sound = sound_file(np.linspace(-0.5, 0.5, 48_000), 48_000, "aiff", "pcm_s16be")
    with caplog.at_level(logging.WARNING, "hlwq_mlx"):
        assert len(read_sound(sound[: len(sound) // 2], SoundSettings())) == pytest.approx(8000, 20)
    assert "ends before the sound that it announces" in caplog.text
    film = np.repeat(np.arange(40, dtype=np.uint8) * 6, 32 * 32 * 3).reshape(40, 32, 32, 3)
    clip = read_video(video_file(film), VideoSettings(num_frames=4))
    assert clip.timestamps == (0.0, 1.0, 2.0, 3.0)
    assert [round(frame.mean() / 60) for frame in clip.frames] == [0, 1, 2, 3]


@pytest.mark.parametrize("read", [read_sound, read_video])
def test_errors_come_back_by_name(read, tmp_path):
    path = tmp_path / "medium.mp4"
    path.write_bytes(b"hello, I am text")
    settings = SoundSettings() if read is read_sound else VideoSettings()
    with pytest.raises(RequestError, match=r"medium\.mp4\] needed a (sound|video) that FFmpeg"):
        read(path, settings)
