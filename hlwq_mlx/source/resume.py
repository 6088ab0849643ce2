"""Files of a hub repository, downloaded so that a later run goes on where one broke off.

huggingface_hub goes on after a dropped connection, but drops what it has of a file when a download
fails or is stopped, and a file here has gigabytes. The bytes are kept beside the place its cache
has for them; a whole file is put in that place, where huggingface_hub finds it.
"""

import hashlib
import re
from pathlib import Path

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # both are in its __all__
    WeakFileLock,
    build_hf_headers,
)

from ..disk.atomic import place
from ..errors import SourceError

_HASH = re.compile("[0-9a-f]{40,64}")  # what else the hub says could lead to any path
_CHUNK_BYTES = 1 << 24


def blob_path(repository: str, file: RepoSibling) -> Path | None:
    """Return where huggingface_hub keeps a file's bytes; None if the hub does not say its hash."""
    name = file.lfs.sha256 if file.lfs else file.blob_id
    if not name or not _HASH.fullmatch(name):
        return None
    folder = repo_folder_name(repo_id=repository, repo_type="model")
    return Path(constants.HF_HUB_CACHE, folder, "blobs", name)


def partial_path(blob: Path) -> Path:
    """Return where a file's bytes are kept until they are all there."""
    return blob.with_name(f"{blob.name}.hlwq.incomplete")


def fetch(repository: str, revision: str, file: RepoSibling) -> None:
    """Bring a file into huggingface_hub's cache unless it is there.

    Raises: SourceError when its content is not what the hub said; httpx.HTTPError; OSError.
    """
    blob = blob_path(repository, file)
    if blob is None or blob.exists():
        return
    partial = partial_path(blob)
    lock = Path(constants.HF_HUB_CACHE, ".locks", blob.parts[-3], f"{blob.name}.lock")
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):  # the one huggingface_hub takes for the same file
        if blob.exists():  # another process has brought it
            return
        _complete(partial, hf_hub_url(repository, file.rfilename, revision=revision), file)
        if file.lfs and _sha256(partial) != file.lfs.sha256:
            partial.unlink()
            raise SourceError(
                f"[{repository}] needed {file.rfilename} as the hub describes it, got other "
                "content. Run the same command again; it was removed."
            )
        place(partial, blob)


def _complete(partial: Path, url: str, file: RepoSibling) -> None:
    with partial.open("ab") as target:
        if file.size is not None and target.tell() > file.size:
            target.seek(0)
            target.truncate()
        http_get(
            url,
            target,
            resume_size=target.tell(),
            # A compressed answer cannot be gone on with.
            headers={**build_hf_headers(), "Accept-Encoding": "identity"},
            expected_size=file.size,
            displayed_filename=file.rfilename,
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
