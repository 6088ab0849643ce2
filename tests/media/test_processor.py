import dataclasses
import json
import logging

import pytest
from media_data import FOLDER

from hlwq_mlx.disk.fields import kind_of
from hlwq_mlx.errors import ConfigError, HLWQError, RequestError, SourceError
from hlwq_mlx.media.processor import (
    ImageSettings,
    Processor,
    SoundSettings,
    VideoSettings,
)

SAVED = json.loads((FOLDER / "processor" / "default" / "processor_config.json").read_text())


def folder_with(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def changed(section, **values):
    return {**SAVED, section: {**SAVED[section], **values}}


def test_the_saved_form_is_the_documented_constants(caplog):
    assert Processor.from_folder(FOLDER / "processor" / "default") == Processor()
    assert caplog.text == ""


def test_every_setting_of_the_saved_form_is_read(caplog):
    """The file differs in each, so that one under another name would show."""
    found = Processor.from_folder(FOLDER / "processor" / "other")
    assert found.image == ImageSettings(8, 2, 560, rescale_factor=1 / 128)
    assert found.video == VideoSettings(4, 5, 140, rescale_factor=1 / 64, num_frames=8)
    assert found.sound == SoundSettings(8000, 64, 256, 128, 256, 50.0, 3500.0, 0.01, 500)
    assert caplog.text == ""


def test_a_folder_that_says_nothing_gives_the_constants_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "hlwq_mlx"):
        assert Processor.from_folder(tmp_path) == Processor()
    (record,) = caplog.records
    assert "no processor settings for image, sound, video" in record.getMessage()


def test_only_what_is_missing_is_named(tmp_path, caplog):
    partial = {key: SAVED[key] for key in ("image_processor", "video_processor")}
    Processor.from_folder(folder_with(tmp_path, processor_config=partial))
    assert "no processor settings for sound: using" in caplog.text


def test_a_tiny_models_sizes_are_taken(tmp_path):
    tiny = {
        "image_processor": {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 16},
        "video_processor": {"num_frames": 4, "max_soft_tokens": 8},
        "feature_extractor": {"sampling_rate": 8000, "feature_size": 32, "max_frequency": 4000.0},
        "audio_seq_length": 50,
    }
    found = Processor.from_folder(folder_with(tmp_path, processor_config=tiny))
    assert found.image == ImageSettings(4, 2, 16)
    assert found.video == VideoSettings(4, 2, 8, num_frames=4)
    assert found.sound == SoundSettings(
        **{"sampling_rate": 8000, "feature_size": 32, "frame_length": 160, "hop_length": 80},
        **{"fft_length": 256, "max_frequency": 4000.0, "max_soft_tokens": 50},
    )
    assert found.sound.max_samples == 50 * 4 * 80


def test_the_older_separate_files_are_read(tmp_path):
    flat = {**SAVED["image_processor"], "max_soft_tokens": 560}
    video = {**SAVED["video_processor"], "num_frames": 8}
    sound = {"sampling_rate": 16000, "frame_length_ms": 32.0, "hop_length_ms": 10.0}
    found = Processor.from_folder(
        folder_with(
            tmp_path, preprocessor_config={**flat, **sound}, video_preprocessor_config=video
        )
    )
    assert found.image.max_soft_tokens == 560
    assert found.video.num_frames == 8
    assert (found.sound.frame_length, found.sound.fft_length) == (512, 512)
    assert found.sound.max_soft_tokens == 750


def test_an_older_file_about_images_says_nothing_of_sound(tmp_path, caplog):
    flat = {**SAVED["image_processor"], "max_soft_tokens": 560}
    found = Processor.from_folder(folder_with(tmp_path, preprocessor_config=flat))
    assert found.sound == SoundSettings()
    assert "no processor settings for sound, video: using" in caplog.text


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("image_processor", {"resample": 2}, r"image_processor\.resample\] needed 3, got 2"),
        ("image_processor", {"do_rescale": False}, "do_rescale"),
        ("image_processor", {"patch_size": 0}, r"patch_size\] needed a whole number from 1 to 64"),
        ("image_processor", {"patch_size": 4.5}, "got 4.5"),
        ("image_processor", {"max_soft_tokens": True}, "got True"),
        ("video_processor", {"image_mean": [0.5] * 3}, r"video_processor\.image_mean"),
        ("video_processor", {"num_frames": -1}, "got -1"),
        ("feature_extractor", {"preemphasis": 0.97}, "preemphasis"),
        ("feature_extractor", {"per_bin_mean": [0.0] * 128}, "per_bin_mean"),
        ("feature_extractor", {"fft_overdrive": True}, "fft_overdrive"),
        ("feature_extractor", {"padding_side": "left"}, r"padding_side\] needed 'right'"),
        ("feature_extractor", {"mel_floor": "low"}, "got 'low'"),
        ("feature_extractor", {"sampling_rate": "16k"}, "got '16k'"),
        ("feature_extractor", {"hop_length": None, "hop_length_ms": "ten"}, "got 'ten'"),
    ],
)
def test_what_is_not_implemented_or_no_number_is_refused(tmp_path, section, values, message):
    folder = folder_with(tmp_path, processor_config=changed(section, **values))
    with pytest.raises(ConfigError, match=message):
        Processor.from_folder(folder)


def test_a_section_is_an_object(tmp_path):
    folder = folder_with(tmp_path, processor_config={"image_processor": "Gemma4"})
    with pytest.raises(ConfigError, match=r"image_processor\] needed a JSON object, got 'Gemma4'"):
        Processor.from_folder(folder)


def test_a_mean_that_is_not_used_does_not_matter(tmp_path):
    config = changed("image_processor", image_mean=[0.5] * 3)
    assert Processor.from_folder(folder_with(tmp_path, processor_config=config)) == Processor()


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "processor_config.json").write_text(text)
    with pytest.raises(SourceError, match=r"^\[processor_config\.json\] needed a JSON object"):
        Processor.from_folder(tmp_path)


HOSTILE = [0, -1, 10**30, 1 << 31, 1 << 40, True, "7", 1.5, []]


@pytest.mark.parametrize("section", ["image_processor", "video_processor", "feature_extractor"])
def test_every_number_has_bounds(tmp_path, section):
    """Of each number the processor reads, what no model needs is refused by name."""
    kinds = {
        "image_processor": ImageSettings,
        "video_processor": VideoSettings,
        "feature_extractor": SoundSettings,
    }
    for field in dataclasses.fields(kinds[section]):
        bounds = kind_of(field.type).bounds
        assert bounds is not None, field.name
        key = "audio_seq_length" if section[0] + field.name == "fmax_soft_tokens" else field.name
        for value in [*HOSTILE, bounds.least, bounds.most]:
            config = changed(section, **{key: value})
            if key == "audio_seq_length":
                config = SAVED | {key: value}
            folder = folder_with(tmp_path, processor_config=config)
            try:
                read = Processor.from_folder(folder)
            except HLWQError as refusal:
                assert key in str(refusal) or "come to" in str(refusal)
            else:
                assert max(read.image.max_pixels, read.video.max_pixels) <= 1 << 24
                assert read.sound.max_values <= 1 << 23


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("image_processor", {"patch_size": 64}, r"image_processor\] .* at most 16,777,216 pixels"),
        ("video_processor", {"num_frames": 256}, r"video_processor\] .* 16,777,216 pixels, got"),
        ("feature_extractor", {"fft_length": 8192}, r"feature_extractor\] .* values of spectra, g"),
        ("feature_extractor", {"min_frequency": 8000}, r"max_frequency\] needed more than min_"),
    ],
)
def test_numbers_are_held_against_what_they_come_to(tmp_path, section, values, message):
    folder = folder_with(tmp_path, processor_config=changed(section, **values))
    with pytest.raises(ConfigError, match=message):
        Processor.from_folder(folder)


def test_a_callers_budget_is_checked_a_files_own_is_not():
    tiny = ImageSettings(4, 2, 16)
    assert (tiny.budget(None), tiny.budget(16), tiny.budget(70)) == (16, 16, 70)
    for wish in (17, 0, -70):
        with pytest.raises(RequestError, match=f"got {wish}"):
            tiny.budget(wish)
