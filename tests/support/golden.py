"""Golden samples of the format: where they lie and how their tensors are read."""

from pathlib import Path

import mlx.core as mx
import numpy as np

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
MULTI = ("PQ1", "PQ2", "PQ2-Mixed", "PQ3", "PQ4", "PQ5", "PQ6", "PQ8")
VARIANTS = tuple(sorted(path.name for path in (GOLDEN / "variants").iterdir()))


def read(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file; bfloat16, which numpy lacks, becomes float32, exactly."""
    return {
        name: np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
        for name, array in mx.load(str(path)).items()
    }
