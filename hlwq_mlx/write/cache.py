"""Folders that are converted in passing, when a command or a program names a source.

Not here: conversion, and loading of what it made.
"""

import hashlib
import logging
from pathlib import Path
from typing import TypeVar

from ..disk.cache import cache_folder
from ..disk.jsonfile import read_json
from ..errors import SourceError
from ..folder.folder import CONFIG, Converted, DrafterFolder, Folder
from ..folder.manifest import FORMAT
from ..gemma4.drafter_config import is_drafter
from ..source.locate import find, local_path
from ..source.repository import Source
from . import convert, leftovers

DEMO = Path(__file__).parents[1] / "demo"
DEMO_VARIANT = "PQ5"

C = TypeVar("C", bound=Converted)

logger = logging.getLogger("hlwq_mlx")


def converted_folder(model: str, variant: str | None = None) -> Path:
    """Return where the converted folder of a model is, as `open_folder` finds or makes it."""
    return open_folder(model, variant).path


def open_folder(model: str, variant: str | None = None) -> Folder:
    """Open the converted folder of a model; convert it first if that was never done.

    Tensors that the publisher left in 16 bits are coded by leftovers.AUTO; the command `convert`
    offers other choices.

    Raises: SourceError, CheckpointError, DeviceError as `find` and `convert` do.
    """
    return _open(Folder, model, variant)


def open_drafter(model: str) -> DrafterFolder:
    """Open the converted folder of a drafter; convert it first if that was never done.

    Raises: as `open_folder`.
    """
    return _open(DrafterFolder, model, None)


def _open(kind: type[C], model: str, variant: str | None) -> C:
    path = local_path(model)
    given = kind.find(path)
    if given is not None:
        given.require_variant(variant)
        return given
    if Folder.find(path) or DrafterFolder.find(path):  # the other kind
        raise _other_kind(kind, model)
    stated = path / CONFIG
    if stated.is_file() and is_drafter(read_json(stated)) != (kind is DrafterFolder):
        raise _other_kind(kind, model)  # before it is asked which of its variants
    folder, variant = find(model, variant)
    opened = Source(folder, variant)
    if is_drafter(opened.config) != (kind is DrafterFolder):
        raise _other_kind(kind, model)
    target = cache_folder() / _cache_name(model, opened)
    if not target.is_dir():
        logger.info("converting %s %s once into %s", model, variant or "", target)
        _convert(opened, target)
    else:
        logger.info("using %s, converted before", target)
    return kind.open(target)


def _other_kind(kind: type[Converted], model: str) -> SourceError:
    if kind is DrafterFolder:
        return SourceError(
            f"[--draft-model] needed a drafter, got {model}, a whole model. Name the one that was "
            "made for your model, whose config.json says gemma4_assistant."
        )
    return SourceError(
        f"[--model] needed a model, got {model}, which only drafts for one. Name it with "
        "--draft-model, beside its model."
    )


def _convert(opened: Source, target: Path) -> None:
    """Convert into the cache, unless another process finishes the same conversion meanwhile."""
    try:
        for line in convert.convert(opened, target, leftovers.AUTO).lines():
            logger.info("%s", line)
    except SourceError:
        if not target.is_dir():
            raise
        logger.info("using %s, converted by another process meanwhile", target)


def _cache_name(model: str, opened: Source) -> str:
    """Return a folder name made of the model, the state of its files and the way of converting."""
    sources = [opened, *([opened.drafter] if opened.drafter else [])]
    files = [path for each in sources for path in (*each.weight_files, *each.root_files)]
    state = [
        (path.resolve().as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files
    ]
    digest = hashlib.sha256(repr((FORMAT, leftovers.AUTO, state)).encode()).hexdigest()[:12]
    name = "--".join(part for part in Path(model).parts[-2:] if part not in ("/", "..", "."))
    return "--".join(filter(None, (name, opened.variant, digest)))
