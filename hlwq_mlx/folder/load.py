"""Our folder: the names in it, the manifest in its config, and the model it loads into.

Strict both ways. A conversion is checked against the config before a byte is written, and a load
fails with the full list of what is missing, extra or of another shape. A coded weight `x.weight`
lies on disk as `x.codes`, `x.norms` and `x.centroids`; the manifest in config.json names its width
and table.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from tqdm import tqdm

from ..disk.jsonfile import read_json
from ..disk.tensorfile import TensorFile
from ..errors import CheckpointError, SourceError
from ..gemma4.config import FLAT, FLAT_IGNORED, MULTIMODAL, Gemma4Config
from ..gemma4.model import Model, Resources
from ..gemma4.towers.config import AUDIO, AUDIO_SECTION, VISION, VISION_SECTION
from ..gemma4.towers.tower import TOWER_PREFIXES, Tower, make_tower, no_tower, prefixes
from ..quant import device, fuse
from ..quant.layers import CodedLayer
from ..quant.packing import BLOCK
from ..source.coded import SHOWN, CodedTensor, raise_all
from ..source.detect import Reading
from ..source.hub import PLAIN
from ..source.repository import PlainTensor, Source, weight_map
from ..write.leftovers import Leftover
from .identity import require_same
from .rows import FILE_NAME as ROW_STORE
from .rows import RowStore

MODEL_TYPE = MULTIMODAL[1]
METHOD = "hlwq"
FORMAT = 1
_SIGNATURE = {"quant_method": METHOD, "format": FORMAT}
INDEX_NAME = "model.safetensors.index.json"
TEXT = "model.language_model."
ROW_TABLE = f"{TEXT}embed_tokens_per_layer.weight"
TIED_HEAD = "lm_head.weight"
TEMPLATES_KEY = "templates"  # of the manifest: digests of the chat templates that were tried
MOST_BITS = 8
_PATIENCE_S = 1.0
_LAYER = re.compile(r"(model\..+?\.)layers\.(\d{1,6})\.")

Shape = tuple[int, ...]
Tensors = dict[str, CodedTensor | PlainTensor]


class CodedNames(NamedTuple):
    """The tensors that a coded weight becomes on disk."""

    codes: str
    norms: str
    centroids: str


def coded_names(weight: str) -> CodedNames:
    """Name the tensors of a coded weight `x.weight`."""
    module = weight.removesuffix(".weight")
    return CodedNames(f"{module}.codes", f"{module}.norms", f"{module}.centroids")


def normalize_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a source's config.json into ours: nested text_config, our model type.

    Raises: SourceError when it is not the config of a Gemma 4 model.
    """
    kind = config.get("model_type")
    if kind == FLAT:
        text = {key: value for key, value in config.items() if key not in FLAT_IGNORED}
        stop_ids = {key: config[key] for key in ("eos_token_id",) if key in config}
        return stop_ids | {"model_type": MODEL_TYPE, "text_config": text}
    if kind not in MULTIMODAL:
        raise SourceError(
            f"[config.json] needed model_type gemma4 or gemma4_text, got {kind!r}. "
            "Only Gemma 4 can be converted."
        )
    kept = {key: value for key, value in config.items() if key not in FLAT_IGNORED}
    return kept | {"model_type": MODEL_TYPE}


def canonical_name(name: str) -> str:
    """Spell a source's tensor name as the multimodal checkpoint does."""
    if name.startswith("model.") and not name.startswith((TEXT, *TOWER_PREFIXES)):
        return TEXT + name.removeprefix("model.")
    return name


def canonical_tensors(source: Source) -> Tensors:
    """Return every tensor of a source under its canonical name.

    Raises: CheckpointError listing the tensors that would share one.
    """
    found: Tensors = {**source.coded, **source.plain}
    tensors: Tensors = {}
    problems: list[str] = []
    for spelled in sorted(found):
        name = canonical_name(spelled)
        if name in tensors:
            problems.append(
                f"[{name}] needed one tensor of that meaning, got {tensors[name].name} and "
                f"{spelled}. The files do not belong together."
            )
        tensors[name] = found[spelled]
    raise_all(problems)
    return tensors


def unread_names(
    config: Mapping[str, Any], tensors: Mapping[str, CodedTensor | PlainTensor]
) -> set[str]:
    """Check a source's tensors against its config and return the names that no layer reads.

    Those are the key and value weights of KV-shared layers, which released files carry, and a copy
    of the tied head. A source may leave out a tower whole; tensors of a tower that its config does
    not have are taken as they are.

    Raises: ConfigError for a config that is incomplete; CheckpointError listing every tensor that
    is missing, unknown or of another shape.
    """
    args = Gemma4Config.from_dict(config)
    check_depths(args, tensors)
    model = Model(args)
    unread = {name for name in tensors if name == TIED_HEAD or model.is_dead(name)}
    read = {name for name in tensors.keys() - unread if not name.startswith(TOWER_PREFIXES)}
    expected = text_shapes(model)
    for kind in model.args.towers:
        own = {name for name in tensors if name.startswith(prefixes(kind))}
        if own:
            read |= own
            expected |= tower_shapes(model.args, kind)
    raise_all(_misfits(expected, {name: tensors[name] for name in sorted(read)}))
    return unread


def check_depths(args: Gemma4Config, names: Iterable[str]) -> None:
    """Check that there are tensors of as many layers as the config says, before any is made.

    Raises: CheckpointError naming the first section that says more.
    """
    depths: dict[str, int] = {}
    for found in filter(None, map(_LAYER.match, names)):
        depths[found[1]] = max(depths.get(found[1], 0), int(found[2]) + 1)
    stated = {TEXT: ("text_config", args.text_config.num_hidden_layers)}
    if args.vision_config is not None:
        tower = f"{prefixes(VISION)[0]}encoder."
        stated[tower] = VISION_SECTION, args.vision_config.num_hidden_layers
    if args.audio_config is not None:
        stated[prefixes(AUDIO)[0]] = AUDIO_SECTION, args.audio_config.num_hidden_layers
    for part, (section, depth) in stated.items():
        held = depths.get(part, 0)
        if 0 < held < depth:
            raise CheckpointError(
                f"[{section}.num_hidden_layers] needed tensors of {depth} layers by config.json, "
                f"got {held}. The files do not belong together, or some are missing."
            )


def _misfits(
    expected: Mapping[str, Shape], tensors: Mapping[str, CodedTensor | PlainTensor]
) -> Iterator[str]:
    for name in sorted(expected.keys() - tensors.keys()):
        yield f"[{name}] needed in the source, got no such tensor. Download the variant again."
    for name, tensor in tensors.items():
        if name not in expected:
            yield f"[{name}] needed no such tensor, got one. Check config.json."
            continue
        shape, is_coded = tensor.shape, isinstance(tensor, CodedTensor)
        if shape != expected[name] and not (is_coded and shape == _padded(expected[name])):
            yield (
                f"[{name}] needed shape {expected[name]} by config.json, got {shape}. "
                "The files do not belong together."
            )


def _shapes(model: nn.Module) -> dict[str, Shape]:
    return {name: tuple(array.shape) for name, array in tree_flatten(model.parameters())}


def text_shapes(model: Model) -> dict[str, Shape]:
    """Return the shape of every tensor of the text model, the row table's too."""
    return _shapes(model) | _row_table_shape(model.args)


def row_width(args: Gemma4Config) -> int:
    """Return how many columns the per-layer-embedding table has, 0 for a model without one."""
    return args.text_config.num_hidden_layers * args.text_config.hidden_size_per_layer_input


def tower_shapes(args: Gemma4Config, kind: str) -> dict[str, Shape]:
    """List the tensors of one tower and its embedder, with their shapes."""
    return _shapes(make_tower(args, kind))


def _row_table_shape(args: Gemma4Config) -> dict[str, Shape]:
    text, width = args.text_config, row_width(args)
    return {ROW_TABLE: (text.vocab_size_per_layer_input, width)} if width else {}


def _padded(shape: Shape) -> Shape:
    """The shape a coded matrix has whose source does not tell how far it is padded."""
    return (*shape[:-1], -(-shape[-1] // BLOCK) * BLOCK) if len(shape) == 2 else shape


def make_manifest(
    variant: str | None, coded: Mapping[str, tuple[CodedTensor | Leftover, Reading]]
) -> dict[str, Any]:
    """Describe the coded tensors of a folder, tables included."""
    tables: dict[str, list[float]] = {}
    tensors: dict[str, dict[str, Any]] = {}
    for name, (tensor, reading) in sorted(coded.items()):
        table = reading.table
        values = [float(value) for value in reading.centroids]
        number = 2
        while tables.setdefault(f"{table}/{tensor.bits}", values) != values:
            table = f"{reading.table}-{number}"  # files may carry a table of their own per tensor
            number += 1
        tensors[name] = {"bits": tensor.bits, "table": table}
    return {
        **_SIGNATURE,
        "block": BLOCK,
        "variant": variant,
        "tensors": tensors,
        "tables": tables,
    }


def is_ours(folder: Path) -> bool:
    """Say whether a folder is one that `convert` wrote."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("model_type") == MODEL_TYPE


def manifest_of(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the manifest in a converted folder's config.json.

    Raises: CheckpointError when there is none, or one of another format or damaged.
    """
    manifest = config.get("quantization_config") or {}
    found = [manifest.get(key) if isinstance(manifest, dict) else None for key in _SIGNATURE]
    if found != [*_SIGNATURE.values()]:
        raise CheckpointError(
            f"[{folder}] needed a folder of format {METHOD} {FORMAT}, got "
            f"{' '.join(map(str, found))}. Convert the model again."
        )
    if (problem := _problem_of(manifest)) is not None:
        raise CheckpointError(
            f"[{folder / 'config.json'}] needed a whole manifest as quantization_config, got "
            f"{problem}. Convert the model again."
        )
    return manifest


def _problem_of(manifest: Mapping[str, Any]) -> str | None:
    """Return what of a manifest is not as `convert` writes it, or None."""
    tensors, tables = manifest.get("tensors"), manifest.get("tables")
    if not isinstance(tensors, dict) or not isinstance(tables, dict):
        return "none with tensors and tables"
    if manifest.get("block") != BLOCK:
        return f"blocks of {_short(manifest.get('block'))}"
    if not isinstance(manifest.get("variant"), str | None):
        return f"{_short(manifest['variant'])} as variant"
    if not _is_list_of(manifest.get(TEMPLATES_KEY, []), str):
        return f"{_short(manifest[TEMPLATES_KEY])} as {TEMPLATES_KEY}"
    for name, table in tables.items():
        if not _is_list_of(table, float):
            return f"{_short(table)} as table {_short(name)}"
    for name, entry in tensors.items():
        stated = entry if isinstance(entry, dict) else {}
        bits, table = stated.get("bits"), stated.get("table")
        if type(bits) is not int or not 1 <= bits <= MOST_BITS or not isinstance(table, str):
            return f"{_short(entry)} for {_short(name)}"
    return None


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def require_variant(folder: Path, variant: str | None) -> None:
    """Refuse a variant that a converted folder is not of; None asks for none.

    Raises: SourceError naming both; CheckpointError as `manifest_of`.
    """
    made_of = manifest_of(folder, read_json(folder / "config.json")).get("variant") or PLAIN
    if variant is not None and variant.lower() != made_of.lower():
        raise SourceError(
            f"[{folder}] needed {variant}, got a folder converted from {made_of}. "
            "Name the repository it came from, or leave --variant out."
        )


def load(folder: Path) -> Model:
    """Load a converted folder, ready to answer.

    Raises: CheckpointError listing all that is missing, damaged, extra or of another shape.
    """
    config = read_json(folder / "config.json")
    manifest_of(folder, config)
    args = Gemma4Config.from_dict(config)
    check_depths(args, weight_map(folder / INDEX_NAME))
    model = Model(args, resources(args, folder))
    _load_weights(
        *(model, folder, model.args),
        lambda name: not (name.startswith(TOWER_PREFIXES) or model.is_dead(name)),
    )
    model.eval()
    prepare(model)
    return model


def load_tower(args: Gemma4Config, folder: Path, kind: str) -> Tower:
    """Load a tower of a converted folder, reading its own tensors alone.

    Raises: RequestError when there is no such tower; CheckpointError listing all that is missing,
    damaged, extra or of another shape.
    """
    tower = make_tower(args, kind)
    mine = prefixes(kind)
    if not any(name.startswith(mine) for name in weight_map(folder / INDEX_NAME)):
        raise no_tower(kind)
    _load_weights(tower, folder, args, lambda name: name.startswith(mine))
    tower.eval()
    prepare(tower)
    return tower


def _load_weights(
    module: nn.Module, folder: Path, args: Gemma4Config, belongs: Callable[[str], bool]
) -> None:
    """Give a part its weights, unread; it alone holds them then, and so may let go of some."""
    weights = cast(_read_shards(folder, args, belongs))
    check_weights(module, weights)
    module.load_weights(list(weights.items()), strict=True)


def prepare(model: nn.Module) -> None:
    """Read all weights and make the product of every coded one, which the first answer would do.

    Where kernels run, layers that share an input become one first, and the model no checkpoint any
    more. Goes layer by layer, so that what is only passed through, as weights before their cast, is
    never there for more than one layer. A bar shows when it takes longer than a moment.
    """
    if device.has_metal():
        for block in tqdm(fuse.blocks(model), desc="fuse", unit=" blocks", delay=_PATIENCE_S):
            fuse.fuse(block)
    layers = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    for _, layer in tqdm(layers, desc="prepare", unit=" layers", delay=_PATIENCE_S):
        mx.eval(layer.parameters())
        if isinstance(layer, CodedLayer):
            layer.prepare()
    mx.eval(model.parameters())


def cast(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Cast what is not coded to the dtype that activations have on this machine."""
    dtype = device.activation_dtype()
    coded_parts = tuple(f".{part}" for part in CodedNames._fields)
    return {
        name: weight if name.endswith(coded_parts) else weight.astype(dtype)
        for name, weight in weights.items()
    }


def resources(args: Gemma4Config, folder: Path) -> Resources:
    """Open what a model reads of its folder while it runs: its row store, and towers when needed.

    Raises: CheckpointError when the store is missing, damaged or of another conversion.
    """
    found = Resources(load_tower=partial(load_tower, args, folder), folder=folder)
    for shape in _row_table_shape(args).values():
        rows = RowStore(folder / ROW_STORE)
        if rows.shape != shape:
            raise CheckpointError(
                f"[{ROW_STORE}] needed {shape} by config.json, got {rows.shape}. "
                "The files do not belong together; convert the model again."
            )
        require_same(TensorFile(folder / ROW_STORE), args.quantization_config or {})
        found = found._replace(rows=rows)
    return found


def require_own_shards(args: Gemma4Config, folder: Path) -> None:
    """Check that every shard is of the conversion that the config is of, for who loads them itself.

    Raises: CheckpointError for one that is not; SourceError for one that is missing.
    """
    for file in sorted(set(weight_map(folder / INDEX_NAME).values())):
        require_same(TensorFile(folder / file), args.quantization_config or {})


def _read_shards(
    folder: Path, args: Gemma4Config, belongs: Callable[[str], bool]
) -> dict[str, mx.array]:
    """Map the tensors whose names belong to a part; shards without one are not touched."""
    index = weight_map(folder / INDEX_NAME)
    files = {name: file for name, file in index.items() if belongs(name)}
    weights: dict[str, mx.array] = {}
    for file in sorted(set(files.values())):
        # A clear error for a damaged file, before MLX maps it.
        require_same(TensorFile(folder / file), args.quantization_config or {})
        shard = mx.load(str(folder / file))
        assert isinstance(shard, dict)
        weights |= {name: weight for name, weight in shard.items() if belongs(name)}
    raise_all(
        f"[{name}] needed in {files[name]}, got no such tensor. Convert again."
        for name in sorted(files.keys() - weights.keys())
    )
    return weights


def check_weights(module: nn.Module, weights: Mapping[str, mx.array]) -> None:
    """Hold the weights of a part, unread, against its shapes.

    Raises: CheckpointError listing all that is missing, extra or of another shape.
    """
    expected = _shapes(module)
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
    raise_all(problems)
