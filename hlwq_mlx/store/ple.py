"""The row store: per-layer-embedding rows read from disk, so that the table never fills memory.

One safetensors file beside the model's shards, outside the names that loaders sweep up, holding one
matrix. The kernel's page cache keeps the rows of common tokens warm. The model knows none of this;
it is handed `RowStore` as a callable.

V vocabulary, W width of a row (layers times per-layer width).
"""

from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, RequestError
from .tensorfile import TensorFile, TensorSpec

FILE_NAME = "ple.safetensors"
_DTYPES = ("BF16", "F16", "F32")


class RowStore:
    """Rows of a table on disk, by token id.

    Raises: CheckpointError when the file is missing, damaged or not one floating matrix.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(
                f"[{path.name}] needed the row store {path}, got no such file. It belongs beside "
                "the model's shards: copy the whole folder, or convert again."
            )
        file = TensorFile(path)
        name, spec = next(iter(file.specs.items()), ("nothing", TensorSpec("", ())))
        if len(file.specs) != 1 or len(spec.shape) != 2 or spec.dtype not in _DTYPES:
            raise CheckpointError(
                f"[{path.name}] needed one matrix of {', '.join(_DTYPES)}, got {len(file.specs)} "
                f"tensors and {name} of {spec.dtype} {spec.shape}. Convert the model again."
            )
        self._rows = file.view(name)
        self._dtype = spec.dtype
        self.shape: tuple[int, int] = (spec.shape[0], spec.shape[1])

    def __call__(self, ids: NDArray[np.integer]) -> mx.array:
        """Read one row for each id.

        Shapes: ids [...] on the host -> [..., W] in the table's dtype.
        Raises: RequestError for an id outside the table.
        """
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.shape[0]:
            raise RequestError(
                f"[{FILE_NAME}] needed ids from 0 to {self.shape[0] - 1}, got {ids.min()} to "
                f"{ids.max()}. The tokenizer does not belong to this model."
            )
        rows = mx.array(self._rows[ids])
        return rows.view(mx.bfloat16) if self._dtype == "BF16" else rows
