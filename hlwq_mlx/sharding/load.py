"""Load one machine's part of a converted folder, reading its share of every tensor alone."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..disk.tensorfile import TensorFile
from ..errors import naming
from ..folder import loading
from ..folder.folder import CONFIG, Folder
from ..folder.identity import require_same
from ..folder.names import check_depths
from ..gemma4.config import Gemma4Config
from ..gemma4.experts import Router
from ..gemma4.model import Model, Resources
from ..gemma4.towers.tower import TOWER_PREFIXES
from ..quant.layers import code_modules
from ..quant.plain import is_kept
from . import reading
from .link import Link
from .parts import Part, grain_of, layers_part, tensors_part
from .shares import Run, Split
from .split import split_modules


class Held(NamedTuple):
    """A part that is loaded, and how many bytes of weights were read for it."""

    model: Model
    read_bytes: int


def load_layers(folder: Folder, layers: Run) -> Held:
    """Load some layers of a model, ready to run.

    Raises: CheckpointError listing all that is missing, damaged or of another shape.
    """
    part = layers_part(folder.args, layers)
    return _load(folder, part, Model(part.args, _resources(folder, part.rows)))


def load_tensors(folder: Folder, link: Link) -> Held:
    """Load a share of every layer, ready to run.

    Raises: as `load_layers`; RequestError for a model that cannot be split so.
    """
    args = folder.args
    part = tensors_part(args, link.size, link.rank)
    split = Split(args.text_config, link.size, link.rank, grain_of(args))
    model = Model(part.args, _resources(folder, part.rows))
    if split.experts is not None:
        _choose_among_all(model, args)
    held = _load(folder, part, model)
    split_modules(held.model, args, split, link)
    return held


def _choose_among_all(model: Model, args: Gemma4Config) -> None:
    """Let routers choose among all experts, of which the part has some."""
    for layer in model.layers:
        layer.router = Router(args.text_config)
    code_modules(model, args.manifest(lambda name: ".router." in name))


def _load(folder: Folder, part: Part, model: Model) -> Held:
    with naming(folder.path / CONFIG):
        check_depths(folder.args, folder.weight_map)
    if not part.has_embedding:
        del model.model.language_model.embed_tokens
    weights, read_bytes = _read(folder, part, model.is_dead)
    loading.check_weights(model, weights, folder)
    model.load_weights(list(weights.items()), strict=True)
    model.eval()
    loading.prepare(model)
    return Held(model, read_bytes)


def _read(
    folder: Folder, part: Part, is_dead: Callable[[str], bool]
) -> tuple[dict[str, mx.array], int]:
    """Read the shares of all tensors of a part, and count their bytes on disk."""
    bits = {
        name.removesuffix(".weight"): int(entry["bits"])
        for name, entry in folder.manifest["tensors"].items()
    }
    weights: dict[str, mx.array] = {}
    read_bytes = 0
    for path in folder.shards:
        file = TensorFile(path)
        require_same(file, folder.manifest)
        for name in file.specs:
            place = None if name.startswith(TOWER_PREFIXES) else part.place(name)
            if place is None or is_dead(place.name):
                continue
            array = reading.read(file, name, place.share, bits.get(name.rpartition(".")[0]))
            read_bytes += array.nbytes
            weights |= loading.cast({place.name: array}, stays=is_kept)
    return weights, read_bytes


def _resources(folder: Folder, columns: Run) -> Resources:
    """Open what a part reads while it runs: its columns of the rows, and towers when needed."""
    whole = loading.resources(folder)

    def rows(ids: np.ndarray) -> mx.array:
        return whole.rows(ids)[..., columns.start : columns.stop]

    return whole._replace(rows=rows) if folder.args.text_config.per_layer_width else whole


def held_bytes(model: Model) -> int:
    """Return the bytes of a part's weights in memory."""
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))
