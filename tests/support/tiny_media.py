"""A tiny random Gemma 4 that sees and hears: a 16-bit repository with all its files, and media.

Its processor file is its own: an image takes at most 6 soft tokens, a frame of a video 4.
"""

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import oracle
import tiny
import tiny_tokenizer
from media_files import sound_file, video_file
from mlx.utils import tree_flatten
from PIL import Image

from hlwq_mlx import library
from hlwq_mlx.gemma4.model import Model, ModelArgs
from hlwq_mlx.gemma4.towers.tower import make_tower

VOCAB = tiny_tokenizer.build().get_vocab_size()
IMAGE, AUDIO, VIDEO = (60, 61, 62), (63, 64, 65), (60, 66, 62)
IDS = {
    **{"boi_token_id": 60, "image_token_id": 61, "eoi_token_id": 62},
    **{"boa_token_id": 63, "audio_token_id": 64, "eoa_token_index": 65, "video_token_id": 66},
}
BUDGET, FRAME_BUDGET, FRAMES = 6, 4, 3
SOUND_BUDGET = 20  # soft tokens; 0.8 seconds
PROCESSOR = {
    "audio_seq_length": SOUND_BUDGET,
    "image_processor": {"max_soft_tokens": BUDGET},
    "feature_extractor": {"sampling_rate": 16_000},
    "video_processor": {"max_soft_tokens": FRAME_BUDGET, "num_frames": FRAMES},
}
BOUNDS = {"input_min": -6.0, "input_max": 6.0, "output_min": -6.0, "output_max": 6.0}


def config() -> dict:
    settings = oracle.config() | IDS
    settings["text_config"] |= {"vocab_size": VOCAB, "vocab_size_per_layer_input": VOCAB}
    settings["text_config"]["sliding_window"] = 64
    return settings


@cache
def make_weights() -> tiny.Weights:
    """Draw every tensor, the towers' included."""
    args = ModelArgs.from_dict(config())
    text = args.text_config
    parts = [Model(args), *(make_tower(args, kind) for kind in args.towers)]
    shapes = {
        name: array.shape for part in parts for name, array in tree_flatten(part.parameters())
    }
    width = text.num_hidden_layers * text.hidden_size_per_layer_input
    shapes[tiny.ROWS] = (VOCAB, width)
    rng = np.random.default_rng(11)
    return {name: _draw(rng, name, shape) for name, shape in sorted(shapes.items())}


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if not shape:
        return np.float32(BOUNDS[name.rsplit(".", 1)[1]])
    draw = rng.standard_normal(shape).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    drawn = 1 + draw / 8 if len(shape) == 1 else draw / np.sqrt(fan_in)
    return tiny.as_float(tiny.as_bfloat16(drawn))


def write(folder: Path, *, has_processor: bool = True, towers: bool = True) -> Path:
    """Write the repository; without `towers` its config has none."""
    settings = config() if towers else config() | {"vision_config": None, "audio_config": None}
    tiny_tokenizer.write(folder)
    (folder / "config.json").write_text(json.dumps(settings))
    if has_processor:
        write_processor(folder)
    tiny.save_plain(folder / "model.safetensors", make_weights())
    return folder


def converted(folder: Path) -> Path:
    """Write the repository, and return the folder that it is converted into."""
    return library.converted_folder(str(write(folder)))


def write_processor(folder: Path) -> Path:
    (folder / "processor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def picture(width: int = 64, height: int = 48, seed: int = 0) -> np.ndarray:
    """Coarse random fields of colour, uint8 [height, width, 3]."""
    fields = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(fields).resize((width, height), Image.Resampling.NEAREST))


def image_file(form: str = "png", **size: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(**size)).save(file, form)
    return file.getvalue()


def sound(seconds: float = 0.5, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    """A tone whose pitch rises, float32 [N]."""
    time = np.arange(int(rate * seconds)) / rate
    return (np.sin(2 * np.pi * hertz * (1 + time) * time) / 2).astype(np.float32)


def write_media(folder: Path) -> dict[str, Path]:
    """Write one file of each kind: two pictures, a wav, an mp3 and an mp4."""
    frames = np.stack([picture(seed=seed) for seed in range(8)])
    files = {
        "a.png": image_file(),
        "b.jpg": image_file("jpeg", width=32, height=160, seed=1),
        "a.wav": sound_file(sound(), 16_000, codec="pcm_s16le"),
        "a.mp3": sound_file(sound(rate=44_100), 44_100, form="mp3", codec="libmp3lame"),
        "a.mp4": video_file(frames, fps=2),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in files}
