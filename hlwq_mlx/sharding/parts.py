"""What one machine of a group holds: a smaller Gemma, and where its tensors lie in the whole one.

By layers it is a model of some of the layers; by tensors one of fewer heads, columns and tokens.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ..gemma4.config import Gemma4Config
from ..quant.packing import BLOCK
from .shares import WHOLE, Run, Share, Split

_LAYER = re.compile(r"(\.layers\.)(\d{1,6})(?=\.)")
_PROJECTION = ".per_layer_model_projection."
_EMBEDDING = ".embed_tokens."


class Place(NamedTuple):
    """The name that a tensor of the whole model has in a part, and how much of it is there."""

    name: str
    share: Share


class Part(NamedTuple):
    """A part: the config of its modules, and the place of a tensor, None for one it lacks.

    `rows` are the columns of the per-layer table that it reads, `has_embedding` whether it embeds
    and scores.
    """

    args: Gemma4Config
    place: Callable[[str], Place | None]
    rows: Run
    has_embedding: bool = True


def layers_part(args: Gemma4Config, layers: Run) -> Part:
    """Return the part that holds some layers; the one with the first embeds and scores."""
    text = args.text_config
    width = text.hidden_size_per_layer_input
    shared = max(0, layers.stop - text.first_shared)
    narrow = replace(
        text,
        num_hidden_layers=len(layers),
        layer_types=text.layer_types[layers.start : layers.stop],
        num_kv_shared_layers=shared,
    )
    is_first = layers.start == 0

    def place(name: str) -> Place | None:
        if _EMBEDDING in name:
            return Place(name, WHOLE) if is_first else None
        if _PROJECTION in name:
            return Place(name, Share((layers.times(width),)))
        found = _LAYER.search(name)
        if found is None:
            return Place(name, WHOLE)
        index = int(found[2])
        if not layers.start <= index < layers.stop:
            return None
        return Place(_LAYER.sub(rf"\g<1>{index - layers.start}", name, count=1), WHOLE)

    return Part(_with(args, narrow, place), place, layers.times(width), is_first)


def tensors_part(args: Gemma4Config, size: int, rank: int) -> Part:
    """Return the part that holds a share of every layer.

    Raises: RequestError for a model that cannot be split so.
    """
    split = Split(args.text_config, size, rank, grain_of(args))

    def place(name: str) -> Place | None:
        return Place(name, split.share(name))

    every = Run(0, args.text_config.per_layer_width)
    return Part(_with(args, split.narrow(), place), place, every)


def grain_of(args: Gemma4Config) -> int:
    """Return in how many columns a model's matrices part: codes in blocks, numbers one by one."""
    return BLOCK if args.manifest(lambda name: True)["tensors"] else 1


def _with(args: Gemma4Config, text: Any, place: Callable[[str], Place | None]) -> Gemma4Config:
    """Return a part's config, whose manifest names what the part holds by its own names."""
    manifest = args.quantization_config
    if manifest is not None:
        manifest = {**manifest, "tensors": _placed(manifest.get("tensors") or {}, place)}
    return replace(args, text_config=text, quantization_config=manifest)


def _placed(tensors: Mapping[str, Any], place: Callable[[str], Place | None]) -> dict[str, Any]:
    found = {name: place(name) for name in tensors}
    return {there.name: tensors[name] for name, there in found.items() if there is not None}
