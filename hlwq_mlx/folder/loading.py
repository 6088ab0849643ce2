"""Load a folder: the model with its weights, its row store, and its towers when needed.

Strict: a load fails with the full list of what is missing, extra, damaged or of another shape.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from tqdm import tqdm

from ..disk.tensorfile import TensorFile, TensorSpec
from ..engine import draft as engine_draft
from ..engine import drafters
from ..engine.mtp import ModelDrafter
from ..errors import CheckpointError, naming, raise_all
from ..gemma4.drafter import Drafter
from ..gemma4.drafter_config import require_fit
from ..gemma4.model import Model, Resources
from ..gemma4.towers.tower import TOWER_PREFIXES, Tower, make_tower, no_tower, prefixes
from ..quant import device, fuse
from ..quant.backends.native.library import native_library
from ..quant.layers import CodedLayer
from ..quant.plain import is_kept, keep_plain
from .folder import CONFIG, Converted, DrafterFolder, Folder
from .identity import require_same
from .names import CodedNames, check_depths, row_table_shape, shapes_of
from .rows import FILE_NAME as ROW_STORE
from .rows import RowStore

_PATIENCE_S = 1.0


def load(path: Path) -> Model:
    """Load the converted folder at a path, ready to answer.

    Raises: as `Folder.open` and `load_folder`.
    """
    return load_folder(Folder.open(path))


def load_folder(folder: Folder) -> Model:
    """Load a converted folder, ready to answer.

    Raises: CheckpointError listing all that is missing, damaged, extra or of another shape.
    """
    model = map_folder(folder)
    prepare(model)
    return model


def map_folder(folder: Folder) -> Model:
    """Return a converted folder's model, whose weights are read when they are first used.

    Raises: as `load_folder`.
    """
    _ = folder.manifest  # a folder of another format is refused as that, not by its config
    _check_depths(folder)
    model = Model(folder.args, resources(folder))
    _load_weights(
        *(model, folder),
        lambda name: not (name.startswith(TOWER_PREFIXES) or model.is_dead(name)),
    )
    model.eval()
    return model


def require_loadable(folder: Folder) -> None:
    """Check from headers alone that a folder's model, rows, towers and drafter can be loaded.

    Raises: as `load_folder`, `load_tower` and `require_drafter`.
    """
    _ = folder.manifest
    _check_depths(folder)
    require_own_shards(folder)
    model = Model(folder.args, resources(folder))
    text = {
        name: spec
        for name, spec in folder.specs.items()
        if not (name.startswith(TOWER_PREFIXES) or model.is_dead(name))
    }
    check_weights(model, text, folder)
    for kind in folder.args.towers:
        mine = prefixes(kind)
        specs = {name: spec for name, spec in folder.specs.items() if name.startswith(mine)}
        if specs:
            check_weights(make_tower(folder.args, kind), specs, folder)
    if folder.drafter is not None:
        require_drafter(folder.drafter, folder)


def find_drafter(model: Model, folder: Folder, draft: str | None) -> engine_draft.Drafter | None:
    """Return what drafts for a model: the drafter of its folder, or what has this name.

    Raises: as `load_drafter`; RequestError when nothing has the name.
    """
    if folder.drafter is None:
        return drafters.find_drafter(draft)
    return ModelDrafter(model, load_drafter(folder.drafter))


def load_drafter(folder: DrafterFolder) -> Drafter:
    """Load a drafter's folder, ready to draft.

    Raises: CheckpointError listing all that is missing, damaged, extra or of another shape.
    """
    _ = folder.manifest
    _check_depths(folder)
    drafter = Drafter(folder.args)
    _load_weights(drafter, folder, lambda name: True)
    with naming(folder.path):
        drafter.check_order()
    drafter.eval()
    prepare(drafter)
    return drafter


def require_drafter(folder: DrafterFolder, model: Folder) -> None:
    """Check from headers alone that a drafter can be loaded and fits a model.

    Raises: as `load_drafter` and `require_fit`.
    """
    require_fit(folder.args, model.args.text_config)
    _ = folder.manifest
    _check_depths(folder)
    require_own_shards(folder)
    check_weights(Drafter(folder.args), folder.specs, folder)


def load_tower(folder: Folder, kind: str) -> Tower:
    """Load a tower of a converted folder, reading its own tensors alone.

    Raises: RequestError when there is no such tower; CheckpointError listing all that is missing,
    damaged, extra or of another shape.
    """
    tower = make_tower(folder.args, kind)
    mine = prefixes(kind)
    if not any(name.startswith(mine) for name in folder.weight_map):
        raise no_tower(kind)
    _load_weights(tower, folder, lambda name: name.startswith(mine))
    tower.eval()
    prepare(tower)
    return tower


def _load_weights(module: nn.Module, folder: Converted, belongs: Callable[[str], bool]) -> None:
    """Load a part's weights without reading them; only the part holds them, so it can drop some."""
    weights = cast(_read_shards(folder, belongs), stays=is_kept)
    check_weights(module, weights, folder)
    module.load_weights(list(weights.items()), strict=True)


def prepare(model: nn.Module) -> None:
    """Read all weights and prepare the product of every coded one, so the first answer need not.

    Where kernels or the native library run, layers that share an input become one first, and the
    model no checkpoint any more. Goes layer by layer, so that what is only passed through, as
    weights before their cast, is freed before the next one.
    """
    total = _bytes_of(model)
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="load", delay=_PATIENCE_S, mininterval=0.5
    ) as bar:
        keep_plain(model)
        if device.has_metal() or native_library():
            for block in fuse.blocks(model):
                bar.update(sum(_bytes_of(layer) for layer in fuse.fuse(block)))
        layers = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
        for _, layer in layers:
            mx.eval(layer.parameters())
            if isinstance(layer, CodedLayer):
                layer.prepare()
            if not isinstance(layer, fuse.JOINED):  # those were read when they were joined
                bar.update(_bytes_of(layer))
        mx.eval(model.parameters())
        bar.update(total - bar.n)  # what is in no layer, and centroids that joined layers share


def _bytes_of(module: nn.Module) -> int:
    return sum(array.nbytes for _, array in tree_flatten(module.parameters()))


def cast(
    weights: Mapping[str, mx.array], stays: Callable[[str, mx.array], bool] = lambda *_: False
) -> dict[str, mx.array]:
    """Cast what is not coded to the dtype of activations on this machine, but for what `stays`."""
    dtype = device.activation_dtype()
    coded_parts = tuple(f".{part}" for part in CodedNames._fields)
    return {
        name: weight
        if name.endswith(coded_parts)
        or mx.issubdtype(weight.dtype, mx.integer)
        or stays(name, weight)
        else weight.astype(dtype)
        for name, weight in weights.items()
    }


def resources(folder: Folder) -> Resources:
    """Open what a model reads of its folder while it runs: its row store, and towers when needed.

    Raises: CheckpointError when the store is missing, damaged or of another conversion.
    """
    found = Resources(load_tower=partial(load_tower, folder), folder=folder.path)
    for shape in row_table_shape(folder.args).values():
        rows = RowStore(folder.path / ROW_STORE)
        if rows.shape != shape:
            raise CheckpointError(
                f"[{ROW_STORE}] needed {shape} by config.json, got {rows.shape}. "
                "The files do not belong together; convert the model again."
            )
        require_same(TensorFile(folder.path / ROW_STORE), folder.manifest)
        found = found._replace(rows=rows)
    return found


def require_own_shards(folder: Converted) -> None:
    """Check that every shard is of the folder's conversion; mlx-lm loads shards without asking us.

    Raises: CheckpointError for one that is not; SourceError for one that is missing.
    """
    for path in folder.shards:
        require_same(TensorFile(path), folder.manifest)


def _read_shards(folder: Converted, belongs: Callable[[str], bool]) -> dict[str, mx.array]:
    """Map the tensors whose names belong to a part; shards without one are not touched."""
    files = {name: file for name, file in folder.weight_map.items() if belongs(name)}
    weights: dict[str, mx.array] = {}
    for file in sorted(set(files.values())):
        # A clear error for a damaged file, before MLX maps it.
        require_same(TensorFile(folder.path / file), folder.manifest)
        shard = mx.load(str(folder.path / file))
        assert isinstance(shard, dict)
        weights |= {name: weight for name, weight in shard.items() if belongs(name)}
    raise_all(
        f"[{name}] needed in {files[name]}, got no such tensor. Convert again."
        for name in sorted(files.keys() - weights.keys())
    )
    return weights


def _check_depths(folder: Folder | DrafterFolder) -> None:
    args, names = folder.args, folder.weight_map
    with naming(folder.path / CONFIG):
        check_depths(args, names)


def check_weights(
    module: nn.Module, weights: Mapping[str, mx.array | TensorSpec], folder: Converted
) -> None:
    """Check the names and shapes of a part's weights, which are not read yet.

    Raises: CheckpointError listing all that is missing, extra or of another shape.
    """
    expected = shapes_of(module)
    problems = [
        f"[{name}] needed in the folder, got no such tensor. Convert the model again."
        for name in sorted(expected.keys() - weights.keys())
    ]
    for name in sorted(weights):
        shape = tuple(weights[name].shape)
        if name not in expected:
            problems.append(f"[{name}] needed no such tensor, got one of {shape}. Convert again.")
        elif shape != expected[name]:
            problems.append(
                f"[{name}] needed shape {expected[name]}, got {shape}. Convert the model again."
            )
    with naming(folder.path / CONFIG):
        raise_all(problems)
