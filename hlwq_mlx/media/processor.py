"""How images, sound and video are prepared for one model, as its processor files say.

Reads `processor_config.json` as transformers' Gemma4Processor saves it (sections `image_processor`,
`feature_extractor`, `video_processor`), and the older flat `preprocessor_config.json` with
`video_preprocessor_config.json` beside it. What no file says is Gemma 4's documented constant, and
one logged line says so. It decodes nothing.
Source: transformers 5.23.0, models/gemma4/{image_processing_pil,feature_extraction,
video_processing,processing}_gemma4.py.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from ..errors import ConfigError, RequestError

logger = logging.getLogger("hlwq_mlx")

# The budgets Gemma 4 was trained with; a caller's own budget must be one of them.
BUDGETS = (70, 140, 280, 560, 1120)
FRAMES_PER_TOKEN = 4  # mel frames: the audio tower halves time twice

# Keys with one implemented value, per section. Absent means that value.
BICUBIC = 3
FIXED_PICTURE = {
    **{"do_resize": True, "do_rescale": True, "do_convert_rgb": True, "resample": BICUBIC},
    **{"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]},
}
FIXED_SOUND = {
    **{"dither": 0.0, "preemphasis": 0.0, "input_scale_factor": 1.0, "padding_value": 0.0},
    **{"per_bin_mean": None, "per_bin_stddev": None},
    **{"fft_overdrive": False, "padding_side": "right"},
}


@dataclass(frozen=True)
class ImageSettings:
    """Patches of `patch_size` pixels, pooled `pooling_kernel_size` squared to a soft token."""

    patch_size: int = 16
    pooling_kernel_size: int = 3
    max_soft_tokens: int = 280
    rescale_factor: float = 1 / 255

    def budget(self, max_soft_tokens: int | None) -> int:
        """Return the most soft tokens an image may take: the file's, or the caller's wish.

        Raises: RequestError when the wish is not a budget the model was trained with.
        """
        if max_soft_tokens in (None, self.max_soft_tokens):
            return self.max_soft_tokens
        if max_soft_tokens not in BUDGETS:
            raise RequestError(
                f"[max_soft_tokens] needed one of {', '.join(map(str, BUDGETS))}, "
                f"got {max_soft_tokens}. Choose one of these."
            )
        return max_soft_tokens


@dataclass(frozen=True)
class VideoSettings(ImageSettings):
    """As for images, for each of at most `num_frames` frames."""

    max_soft_tokens: int = 70
    num_frames: int = 32


@dataclass(frozen=True)
class SoundSettings:
    """Log-mel frames; lengths are in samples, frequencies in Hz."""

    sampling_rate: int = 16_000
    feature_size: int = 128
    frame_length: int = 320
    hop_length: int = 160
    fft_length: int = 512
    min_frequency: float = 0.0
    max_frequency: float = 8000.0
    mel_floor: float = 1e-3
    max_soft_tokens: int = 750

    @property
    def max_samples(self) -> int:
        """The longest clip the audio tower takes in one piece: 30 s with Gemma 4's constants."""
        return self.max_soft_tokens * FRAMES_PER_TOKEN * self.hop_length


@dataclass(frozen=True)
class Processor:
    """The settings of all three kinds of media."""

    image: ImageSettings = ImageSettings()
    sound: SoundSettings = SoundSettings()
    video: VideoSettings = VideoSettings()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read a model folder's processor files, falling back to Gemma 4's constants.

        Raises: ConfigError when a file is not JSON, or asks for what is not implemented.
        """
        folder = Path(folder)
        nested = _read(folder / "processor_config.json")
        flat = _read(folder / "preprocessor_config.json")
        pictures = _section(nested, "image_processor") or flat
        sounds = _section(nested, "feature_extractor") or flat
        videos = _section(nested, "video_processor") or _read(
            folder / "video_preprocessor_config.json"
        )
        _check_fixed("image_processor", pictures, FIXED_PICTURE)
        _check_fixed("feature_extractor", sounds, FIXED_SOUND)
        _check_fixed("video_processor", videos, FIXED_PICTURE)
        image = _chosen(ImageSettings, pictures)
        # In an older file, which is about all kinds, the budget is the image's.
        sound = _chosen(SoundSettings, _in_samples(sounds) | {"max_soft_tokens": None})
        video = _chosen(VideoSettings, videos)
        kinds = {"image": image, "sound": sound, "video": video}
        missing = [kind for kind, found in kinds.items() if not found]
        if missing:
            logger.warning(
                "[%s] no processor settings for %s: using Gemma 4's documented constants.",
                folder,
                ", ".join(missing),
            )
        # A folder that says nothing of video cuts its frames as it does its images.
        grid = {key: image[key] for key in ("patch_size", "pooling_kernel_size") if key in image}
        length = {"max_soft_tokens": nested.get("audio_seq_length")}
        sound |= _chosen(SoundSettings, length)
        return cls(ImageSettings(**image), SoundSettings(**sound), VideoSettings(**(grid | video)))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"[{path}] needed JSON, got {error}. Fetch the file again.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"[{path}] needed a JSON object, got {type(found).__name__}.")
    return found


def _section(nested: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = nested.get(name) or {}
    if not isinstance(found, dict):
        raise ConfigError(
            f"[{name}] needed a JSON object, got {found!r}. Fetch the processor file again."
        )
    return found


def _chosen(
    kind: type[ImageSettings | SoundSettings], section: Mapping[str, Any]
) -> dict[str, Any]:
    """Pick what a section says of a settings class."""
    return {
        field.name: _positive(section, field.name, field.type is int)
        for field in fields(kind)
        if section.get(field.name) is not None
    }


def _positive(section: Mapping[str, Any], name: str, is_whole: bool) -> int | float:
    value = section[name]
    is_number = type(value) is int or (type(value) is float and not is_whole)
    if not is_number or value < 0 or (value == 0 and name != "min_frequency"):
        raise ConfigError(
            f"[{name}] needed a positive {'whole ' if is_whole else ''}number, got {value!r}. "
            "Fetch the processor file again."
        )
    number: int | float = value
    return number


def _in_samples(section: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the lengths, which an older file holds in milliseconds or leaves out."""
    if section.get("sampling_rate") is None:
        return dict(section)
    rate = _positive(section, "sampling_rate", is_whole=True)
    spans = {"frame_length_ms": 20.0, "hop_length_ms": 10.0} | dict(section)
    lengths = {
        name: round(rate * _positive(spans, f"{name}_ms", is_whole=False) / 1000)
        for name in ("frame_length", "hop_length")
        if section.get(name) is None
    }
    found = {**section, **lengths}
    if found.get("fft_length") is None:
        frame_length = int(_positive(found, "frame_length", is_whole=True))
        found["fft_length"] = 1 << (frame_length - 1).bit_length()
    return found


def _check_fixed(where: str, section: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    unused = ("image_mean", "image_std") if section.get("do_normalize") is False else ()
    for key, accepted in fixed.items():
        value = section.get(key)
        if key not in unused and value is not None and value != accepted:
            raise ConfigError(
                f"[{where}.{key}] needed {accepted!r}, got {value!r}. "
                "Another value is not implemented."
            )
