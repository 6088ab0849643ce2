import hashlib
import platform

import numpy as np
import pytest
from media_data import inputs, references

from hlwq_mlx.media.images import image_patches
from hlwq_mlx.media.processor import BUDGETS, ImageSettings


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:32]


def grids(row):
    return ImageSettings(
        patch_size=row["patch_size"],
        pooling_kernel_size=row["pooling_kernel_size"],
        max_soft_tokens=row["max_soft_tokens"],
    )


ROWS = references("images")


@pytest.mark.parametrize("size", sorted({tuple(row["size"]) for row in ROWS}), ids=str)
def test_patches_equal_the_reference_to_the_bit(size):
    picture = inputs.picture(*size)
    for row in (row for row in ROWS if tuple(row["size"]) == size):
        found = image_patches(picture, grids(row))
        p = row["patch_size"]
        assert found.soft_tokens == row["soft_tokens"] <= row["max_soft_tokens"]
        assert found.patches.shape[1] == p * p * 3
        assert (found.patches.dtype, found.positions.dtype) == (np.float32, np.int32)
        assert digest(found.positions) == row["positions"]
        if platform.machine() == "x86_64":  # other machines may round a resized value otherwise
            assert digest(found.patches) == row["patches"]


def test_the_references_cover_every_budget():
    assert {row["max_soft_tokens"] for row in ROWS} >= set(BUDGETS)
