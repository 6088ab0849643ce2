"""Folders that are converted in passing, when a command or a program names a source.

Not here: conversion, and loading of what it made.
"""

import hashlib
import logging
import os
from pathlib import Path

from ..errors import SourceError
from ..folder.manifest import FORMAT, is_ours, require_variant
from ..source import repository as source
from . import convert, leftovers

DEMO = Path(__file__).parents[1] / "demo"
DEMO_VARIANT = "PQ5"
CACHE_VARIABLE = "HLWQ_CACHE"

logger = logging.getLogger("hlwq_mlx")


def cache_folder() -> Path:
    """Return where converted models are kept: $HLWQ_CACHE, or ~/.cache/hlwq_mlx."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "hlwq_mlx"


def converted_folder(model: str, variant: str | None = None) -> Path:
    """Return the converted folder of a model, converting it now if that was never done.

    What the publisher left in 16 bits is coded as leftovers.AUTO says; `convert` offers the others.

    Raises: SourceError, CheckpointError, DeviceError as `find` and `convert` do.
    """
    given = source.local_path(model)
    if is_ours(given):
        require_variant(given, variant)
        return given
    folder, variant = source.find(model, variant)
    opened = source.Source(folder, variant)
    target = cache_folder() / _cache_name(model, opened)
    if not target.is_dir():
        logger.info("converting %s %s once into %s", model, variant or "", target)
        _convert(opened, target)
    else:
        logger.info("using %s, converted before", target)
    return target


def _convert(opened: source.Source, target: Path) -> None:
    """Convert into the cache, or take what another process made of the same model meanwhile."""
    try:
        for line in convert.convert(opened, target, leftovers.AUTO).lines():
            logger.info("%s", line)
    except SourceError:
        if not target.is_dir():
            raise
        logger.info("using %s, converted by another process meanwhile", target)


def _cache_name(model: str, opened: source.Source) -> str:
    """Name a converted folder after the model, the state of its files and how it is converted."""
    files = [*opened.weight_files, *opened.root_files]
    state = [
        (path.resolve().as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files
    ]
    digest = hashlib.sha256(repr((FORMAT, leftovers.AUTO, state)).encode()).hexdigest()[:12]
    name = "--".join(part for part in Path(model).parts[-2:] if part not in ("/", "..", "."))
    return "--".join(filter(None, (name, opened.variant, digest)))
