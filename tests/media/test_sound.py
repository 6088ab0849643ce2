import io
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from media_data import inputs, references
from media_files import Pipe, empty_sound, sound_file, video_file

from hlwq_mlx.errors import RequestError
from hlwq_mlx.media import recordings
from hlwq_mlx.media.processor import SoundSettings
from hlwq_mlx.media.sound import mel_frames, read_sound, soft_tokens, sound_mels, split

SETTINGS = SoundSettings()
ROWS = references("sound")


def heard(content):
    """Decode a file in this process, which is the same and faster."""
    return recordings.collect(recordings.decode(io.BytesIO(content), "bytes", 16_000))


def tone(hertz, rate, seconds=1.0):
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate).astype(np.float32) / 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["length"]))
def test_mel_frames_equal_the_reference(row):
    heard = inputs.samples(row["length"])[: SETTINGS.max_samples]
    found = mel_frames(heard, SETTINGS)
    assert found.dtype == np.float32
    assert found.shape == (row["frames"], 128)
    assert soft_tokens(len(found)) == row["soft_tokens"]
    for index, values in row["values"].items():
        np.testing.assert_allclose(found[int(index)], values, rtol=0, atol=1e-5)
    means = np.asarray(row["sums"]) / max(row["frames"], 1)
    np.testing.assert_allclose(found.mean(0, dtype=np.float64), means, rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 160])
def test_less_than_a_frame_is_no_frame(length):
    assert mel_frames(np.zeros(length, np.float32), SETTINGS).shape == (0, 128)
    if length:
        with pytest.raises(RequestError, match=f"more than 160 samples at 16000 Hz, got {length}"):
            sound_mels(np.zeros(length, np.float32), SETTINGS)


def test_thirty_seconds_are_750_soft_tokens():
    (mel,) = sound_mels(np.zeros(480_000, np.float32), SETTINGS)
    assert mel.soft_tokens == 750


@pytest.mark.parametrize("rate", [44_100, 48_000, 22_050, 11_025, 8_000, 96_000, 16_000])
def test_a_tone_is_the_same_at_every_rate(rate):
    inner = slice(500, -500)  # the ends ring, as the tone starts and stops at once
    for hertz in (1_000, 3_500):
        found = read_sound(tone(hertz, rate), SETTINGS, rate_hz=rate)
        assert len(found) == 16_000
        np.testing.assert_allclose(found[inner], tone(hertz, 16_000)[inner], rtol=0, atol=3e-5)


@pytest.mark.parametrize("rate", [44_100, 48_000, 22_050, 96_000])
def test_what_the_model_cannot_hear_does_not_fold_back(rate):
    for hertz in (8_300, 10_000):
        found = read_sound(tone(hertz, rate), SETTINGS, rate_hz=rate)
        assert np.abs(found[500:-500]).max() < 1e-4


def test_the_highest_octave_is_kept():
    found = read_sound(tone(7_400, 44_100), SETTINGS, rate_hz=44_100)
    np.testing.assert_allclose(found[500:-500], tone(7_400, 16_000)[500:-500], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("form", "codec", "tolerance"),
    [
        *(("wav", "pcm_u8", 5e-3), ("wav", "pcm_s16le", 3e-5), ("wav", "pcm_s24le", 3e-6)),
        *(("wav", "pcm_s32le", 3e-6), ("wav", "pcm_f32le", 3e-6), ("wav", "pcm_f64le", 3e-6)),
        *(("flac", "flac", 3e-5), ("aiff", "pcm_s16be", 3e-5), ("ipod", "alac", 3e-5)),
        *(("mp3", "libmp3lame", 0.03), ("ogg", "libopus", 0.03), ("ipod", "aac", 0.03)),
        *(("webm", "libopus", 0.03), ("matroska", "flac", 3e-5), ("caf", "pcm_s16be", 3e-5)),
        ("au", "pcm_mulaw", 0.03),
    ],
)
def test_formats(form, codec, tolerance):
    for channels in (1, 2):
        played = np.stack([tone(1_000, 48_000)] * channels, axis=1)
        found = heard(sound_file(played, 48_000, form, codec))
        assert found.dtype == np.float32
        assert 16_000 <= len(found) <= 16_000 + 400  # a codec may pad its last block
        inner = slice(1000, 15_000)
        np.testing.assert_allclose(
            found[inner], tone(1_000, 16_000)[inner], rtol=0, atol=tolerance + 5e-6
        )


def test_vorbis():
    played = np.stack([tone(1_000, 44_100)] * 2, axis=1)
    found = heard(sound_file(played, 44_100, "ogg", "vorbis", strict="-2"))
    assert abs(len(found) - 16_000) <= 400
    spectrum = np.abs(np.fft.rfft(found[2000:12_000]))
    assert np.argmax(spectrum) == 1_000 * 10_000 // 16_000
    assert np.sqrt(np.mean(found[2000:12_000] ** 2)) == pytest.approx(0.5 / 2**0.5, rel=0.05)


def test_channels_are_averaged():
    channels = np.zeros((16_000, 6), np.float32)
    channels[:, 2] = tone(500, 16_000)
    expected = tone(500, 16_000) / 6
    found = heard(sound_file(channels, 16_000))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(read_sound(channels, SETTINGS), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("form", "codec"), [("ipod", "aac"), ("flac", "flac"), ("ogg", "libopus")])
def test_eight_channels_are_averaged(form, codec):
    """PyAV alone reads past the eighth, which may end the process."""
    channels = np.stack([tone(500, 48_000)] * 8, axis=1)
    channels[:, 3] = 0  # low-frequency effects, which codecs cut
    found = heard(sound_file(channels, 48_000, form, codec))
    inner = slice(1000, 15_000)
    np.testing.assert_allclose(found[inner], tone(500, 16_000)[inner] * 7 / 8, rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", ["int16", "int32", "uint8", "float64"])
def test_arrays_of_integers_are_at_full_scale(kind):
    values = {"int16": [0, 16384], "int32": [0, 2**30], "uint8": [128, 192], "float64": [0, 0.5]}
    assert read_sound(np.array(values[kind], kind), SETTINGS).tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2, 2), np.float32), r"\[2, 2, 2\]"),
        (np.array([0.0, np.nan]), "NaN"),
        (np.array([], np.float32), "no samples"),
        (np.array(["a"]), "<U1"),
    ],
    ids=["rank", "nan", "empty", "text"],
)
def test_arrays_that_are_no_sound(array, message):
    with pytest.raises(RequestError, match=message):
        read_sound(array, SETTINGS)


@pytest.mark.parametrize("rate", [0, -8000, 999, 2_000_000])
def test_a_rate_that_no_recorder_has_is_refused(rate):
    with pytest.raises(RequestError, match="needed a rate of 1,000 to 1,000,000 Hz"):
        read_sound(np.zeros(100, np.float32), SETTINGS, rate_hz=rate)


def test_a_rate_that_changes_half_way_is_followed():
    parts = [sound_file(tone(1_000, rate), rate, "mp3", "libmp3lame") for rate in (48_000, 24_000)]
    found = heard(b"".join(parts))
    for start in (3_000, len(found) - 13_000):
        spectrum = np.abs(np.fft.rfft(found[start : start + 8_000]))
        assert np.argmax(spectrum) == 500


def test_a_long_sound_becomes_clips_cut_where_it_is_quiet(caplog):
    samples = inputs.noise(70 * 16_000, 3).astype(np.float32) / 255 - 0.5
    pauses = [int(27.3 * 16_000), int(55.1 * 16_000)]
    for pause in pauses:
        samples[pause - 3200 : pause + 3200] = 0
    with caplog.at_level(logging.WARNING, "hlwq_mlx"):
        clips = split(samples, SETTINGS)
    assert np.array_equal(np.concatenate(clips), samples)
    cuts = np.cumsum([len(clip) for clip in clips])[:-1]
    assert np.abs(cuts - pauses).max() < 3200
    assert "70.0 s are more than the model hears at once (30.0 s): cut into 3 clips" in caplog.text


@pytest.mark.parametrize("length", [480_001, 480_100, 960_000, 1_000_000])
@pytest.mark.parametrize("settings", [SETTINGS, SoundSettings(max_soft_tokens=16)], ids=str)
def test_every_clip_of_a_long_sound_can_be_heard(length, settings):
    mels = sound_mels(np.zeros(length, np.float32), settings)
    assert len(mels) >= -(-length // settings.max_samples)
    assert all(1 <= mel.soft_tokens <= settings.max_soft_tokens for mel in mels)


def test_what_fits_is_not_cut(caplog):
    assert [len(clip) for clip in split(np.zeros(480_000, np.float32), SETTINGS)] == [480_000]
    assert caplog.text == ""


def test_a_sound_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(recordings, "MAX_SECONDS", 0.5)
    with pytest.raises(RequestError, match=r"at most 0\.00833333 minutes of sound, got more"):
        heard(sound_file(tone(100, 8_000), 8_000))


@pytest.mark.parametrize(("form", "codec"), [("flac", "flac"), ("ipod", "aac")])
def test_truncated_files_give_one_clear_error(form, codec):
    whole = sound_file(tone(440, 48_000, 2.0), 48_000, form, codec)
    for share in (0.02, 0.3, 0.7):
        with pytest.raises(RequestError, match=r"\[bytes\] needed (a|the whole) sound"):
            heard(whole[: int(len(whole) * share)])


@pytest.mark.parametrize(
    ("form", "codec"),
    [("wav", "pcm_s16le"), ("wav", "pcm_f32le"), ("w64", "pcm_s16le"), ("aiff", "pcm_s16be")],
)
def test_a_cut_file_of_bare_numbers_is_heard_up_to_there_and_says_so(form, codec, caplog):
    whole = sound_file(tone(440, 16_000, 2.0), 16_000, form, codec)
    with caplog.at_level(logging.WARNING, "hlwq_mlx"):
        found = heard(whole[: len(whole) // 2])
    np.testing.assert_allclose(found, tone(440, 16_000, 2.0)[: len(found)], rtol=0, atol=1e-4)
    assert len(found) == pytest.approx(16_000, abs=100)
    assert caplog.messages == [
        "[bytes] the file ends before the sound that it announces: 1.0 s are heard."
    ]


@pytest.mark.parametrize(
    ("form", "codec", "at", "kind", "lengths"),
    [
        ("wav", "pcm_s16le", (b"RIFF", b"data"), "<I", (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000)),
        ("wav", "pcm_f32le", (b"RIFF", b"data"), "<I", (0x7FFFF000, 0xFFFFFF00)),  # sox, recorders
        ("aiff", "pcm_s16be", (b"FORM", b"SSND"), ">I", (0x7F000008, 0x7FFFFFFF, 0xFFFFFFFF)),
        ("au", "pcm_s16be", (b".snd\0\0\0",), ">I", (0x7FFFFFFF, 0xFFFFFFFF)),
    ],
)
def test_a_length_that_a_pipe_wrote_means_the_whole_file(form, codec, at, kind, lengths, caplog):
    whole = sound_file(tone(440, 16_000, 2.0), 16_000, form, codec)
    for length in lengths:
        file = bytearray(whole)
        for place in at:
            struct.pack_into(kind, file, file.index(place) + (len(place) + 1) // 4 * 4, length)
        with caplog.at_level(logging.WARNING, "hlwq_mlx"):
            assert len(heard(bytes(file))) == 32_000, hex(length)
    assert caplog.messages == []


def test_a_streamed_wav_is_heard_as_the_whole_one():
    sample = Path(__file__).parents[2] / "scripts" / "samples" / "three.wav"
    streamed = bytearray(sample.read_bytes())
    for at in (4, streamed.index(b"data") + 4):
        streamed[at : at + 4] = struct.pack("<I", 0x7FFFFFFF)
    wanted = read_sound(sample, SETTINGS)
    assert np.array_equal(read_sound(bytes(streamed), SETTINGS), wanted)


@pytest.mark.parametrize(("form", "codec"), [("flac", "flac"), ("webm", "libopus")])
def test_a_sound_without_a_stated_length_is_heard(form, codec):
    samples = tone(440, 48_000, 2.0)
    written = sound_file(samples, 48_000, form, codec)
    streamed = sound_file(samples, 48_000, form, codec, into=Pipe())
    assert written != streamed
    assert len(heard(streamed)) == pytest.approx(32_000, abs=400)


def test_an_ogg_cut_in_its_head_is_an_error():
    whole = sound_file(tone(440, 48_000, 2.0), 48_000, "ogg", "libopus")
    with pytest.raises(RequestError, match=r"\[bytes\] needed (a|the whole) sound"):
        heard(whole[: len(whole) // 50])


@pytest.mark.parametrize(("form", "codec"), [("mp3", "libmp3lame"), ("ogg", "libopus")])
def test_a_stream_cut_short_is_heard_up_to_there(form, codec):
    whole = sound_file(tone(440, 48_000, 4.0), 48_000, form, codec)
    found = heard(whole[: len(whole) * 7 // 10])
    assert 0.2 < len(found) / 64_000 < 0.75


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {}\n",
    ],
    ids=["m3u8", "ffconcat"],
)
def test_a_playlist_opens_no_other_file(tmp_path, monkeypatch, playlist):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.wav").write_bytes(sound_file(tone(440, 16_000), 16_000))
    (tmp_path / "list.m3u8").write_text(playlist.format("secret.wav"))
    for origin in (playlist.format("secret.wav").encode(), tmp_path / "list.m3u8"):
        with pytest.raises(RequestError, match="that FFmpeg reads"):
            read_sound(origin, SETTINGS)


def test_a_codec_that_nobody_knows_is_named():
    file = bytearray(sound_file(tone(440, 16_000), 16_000))
    file[20:22] = b"\x99\x99"  # the codec in a WAV's header
    with pytest.raises(RequestError, match="needed a sound in a codec that FFmpeg knows"):
        heard(bytes(file))


def test_a_wrong_extension_does_not_matter(tmp_path):
    path = tmp_path / "speech.mp3"
    path.write_bytes(sound_file(tone(440, 16_000), 16_000, "flac", "flac"))
    assert len(read_sound(path, SETTINGS)) == 16_000


def test_a_films_sound_track_is_read():
    film = sound_file(tone(440, 48_000), 48_000, "mp4", "aac")
    assert 16_000 <= len(heard(film)) <= 16_400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, I am text, not a sound", "that FFmpeg reads"),
        (empty_sound(), "no samples"),
        (video_file(np.zeros((3, 16, 16, 3), np.uint8)), "a file without any"),
    ],
    ids=["text", "empty", "silent film"],
)
def test_what_is_no_sound_is_named(tmp_path, content, message):
    path = tmp_path / "speech.wav"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message) as caught:
        read_sound(path, SETTINGS)
    assert "speech.wav]" in str(caught.value)
