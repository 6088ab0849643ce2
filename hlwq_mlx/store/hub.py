"""Models on the hub: one variant's files and nothing else, resumed where a download broke off.

huggingface_hub does the work; this file knows only the shape of an HLWQ repository. A model is
named `owner/name` or `owner/name/PQ5`; repositories were renamed from PolarQuant to HLWQ, and
either name finds them.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the name of every version

from ..errors import SourceError

ROOT_FILES = ("*.json", "*.jinja", "tokenizer.model")
ROOT_WEIGHTS = (
    "polar_state_chunk*.safetensors",
    "bf16_kept.safetensors",
    "model*.safetensors",
)
_RENAMED = (("HLWQ", "PolarQuant"), ("PolarQuant", "HLWQ"))


def split_model(model: str, variant: str | None) -> tuple[str, str | None]:
    """Split `owner/name[/PQ5]` into repository and variant.

    Raises: SourceError when it is neither that nor a folder, or names two variants.
    """
    pieces = model.strip("/").split("/")
    if len(pieces) not in (2, 3) or not all(pieces) or model.startswith((".", "/", "~")):
        raise SourceError(
            f"[{model}] needed a folder that exists, or a hub id like owner/name or "
            "owner/name/PQ5, got neither. Check the spelling."
        )
    named = pieces[2] if len(pieces) == 3 else None
    if named and variant and named.lower() != variant.lower():
        raise SourceError(
            f"[{model}] needed one variant, got {named} in the name and --variant {variant}. "
            "Name it once."
        )
    return "/".join(pieces[:2]), variant or named


def find_repository(repository: str) -> tuple[str, list[str]]:
    """Return the name a repository goes by now, and its files."""
    other_names = [
        repository.replace(old, new) for old, new in _RENAMED if old in repository.split("/")[1]
    ]
    for name in (repository, *other_names):
        try:
            return name, HfApi().list_repo_files(name)
        except RepositoryNotFoundError:
            continue
    raise SourceError(
        f"[{repository}] needed a repository on the hub, got none of that name. "
        "Check the spelling, or log in if it is private."
    )


def choose_variant(repository: str, files: list[str], variant: str | None) -> str | None:
    """Match the variant asked for with those of a repository; None for one without variants."""
    variants = sorted({name.split("/")[0] for name in files if name.endswith("/codes.safetensors")})
    if variant is None:
        if len(variants) > 1:
            raise SourceError(
                f"[{repository}] needed one variant, got {', '.join(variants)}. "
                "Choose with --variant."
            )
        return variants[0] if variants else None
    by_name = {name.lower(): name for name in variants}
    if variant.lower() not in by_name:
        there = ", ".join(variants) or "no variant at all"
        raise SourceError(
            f"[{repository}] needed variant {variant}, got {there}. Choose one of these."
        )
    return by_name[variant.lower()]


def wanted_files(files: Iterable[str], variant: str | None) -> list[str]:
    """Pick a variant's weights, or those at the root, and the root's config and tokenizer."""
    at_root = ROOT_FILES if variant else (*ROOT_FILES, *ROOT_WEIGHTS)
    return [
        name
        for name in files
        if (variant and fnmatchcase(name, f"{variant}/*.safetensors"))
        or ("/" not in name and any(fnmatchcase(name, pattern) for pattern in at_root))
    ]


def download(model: str, variant: str | None) -> tuple[Path, str | None]:
    """Bring one variant of a model to this machine and return its root and the variant's name.

    Raises: SourceError when the hub cannot be reached or lacks the model or the variant.
    """
    repository, variant = split_model(model, variant)
    try:
        repository, files = find_repository(repository)
        variant = choose_variant(repository, files, variant)
        root = snapshot_download(repository, allow_patterns=wanted_files(files, variant))
    except SourceError:
        raise
    except (httpx.HTTPError, HFValidationError, OSError) as problem:
        raise SourceError(
            f"[{repository}] needed the hub, got {type(problem).__name__}: {problem}. Check the "
            "network and disk and run the same command again: it goes on where it stopped."
        ) from problem
    return Path(root), variant
