"""The names of a folder's files and tensors, and the shapes that a config gives them.

A coded weight `x.weight` lies on disk as `x.codes`, `x.norms`, `x.centroids` and, where its blocks
have strong means, `x.means`.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from mlx import nn
from mlx.utils import tree_flatten

from ..errors import CheckpointError
from ..gemma4.config import Gemma4Config
from ..gemma4.drafter import Drafter
from ..gemma4.drafter_config import DrafterConfig
from ..gemma4.model import Model
from ..gemma4.towers.config import AUDIO, AUDIO_SECTION, VISION, VISION_SECTION
from ..gemma4.towers.tower import make_tower, prefixes
from ..quant.packing import BLOCK

INDEX_NAME = "model.safetensors.index.json"
TEXT = "model.language_model."
ROW_TABLE = f"{TEXT}embed_tokens_per_layer.weight"
TIED_HEAD = "lm_head.weight"
EXPERTS = ".experts."
_LAYER = re.compile(r"(model\.(?:.+?\.)?)layers\.(\d{1,6})\.")
Shape = tuple[int, ...]


class CodedNames(NamedTuple):
    """The tensors that a coded weight becomes on disk."""

    codes: str
    norms: str
    centroids: str
    means: str


def coded_names(weight: str) -> CodedNames:
    """Return the names of the tensors that a coded weight `x.weight` becomes."""
    module = weight.removesuffix(".weight")
    return CodedNames(*(f"{module}.{part}" for part in CodedNames._fields))


def check_depths(args: Gemma4Config | DrafterConfig, names: Iterable[str]) -> None:
    """Check that there are tensors of as many layers as the config says, before any is made.

    Raises: CheckpointError naming the first section that says more.
    """
    depths: dict[str, int] = {}
    for found in filter(None, map(_LAYER.match, names)):
        depths[found[1]] = max(depths.get(found[1], 0), int(found[2]) + 1)
    for part, (section, depth) in _stated_depths(args).items():
        held = depths.get(part, 0)
        if 0 < held < depth:
            raise CheckpointError(
                f"[{section}.num_hidden_layers] needed tensors of {depth} layers by config.json, "
                f"got {held}. The files do not belong together, or some are missing."
            )


def _stated_depths(args: Gemma4Config | DrafterConfig) -> dict[str, tuple[str, int]]:
    """Return the section that states a depth, and the depth, by how its tensors' names begin."""
    text = "text_config", args.text_config.num_hidden_layers
    if isinstance(args, DrafterConfig):
        return {"model.": text}
    stated = {TEXT: text}
    if args.vision_config is not None:
        tower = f"{prefixes(VISION)[0]}encoder."
        stated[tower] = VISION_SECTION, args.vision_config.num_hidden_layers
    if args.audio_config is not None:
        stated[prefixes(AUDIO)[0]] = AUDIO_SECTION, args.audio_config.num_hidden_layers
    return stated


def shapes_of(model: nn.Module) -> dict[str, Shape]:
    return {name: tuple(array.shape) for name, array in tree_flatten(model.parameters())}


def text_shapes(model: Model) -> dict[str, Shape]:
    """Return the shape of every tensor of the text model, the row table's too."""
    return shapes_of(model) | row_table_shape(model.args)


def drafter_shapes(args: DrafterConfig) -> dict[str, Shape]:
    """List the tensors of an uncoded drafter, with their shapes."""
    return shapes_of(Drafter(replace(args, quantization_config=None)))


def row_width(args: Gemma4Config | DrafterConfig) -> int:
    """Return how many columns the per-layer-embedding table has, 0 for a model without one."""
    return args.text_config.num_hidden_layers * args.text_config.hidden_size_per_layer_input


def tower_shapes(args: Gemma4Config, kind: str) -> dict[str, Shape]:
    """List the tensors of one tower and its embedder, with their shapes."""
    return shapes_of(make_tower(args, kind))


def row_table_shape(args: Gemma4Config) -> dict[str, Shape]:
    text, width = args.text_config, row_width(args)
    return {ROW_TABLE: (text.vocab_size_per_layer_input, width)} if width else {}


def coded_shapes(shape: Shape) -> tuple[Shape, Shape]:
    """Return the shapes that a coded weight may state: its own and that padded to whole blocks.

    A stack of matrices is coded as one, each below the other.
    """
    if len(shape) < 2:
        return shape, shape
    rows, columns = math.prod(shape[:-1]), shape[-1]
    return (rows, columns), (rows, -(-columns // BLOCK) * BLOCK)
