"""One identity for the files of a converted folder, so that those of two models never mix.

The manifest, every shard and the row store state it. It follows from what was converted and how,
so that the same conversion gives the same files. Folders made before there was one state none.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..disk.tensorfile import TensorFile
from ..errors import CheckpointError
from ..source.coded import CodedTensor
from ..source.detect import Reading
from ..source.repository import PlainTensor

METADATA_KEY = "hlwq_identity"
MANIFEST_KEY = "identity"
_SAMPLE_BYTES = 4096  # of either end of an uncoded tensor
_SHOWN = 12


def identify(
    stated: Mapping[str, Any],
    tensors: Mapping[str, CodedTensor | PlainTensor],
    readings: Mapping[str, Reading],
) -> str:
    """Return the identity of a conversion: of its settings, and of samples of every tensor.

    Of a coded tensor those are its norms and how its codes are read: training changes them all.
    """
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.shape}".encode())
        if isinstance(tensor, PlainTensor):
            _add_ends(digest, tensor.file.view(tensor.name))
            continue
        reading = readings[tensor.name]
        digest.update(f"{tensor.bits} {reading.order}".encode())
        digest.update(np.ascontiguousarray(reading.centroids).data)
        digest.update(np.ascontiguousarray(tensor.norms).data)
        _add_ends(digest, tensor.raw)
    return digest.hexdigest()


def _add_ends(digest: "hashlib._Hash", array: NDArray[Any]) -> None:
    raw = array.reshape(-1).view(np.uint8)
    digest.update(raw[:_SAMPLE_BYTES].data)
    digest.update(raw[-_SAMPLE_BYTES:].data)


def require_same(file: TensorFile, manifest: Mapping[str, Any]) -> None:
    """Refuse a file that is not of the conversion that a manifest is of.

    Raises: CheckpointError.
    """
    needed, got = manifest.get(MANIFEST_KEY), file.metadata.get(METADATA_KEY)
    if needed != got:
        raise CheckpointError(
            f"[{file.path.name}] needed a file of the conversion {str(needed)[:_SHOWN]} of "
            f"config.json, got one of {str(got)[:_SHOWN]}. The files do not belong together: copy "
            "the whole folder again, or convert the model again."
        )
