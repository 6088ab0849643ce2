"""A tower: an optional part of the model, with its own names and a tree that loads by itself.

There are two kinds, `vision` and `audio`. Each is an encoder and an embedder, `<kind>_tower` and
`embed_<kind>` in the checkpoint. Their formulas are in other files, and no file is read here.
"""

import mlx.core as mx
from mlx import nn

from ...errors import RequestError
from ...quant.layers import code_modules
from ..config import Gemma4Config
from .audio import AudioTower
from .config import AUDIO, VISION
from .embedder import Embedder
from .vision import VisionTower


def prefixes(kind: str) -> tuple[str, str]:
    """Return how the names of a tower's tensors begin."""
    return f"model.{kind}_tower.", f"model.embed_{kind}."


TOWER_PREFIXES = (*prefixes(VISION), *prefixes(AUDIO))


class Tower(nn.Module):
    """An encoder and its embedder below a level `model.`, as in the checkpoint's names."""

    def __init__(self, kind: str, encoder: nn.Module, embedder: Embedder) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model[f"{kind}_tower"] = encoder
        self.model[f"embed_{kind}"] = embedder
        self.kind = kind

    def __call__(self, *inputs: mx.array, dtype: mx.Dtype) -> mx.array:
        """Return the features of one medium, in the text model's space and dtype.

        Shapes: the encoder's inputs -> [n, H].
        """
        features = self.model[f"{self.kind}_tower"](*inputs)
        return self.model[f"embed_{self.kind}"](features, dtype)


def make_tower(args: Gemma4Config, kind: str) -> Tower:
    """Build a tower without weights, coded where the config's HLWQ manifest says so.

    Raises: RequestError when the config has no such tower; CheckpointError for a manifest that
    does not fit it.
    """
    H = args.text_config.hidden_size
    if kind == VISION and args.vision_config is not None:
        vision = args.vision_config
        embedder = Embedder(vision.hidden_size, H, vision.rms_norm_eps)
        tower = Tower(kind, VisionTower(vision), embedder)
    elif kind == AUDIO and args.audio_config is not None:
        audio = args.audio_config
        embedder = Embedder(audio.output_proj_dims, H, audio.rms_norm_eps)
        tower = Tower(kind, AudioTower(audio), embedder)
    else:
        raise no_tower(kind)
    code_modules(tower, args.manifest(lambda name: name.startswith(prefixes(kind))))
    return tower


def no_tower(kind: str) -> RequestError:
    """Return the error for a prompt that needs a tower the checkpoint lacks."""
    return RequestError(
        f"[model.{kind}_tower] needed by the prompt, got none: this checkpoint has no {kind} "
        "tower. Leave such parts out of the prompt: 12B's way without towers is not implemented."
    )
