"""Find the folder and the variant that a user's name for a model means.

A name is a hub id, `id/PQ5`, or a folder: a repository's root or one of its PQ folders. What is not
on this machine is downloaded by `hub`. Nothing here opens the weights: that is `repository`.
"""

import os
from pathlib import Path

from ..disk.failures import is_there
from ..errors import SourceError
from .layout import CODED_FILE, PLAIN, list_variants, read_settings, root_weights, variant_name


def local_path(model: str) -> Path:
    """Return a model's name as a path, `~` expanded where there is such a user.

    Raises: SourceError for an empty name, which is no path to the folder that one is in.
    """
    if not model:
        raise SourceError(
            "[model] needed the name of a model or a drafter, got an empty one. Name a folder or a "
            "repository of the hub, or leave the option out."
        )
    return Path(os.path.expanduser(model))


def find(model: str, variant: str | None) -> tuple[Path, str | None]:
    """Find the folder and the variant of a model, on this machine or on the hub.

    Returns the folder that holds the weights, and the variant's name if it has one.
    Raises: SourceError when the model or the variant does not exist or several could be meant.
    """
    local = find_local(model, variant)
    if local is not None:
        return local
    from . import hub  # it imports a client of the web, which a folder does not need

    root, variant = hub.download(model, variant)
    return (root / variant if variant else root), variant


def find_local(model: str, variant: str | None) -> tuple[Path, str | None] | None:
    """Find a model as `find` does, on this machine alone; None when it is not here.

    Raises: SourceError when the folder lacks the variant or several could be meant.
    """
    path = local_path(model)
    if not path.is_dir() and list_variants(path.parent):  # a root and a variant it may lack
        if variant and variant.lower() != path.name.lower():
            raise SourceError(
                f"[{model}] needed one variant, got {path.name} in the name and --variant "
                f"{variant}. Name it once."
            )
        return _choose_local(path.parent, path.name)
    if not path.is_dir():
        return None
    if is_there(path / CODED_FILE):
        named = variant_name(path.name)
        if variant and named and variant.lower() != named.lower():
            raise SourceError(
                f"[{model}] needed variant {variant}, got the folder of {named}. "
                "Name the repository root, or leave --variant out."
            )
        return path, named
    return _choose_local(path, variant)


def _choose_local(root: Path, variant: str | None) -> tuple[Path, str | None]:
    read_settings(root)  # weights of another kind are refused by name
    variants = list_variants(root)
    has_own_weights = bool(root_weights(root))
    choices = [*variants, *([PLAIN] if has_own_weights else [])]
    if variant is None and len(choices) == 1:
        variant = choices[0]
    if variant is None and variants:
        raise SourceError(
            f"[{root}] needed one variant, got {', '.join(choices)}. Choose with --variant."
        )
    by_name = {name.lower(): name for name in choices}
    if variant is None or variant.lower() not in by_name:
        there = ", ".join(choices) or "no weights at all"
        raise SourceError(
            f"[{root}] needed {variant or 'a model'}, got {there}. "
            "Name a folder with codes.safetensors or model*.safetensors in it or in a PQ folder."
        )
    name = by_name[variant.lower()]
    return (root, None) if name == PLAIN else (root / name, name)
