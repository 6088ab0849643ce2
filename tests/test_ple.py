"""Rows of the per-layer-embedding table from disk."""

import mlx.core as mx
import numpy as np
import pytest

from hlwq_mlx.errors import CheckpointError, RequestError
from hlwq_mlx.store.ple import FILE_NAME, RowStore

TABLE = np.arange(40, dtype=np.float32).reshape(10, 4) / 8 - 2


def write(folder, tensors):
    mx.save_safetensors(str(folder / FILE_NAME), tensors)
    return folder / FILE_NAME


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_rows_come_by_id_in_the_dtype_of_the_table(tmp_path, dtype):
    store = RowStore(write(tmp_path, {"rows": mx.array(TABLE).astype(dtype)}))
    ids = np.array([[9, 0, 0], [3, 9, 1]])
    rows = store(ids)
    assert store.shape == (10, 4)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(np.array(rows.astype(mx.float32)), TABLE[ids])


def test_rows_outlive_the_store(tmp_path):
    path = write(tmp_path, {"rows": mx.array(TABLE)})
    rows = RowStore(path)(np.array([9]))
    path.unlink()
    np.testing.assert_array_equal(np.array(rows), TABLE[[9]])


def test_no_ids_give_no_rows(tmp_path):
    store = RowStore(write(tmp_path, {"rows": mx.array(TABLE)}))
    assert store(np.zeros((1, 0), dtype=np.int32)).shape == (1, 0, 4)


@pytest.mark.parametrize("ids", [[0, 10], [-1, 3]])
def test_ids_outside_the_table_are_refused(tmp_path, ids):
    store = RowStore(write(tmp_path, {"rows": mx.array(TABLE)}))
    with pytest.raises(
        RequestError, match=rf"needed ids from 0 to 9, got {min(ids)} to {max(ids)}"
    ):
        store(np.array(ids))


def test_a_missing_store_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"\[ple.safetensors\] needed the row store .*no such"
    ):
        RowStore(tmp_path / FILE_NAME)


def test_a_cut_off_store_is_refused(tmp_path):
    path = write(tmp_path, {"rows": mx.array(TABLE)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"\[ple.safetensors\] needed a whole safetensors"):
        RowStore(path)


@pytest.mark.parametrize(
    ("tensors", "got"),
    [
        ({}, "0 tensors and nothing"),
        ({"a": mx.zeros(4)}, r"1 tensors and a of F32 \(4,\)"),
        ({"a": mx.zeros((2, 2), mx.int32)}, r"1 tensors and a of I32 \(2, 2\)"),
        ({"a": mx.zeros((2, 2)), "b": mx.zeros((2, 2))}, "2 tensors and a of F32"),
    ],
)
def test_anything_but_one_floating_matrix_is_refused(tmp_path, tensors, got):
    path = write(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=f"needed one matrix of BF16, F16, F32, got {got}"):
        RowStore(path)
