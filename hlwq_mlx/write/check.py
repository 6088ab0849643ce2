"""Check a source against its config before a byte is written: names, shapes, unread tensors."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import SourceError, naming, raise_all
from ..folder.manifest import MODEL_TYPE
from ..folder.names import (
    TEXT,
    TIED_HEAD,
    Shape,
    check_depths,
    coded_shapes,
    drafter_shapes,
    text_shapes,
    tower_shapes,
)
from ..gemma4.config import FLAT, FLAT_IGNORED, MULTIMODAL, Gemma4Config
from ..gemma4.drafter_config import DRAFTERS, DrafterConfig, is_drafter, require_fit
from ..gemma4.experts import canonical
from ..gemma4.model import Model
from ..gemma4.towers.tower import TOWER_PREFIXES, prefixes
from ..gemma4.unified import EMBEDDERS, as_gemma4, is_unserved
from ..gemma4.unified import MODEL_TYPE as UNIFIED
from ..source.coded import CodedTensor
from ..source.repository import PlainTensor, Source

Tensors = dict[str, CodedTensor | PlainTensor]


def normalize_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a source's config.json into ours: nested text_config, our model type.

    Raises: SourceError when it is not the config of a Gemma 4 model or of its drafter.
    """
    config = as_gemma4(config)
    kind = config.get("model_type")
    if kind == FLAT:
        text = {key: value for key, value in config.items() if key not in FLAT_IGNORED}
        stop_ids = {key: config[key] for key in ("eos_token_id",) if key in config}
        return stop_ids | {"model_type": MODEL_TYPE, "text_config": text}
    if kind not in (*MULTIMODAL, *DRAFTERS):
        raise SourceError(
            f"[config.json] needed model_type gemma4, {UNIFIED} or gemma4_text, got {kind!r}. "
            "Only Gemma 4 can be converted."
        )
    kept = {key: value for key, value in config.items() if key not in FLAT_IGNORED}
    return kept | {"model_type": DRAFTERS[1] if is_drafter(config) else MODEL_TYPE}


def read_args(config: Mapping[str, Any]) -> Gemma4Config | DrafterConfig:
    """Read the config of a model or of a drafter.

    Raises: ConfigError naming the key that is missing, unknown or not implemented.
    """
    return (DrafterConfig if is_drafter(config) else Gemma4Config).from_dict(config)


def fit(source: Source) -> tuple[dict[str, Any], Tensors, set[str]]:
    """Return a source's config as ours, its tensors, and the names of those that no layer reads.

    Raises: as `normalize_config`, `canonical_tensors` and `unread_names`; a fault of the config is
    named with its file.
    """
    stated = source.config
    with naming(source.config_path):
        config = normalize_config(stated)
        read_args(config)
    tensors = canonical_tensors(source)
    with naming(source.config_path):
        return config, tensors, unread_names(config, tensors)


def check_drafter(source: Source) -> Source | None:
    """Return the drafter beside a source, checked as `fit` does and against the model's config.

    Raises: as `fit`; CheckpointError for the drafter of another model.
    """
    drafter = source.drafter
    if drafter is None:
        return None
    config, _, _ = fit(drafter)
    with naming(drafter.config_path):
        target = Gemma4Config.from_dict(normalize_config(source.config))
        require_fit(DrafterConfig.from_dict(config), target.text_config)
    return drafter


def canonical_name(name: str) -> str:
    """Return a model's tensor name as the multimodal checkpoint has it, of experts as ours."""
    name = canonical(name)
    if name.startswith("model.") and not name.startswith((TEXT, *TOWER_PREFIXES, *EMBEDDERS)):
        return TEXT + name.removeprefix("model.")
    return name


def canonical_tensors(source: Source) -> Tensors:
    """Return every tensor of a source under its canonical name.

    Raises: CheckpointError listing the tensors that would share one.
    """
    found: Tensors = {**source.coded, **source.plain}
    tensors: Tensors = {}
    problems: list[str] = []
    is_model = not is_drafter(source.config)
    for spelled in sorted(found):
        name = canonical_name(spelled) if is_model else spelled
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

    Those are the key and value weights of KV-shared layers, which released files carry, a copy of
    the tied head, and the embedders of a model without towers. A source may leave out a tower
    whole; tensors of a tower that its config does not have are taken as they are.

    Raises: ConfigError for a config that is incomplete; CheckpointError listing every tensor that
    is missing, unknown or of another shape.
    """
    args = read_args(config)
    check_depths(args, tensors)
    if isinstance(args, DrafterConfig):
        head = tensors.keys() & {TIED_HEAD}
        read_ones = {name: tensors[name] for name in sorted(tensors.keys() - head)}
        raise_all(_misfits(drafter_shapes(args), read_ones))
        return set(head)
    model = Model(args)
    unread = {
        name
        for name in tensors
        if name == TIED_HEAD or model.is_dead(name) or is_unserved(config, name)
    }
    read = {name for name in tensors.keys() - unread if not name.startswith(TOWER_PREFIXES)}
    expected = text_shapes(model)
    for kind in model.args.towers:
        own = {name for name in tensors if name.startswith(prefixes(kind))}
        if own:
            read |= own
            expected |= tower_shapes(model.args, kind)
    raise_all(_misfits(expected, {name: tensors[name] for name in sorted(read)}))
    return unread


def _misfits(
    expected: Mapping[str, Shape], tensors: Mapping[str, CodedTensor | PlainTensor]
) -> Iterator[str]:
    for name in sorted(expected.keys() - tensors.keys()):
        yield f"[{name}] needed in the source, got no such tensor. Download the variant again."
    for name, tensor in tensors.items():
        if name not in expected:
            yield f"[{name}] needed no such tensor, got one. Check config.json."
            continue
        wanted = expected[name]
        fitting = coded_shapes(wanted) if isinstance(tensor, CodedTensor) else (wanted,)
        if tensor.shape not in fitting:
            yield (
                f"[{name}] needed shape {fitting[0]} by config.json, got {tensor.shape}. "
                "The files do not belong together."
            )
