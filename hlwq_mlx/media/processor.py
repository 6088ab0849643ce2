"""Read how images, sound and video are prepared for one model, from its processor files.

It reads `processor_config.json` as transformers' Gemma4Processor saves it (sections
`image_processor`, `feature_extractor`, `video_processor`), and the older flat
`preprocessor_config.json` with `video_preprocessor_config.json` beside it. Where no file has a
value, Gemma 4's documented constant is used, and one logged line says so. Nothing is decoded here.
Source: transformers 5.23.0, models/gemma4/{image_processing_pil,feature_extraction,
video_processing,processing}_gemma4.py.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from ..disk.failures import is_there
from ..disk.fields import Bounds, checked
from ..disk.jsonfile import read_json
from ..errors import ConfigError, RequestError

logger = logging.getLogger("hlwq_mlx")

# The budgets Gemma 4 was trained with; a caller's own budget must be one of them.
BUDGETS = (70, 140, 280, 560, 1120)
# Limits of one medium: four times what Gemma 4's own constants and budgets come to.
MOST_PIXELS = 1 << 24
MOST_VALUES = 1 << 23
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

    patch_size: Annotated[int, Bounds(1, 64)] = 16
    pooling_kernel_size: Annotated[int, Bounds(1, 16)] = 3
    max_soft_tokens: Annotated[int, Bounds(1, 4096)] = 280
    rescale_factor: Annotated[float, Bounds(1e-6, 1)] = 1 / 255

    @property
    def max_pixels(self) -> int:
        """The pixels of the largest picture that a caller may ask for."""
        side = self.patch_size * self.pooling_kernel_size
        return max(self.max_soft_tokens, *BUDGETS) * side**2

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

    max_soft_tokens: Annotated[int, Bounds(1, 4096)] = 70
    num_frames: Annotated[int, Bounds(1, 256)] = 32

    @property
    def max_pixels(self) -> int:
        """The pixels of all frames, which are there at once."""
        side = self.patch_size * self.pooling_kernel_size
        return self.num_frames * self.max_soft_tokens * side**2


@dataclass(frozen=True)
class SoundSettings:
    """Log-mel frames; lengths are in samples, frequencies in Hz."""

    sampling_rate: Annotated[int, Bounds(1_000, 192_000)] = 16_000
    feature_size: Annotated[int, Bounds(1, 1024)] = 128
    frame_length: Annotated[int, Bounds(1, 1 << 13)] = 320
    hop_length: Annotated[int, Bounds(1, 1 << 13)] = 160
    fft_length: Annotated[int, Bounds(2, 1 << 13)] = 512
    min_frequency: Annotated[float, Bounds(0, 96_000)] = 0.0
    max_frequency: Annotated[float, Bounds(1, 96_000)] = 8000.0
    mel_floor: Annotated[float, Bounds(1e-12, 1)] = 1e-3
    max_soft_tokens: Annotated[int, Bounds(1, 4096)] = 750

    @property
    def max_samples(self) -> int:
        """The longest clip the audio tower takes in one piece: 30 s with Gemma 4's constants."""
        return self.max_soft_tokens * FRAMES_PER_TOKEN * self.hop_length

    @property
    def max_values(self) -> int:
        """The values of that clip's windows, as the transform takes them."""
        longest = max(self.frame_length, self.fft_length)
        return self.max_soft_tokens * FRAMES_PER_TOKEN * longest


@dataclass(frozen=True)
class _Spans:
    """Lengths as older files state them, in milliseconds."""

    sampling_rate: Annotated[int, Bounds(1_000, 192_000)]
    frame_length_ms: Annotated[float, Bounds(1, 1000)]
    hop_length_ms: Annotated[float, Bounds(1, 1000)]


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
        image = _chosen(ImageSettings, pictures, "image_processor")
        # An older file describes all kinds of media, but its budget is that of images.
        lengths = _in_samples(sounds) | {"max_soft_tokens": None}
        sound = _chosen(SoundSettings, lengths, "feature_extractor")
        video = _chosen(VideoSettings, videos, "video_processor")
        kinds = {"image": image, "sound": sound, "video": video}
        missing = [kind for kind, found in kinds.items() if not found]
        if missing:
            logger.warning(
                "[%s] no processor settings for %s: using Gemma 4's documented constants.",
                folder,
                ", ".join(missing),
            )
        # Without settings for video, frames are cut as images are.
        grid = {key: image[key] for key in ("patch_size", "pooling_kernel_size") if key in image}
        length = {"max_soft_tokens": nested.get("audio_seq_length")}
        sound |= _chosen(SoundSettings, length, "audio_seq_length")
        read = cls(ImageSettings(**image), SoundSettings(**sound), VideoSettings(**(grid | video)))
        read._check()
        return read

    def _check(self) -> None:
        """Check the numbers together: no medium may need more than its limit."""
        sums = {
            "image_processor": (self.image.max_pixels, MOST_PIXELS, "pixels"),
            "video_processor": (self.video.max_pixels, MOST_PIXELS, "pixels"),
            "feature_extractor": (self.sound.max_values, MOST_VALUES, "values of spectra"),
        }
        for where, (got, most, what) in sums.items():
            if got > most:
                raise ConfigError(
                    f"[{where}] needed sizes and budgets that come to at most {most:,} {what}, got "
                    f"{got:,}. Fetch the processor file again."
                )
        low, high = self.sound.min_frequency, self.sound.max_frequency
        if low >= high:
            raise ConfigError(
                f"[feature_extractor.max_frequency] needed more than min_frequency {low}, got "
                f"{high}. Fetch the processor file again."
            )


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if is_there(path) else {}


def _section(nested: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = nested.get(name) or {}
    if not isinstance(found, dict):
        raise ConfigError(
            f"[{name}] needed a JSON object, got {found!r}. Fetch the processor file again."
        )
    return found


def _chosen(
    kind: type[ImageSettings | SoundSettings], section: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Pick what a section says of a settings class; null says nothing."""
    stated = {key: value for key, value in section.items() if value is not None}
    return checked(kind, stated, where)


def _in_samples(section: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the lengths, which an older file holds in milliseconds or leaves out."""
    if section.get("sampling_rate") is None:
        return dict(section)
    spans = {"frame_length_ms": 20.0, "hop_length_ms": 10.0} | dict(section)
    spans = checked(_Spans, spans, "feature_extractor")
    rate = spans.pop("sampling_rate")
    lengths = {
        name.removesuffix("_ms"): round(rate * span / 1000)
        for name, span in spans.items()
        if section.get(name.removesuffix("_ms")) is None
    }
    found = {**section, **lengths}
    if found.get("fft_length") is None:
        length = checked(SoundSettings, found, "feature_extractor")["frame_length"]
        found["fft_length"] = 1 << (length - 1).bit_length()
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
