"""The row store at E4B's size: a sparse file, which takes no disk where nothing was written."""

import mlx.core as mx
import numpy as np
import pytest

from hlwq_mlx.disk.tensorfile import TensorSpec, TensorWriter
from hlwq_mlx.errors import RequestError
from hlwq_mlx.folder.rows import FILE_NAME, RowStore

V, W = 262144, 10752
ROW_BYTES = 2 * W
CROSSINGS = [edge // ROW_BYTES + step for edge in (1 << 31, 1 << 32) for step in (-1, 0, 1)]
ROWS = [0, 1, *CROSSINGS, V - 2, V - 1]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / FILE_NAME
    with TensorWriter(path, {"rows": TensorSpec("BF16", (V, W))}) as writer:
        for row in ROWS:
            writer.write("rows", bits_of(row), row * ROW_BYTES)
    assert path.stat().st_size > 1 << 32
    yield RowStore(path)
    path.unlink()


def bits_of(row):
    return np.random.default_rng(row).integers(0, 0x7F80, W, dtype=np.uint16)


def test_a_row_wherever_it_lies(store):
    for row in ROWS:
        found = store(np.array([[row]]))
        assert (found.shape, found.dtype) == ((1, 1, W), mx.bfloat16)
        np.testing.assert_array_equal(np.array(found.view(mx.uint16))[0, 0], bits_of(row))


def test_rows_of_a_prompt_in_its_order(store):
    ids = np.array([ROWS[::-1] + ROWS[:3]], dtype=np.int32)
    found = np.array(store(ids).view(mx.uint16))[0]
    for at, row in enumerate(ids[0]):
        np.testing.assert_array_equal(found[at], bits_of(int(row)))


def test_rows_that_nobody_wrote(store):
    assert not np.array(store(np.array([5, V - 3])).view(mx.uint16)).any()
    with pytest.raises(RequestError, match=f"needed ids from 0 to {V - 1}"):
        store(np.array([V]))
