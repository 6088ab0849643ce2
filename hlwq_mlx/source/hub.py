"""Models on the hub: one variant's files and its drafter's, resumed where a download broke off.

huggingface_hub and `resume` do the work; this file knows only the shape of an HLWQ repository and
says in one line what went wrong. A model is named `owner/name` or `owner/name/PQ5`; repositories
were renamed from PolarQuant to HLWQ, and either name finds them.
"""

import errno
import logging
import shutil
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, ModelInfo, constants, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # the names of every version
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    httpx,
)

from ..disk import failures
from ..disk.jsonfile import MOST_BYTES, parse_json
from ..disk.names import is_plain
from ..disk.sizes import format_bytes
from ..disk.tensorfile import TensorSpec, checked_spec
from ..errors import CheckpointError, DeviceError, HLWQError, SourceError
from . import resume
from .layout import DRAFTER, PLAIN, ROOT_FILES, ROOT_WEIGHTS

logger = logging.getLogger("hlwq_mlx")

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


def find_repository(repository: str) -> ModelInfo:
    """Return what the hub says of a repository, under the name it goes by now.

    Raises: SourceError when there is none of that name; httpx.HTTPError; OSError.
    """
    for name in _names(repository):
        try:
            return HfApi().model_info(name, files_metadata=True, timeout=_patience())
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            continue
    raise SourceError(
        f"[{repository}] needed a repository on the hub, got none of that name. "
        "Check the spelling, or log in with `hf auth login` if it is private."
    )


def _patience() -> float:
    """Return how many seconds the hub may be silent; huggingface_hub would wait for ever."""
    return constants.HF_HUB_DOWNLOAD_TIMEOUT


def _names(repository: str) -> list[str]:
    name = repository.split("/")[1]
    others = [repository.replace(old, new) for old, new in _RENAMED if old in name]
    return [repository, *others]


def choose_variant(repository: str, files: list[str], variant: str | None) -> str | None:
    """Return the repository's variant that was asked for; None means the weights at its root."""
    variants = sorted(
        {name.split("/")[0] for name in files if _is_in(name, "*", "codes.safetensors")}
    )
    if variant is None:
        if len(variants) > 1:
            raise SourceError(
                f"[{repository}] needed one variant, got {', '.join(variants)}. "
                "Choose with --variant."
            )
        return variants[0] if variants else None
    choices = [*variants, *([PLAIN] if any(map(_is_root_weight, files)) else [])]
    by_name = {name.lower(): name for name in choices}
    if variant.lower() not in by_name:
        there = ", ".join(choices) or "no variant at all"
        raise SourceError(
            f"[{repository}] needed variant {variant}, got {there}. Choose one of these."
        )
    name = by_name[variant.lower()]
    return None if name == PLAIN else name


def _is_in(name: str, folder: str, file: str) -> bool:
    """Return whether a file lies right below a matching folder of the root.

    Its name becomes a path here, so it may hold nothing that leads elsewhere.
    """
    parts = name.split("/")
    patterns = (folder, file)
    return len(parts) == 2 and all(map(is_plain, parts)) and all(map(fnmatchcase, parts, patterns))


def _is_root_weight(name: str) -> bool:
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in ROOT_WEIGHTS)


def wanted_files(files: Iterable[str], variant: str | None) -> list[str]:
    """Pick a variant's weights, or those at the root, and the root's config and tokenizer."""
    at_root = ROOT_FILES if variant else (*ROOT_FILES, *ROOT_WEIGHTS)
    return [
        name
        for name in files
        if (variant and _is_in(name, variant, "*.safetensors"))
        or ("/" not in name and any(fnmatchcase(name, pattern) for pattern in at_root))
    ]


def drafter_files(files: Collection[str]) -> list[str]:
    """Pick the config and the weights of the drafter beside a model, if there is one."""
    config = f"{DRAFTER}/config.json"
    if config not in files:
        return []
    return [config, *(name for name in files if _is_in(name, DRAFTER, "model*.safetensors"))]


def download(model: str, variant: str | None) -> tuple[Path, str | None]:
    """Bring one variant of a model to this machine and return its root and the variant's name.

    When the hub cannot be asked, a copy that was downloaded before is taken.
    Raises: SourceError when the hub cannot be reached or lacks the model or the variant;
    DeviceError when the disk cannot take it.
    """
    repository, variant = split_model(model, variant)
    try:
        info = find_repository(repository)
    except (SourceError, httpx.HTTPError, HFValidationError, OSError) as problem:
        reason = _explain(repository, problem)
        if cached := _find_cached(repository, variant):
            logger.warning("%s Using the copy downloaded before.", reason)
            return cached
        raise reason from problem
    return _bring(repository, info, variant)


def is_cached(model: str, variant: str | None) -> bool:
    """Return whether a model was downloaded before.

    Raises: SourceError when it is not clear which variant is meant.
    """
    repository, variant = split_model(model, variant)
    return _find_cached(repository, variant) is not None


class Weights(NamedTuple):
    """A file of weights on the hub: its bytes, those that are not here yet, and its header."""

    size: int
    missing: int
    specs: dict[str, TensorSpec]


class Headers(NamedTuple):
    """A variant's config and its files of weights."""

    variant: str | None
    config: dict[str, Any]
    weights: list[Weights]

    @property
    def headers(self) -> list[dict[str, TensorSpec]]:
        """One mapping of tensors' headers for each file of weights."""
        return [file.specs for file in self.weights]


def read_headers(model: str, variant: str | None) -> Headers:
    """Read a variant's config and the headers of its files of weights, by range requests.

    Raises: SourceError when the hub cannot be reached or lacks the model or the variant;
    CheckpointError for a file without a header, or with a tensor of unknown dtype.
    """
    repository, variant = split_model(model, variant)
    try:
        info = find_repository(repository)
        files = {file.rfilename: file for file in info.siblings or ()}
        variant = choose_variant(repository, list(files), variant)
        wanted = _require_model(repository, wanted_files(files, variant))
        _require_small(info, "config.json")
        url = hf_hub_url(info.id, "config.json", revision=info.sha)
        answer = get_session().get(
            url, headers=build_hf_headers(), follow_redirects=True, timeout=_patience()
        )
        hf_raise_for_status(answer)
        weights = [
            Weights(files[name].size or 0, _missing(info.id, files[name]), _header(info, name))
            for name in wanted
            if fnmatchcase(name, "*.safetensors")
        ]
        config = parse_json(answer.content, "config.json", info.id)
        return Headers(variant, config, weights)
    except (httpx.HTTPError, HFValidationError, OSError) as problem:
        raise _explain(repository, problem) from problem


def _require_small(info: ModelInfo, name: str) -> None:
    """Refuse a JSON file that would not be read, before it fills the memory."""
    size = next((file.size or 0 for file in info.siblings or () if file.rfilename == name), 0)
    if size > MOST_BYTES:
        raise SourceError(
            f"[{name}] needed at most {MOST_BYTES:,} bytes in {info.id}, got {size:,}. "
            "Name another repository."
        )


def _header(info: ModelInfo, name: str) -> dict[str, TensorSpec]:
    try:
        found = HfApi().parse_safetensors_file_metadata(info.id, name, revision=info.sha)
    except SafetensorsParsingError as problem:
        raise CheckpointError(
            f"[{name}] needed the header of a safetensors file in {info.id}, got something else. "
            "Name another variant."
        ) from problem
    return {
        tensor: checked_spec(name, tensor, about.dtype, about.shape)
        for tensor, about in found.tensors.items()
    }


def _require_model(repository: str, wanted: list[str]) -> list[str]:
    for pattern in ("config.json", "*.safetensors"):
        if not any(fnmatchcase(name, pattern) for name in wanted):
            raise SourceError(
                f"[{repository}] needed {pattern}, got a repository without. "
                "Name one with an HLWQ checkpoint of Gemma 4."
            )
    return wanted


def _bring(repository: str, info: ModelInfo, variant: str | None) -> tuple[Path, str | None]:
    files = {file.rfilename: file for file in info.siblings or ()}
    variant = choose_variant(repository, list(files), variant)
    wanted = _require_model(repository, wanted_files(files, variant)) + drafter_files(files)
    try:
        _require_room(info.id, [files[name] for name in wanted])
        for name in wanted:
            resume.fetch(info.id, str(info.sha), files[name])
        root = snapshot_download(info.id, allow_patterns=wanted)
    except (httpx.HTTPError, OSError) as problem:
        raise _explain(repository, problem) from problem
    return Path(root), variant


def _require_room(repository: str, files: list[RepoSibling]) -> None:
    """Check that the disk has room for a download before it begins."""
    needed = sum(_missing(repository, file) for file in files)
    folder = cache_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DeviceError(
            f"[{repository}] needed {format_bytes(needed)} in {folder}, got {format_bytes(free)} "
            "of free space. Free some, or set HF_HOME to a folder on a larger disk."
        )


def _missing(repository: str, file: RepoSibling) -> int:
    """Return how many bytes of a file are not on this machine, as far as the hub tells."""
    blob = resume.blob_path(repository, file)
    if blob is None or blob.exists():
        return 0
    partial = resume.partial_path(blob)
    return (file.size or 0) - (partial.stat().st_size if partial.exists() else 0)


def cache_folder() -> Path:
    """Return where huggingface_hub keeps what it has brought."""
    return Path(constants.HF_HUB_CACHE).absolute()


def discard(path: Path) -> None:
    """Delete a file of a downloaded repository from the hub's cache; one that is gone is no error.

    The bytes stay while another revision in the cache has them too.
    Raises: SourceError for a file that is not in the cache, which is not ours to delete.
    """
    blob = _sole_blob(path)
    if blob is not None:
        blob.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def take(path: Path, target: Path) -> bool:
    """Move a file of a downloaded repository out of the hub's cache, and return whether it went.

    It stays when another revision has its bytes too, or `target` is on another disk.
    Raises: as `discard`.
    """
    blob = _sole_blob(path) or path
    if blob == path and path.is_symlink():
        return False
    try:
        blob.rename(target)
    except OSError as problem:
        if problem.errno != errno.EXDEV:
            raise
        return False
    path.unlink(missing_ok=True)
    return True


def _sole_blob(path: Path) -> Path | None:
    """Return where a file's bytes are in the cache; None when they are elsewhere, or others' too.

    Raises: SourceError for a file that is not in the cache.
    """
    cache = cache_folder().resolve()
    folder = next((each for each in path.parents if each.parent.resolve() == cache), None)
    if folder is None:
        raise SourceError(
            f"[--discard-source] needed a file below {cache}, got {path}. Only what was "
            "downloaded is deleted."
        )
    blob = path.resolve()
    others = (
        other
        for other in (folder / "snapshots").rglob(path.name)
        if other != path and other.resolve() == blob
    )
    is_sole = path.is_symlink() and cache in blob.parents and not any(others)
    return blob if is_sole else None


def _find_cached(repository: str, variant: str | None) -> tuple[Path, str | None] | None:
    """Look for a whole copy in huggingface_hub's cache without asking the hub."""
    for name in _names(repository):
        try:
            root = Path(
                snapshot_download(name, allow_patterns="config.json", local_files_only=True)
            )
            files = [path.relative_to(root).as_posix() for path in root.rglob("*.safetensors")]
            chosen = choose_variant(name, files, variant)
            weights = [f"{chosen}/*.safetensors"] if chosen else list(ROOT_WEIGHTS)
            snapshot_download(name, allow_patterns=weights, local_files_only=True)
        except (LocalEntryNotFoundError, HFValidationError):
            continue
        except SourceError:  # several of its variants are here, or not the one asked for
            if variant is None:
                raise
            continue
        return root, chosen
    return None


def _explain(repository: str, problem: Exception) -> HLWQError:
    """Convert what stopped a download into an error of one line."""
    if isinstance(problem, HLWQError):
        return problem
    if isinstance(problem, HFValidationError):
        return SourceError(f"[{repository}] needed a name that the hub allows, got this. {problem}")
    if isinstance(problem, GatedRepoError):
        return SourceError(
            f"[{repository}] needed consent to its terms, got none from you. Give it at "
            f"{constants.ENDPOINT}/{repository} and log in with `hf auth login`."
        )
    if isinstance(problem, OSError) and problem.errno in failures.FULL:
        return DeviceError(
            f"[{repository}] needed room in {constants.HF_HUB_CACHE}, got '{problem.strerror}'. "
            "Free some, or set HF_HOME to a folder on a larger disk, and run the same command "
            "again: it goes on where it stopped."
        )
    if isinstance(problem, OSError) and failures.is_local(problem):
        return DeviceError(
            f"[{repository}] needed to write {constants.HF_HUB_CACHE}, got "
            f"{failures.cause(problem)}. {failures.advice(problem)}"
        )
    text = " ".join(str(problem).split()).rstrip(".")
    return SourceError(
        f"[{repository}] needed the hub, got {type(problem).__name__}: {text}. Check the network "
        "and run the same command again: it goes on where it stopped."
    )
