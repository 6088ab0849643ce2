"""Rows of the per-layer-embedding table from disk."""

import os

import mlx.core as mx
import numpy as np
import pytest

from hlwq_mlx.disk.tensorfile import TensorSpec, TensorWriter
from hlwq_mlx.errors import CheckpointError, RequestError
from hlwq_mlx.folder import rows as ple
from hlwq_mlx.folder.rows import FILE_NAME, RowStore

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


def test_a_row_read_alone_is_kept(tmp_path):
    """It comes from memory the next time, whatever became of the file's pages."""
    path = tmp_path / FILE_NAME
    with TensorWriter(path, {"rows": TensorSpec("F32", TABLE.shape)}) as writer:
        writer.write("rows", TABLE, 0)
    store = RowStore(path)
    first = store(np.array([[3]]))
    assert first.shape == (1, 1, 4)
    with path.open("r+b") as file:
        file.seek(-TABLE.nbytes, 2)
        file.write(bytes(TABLE.nbytes))
    np.testing.assert_array_equal(np.array(store(np.array([3]))), TABLE[[3]])
    np.testing.assert_array_equal(np.array(store(np.array([4]))), 0 * TABLE[[4]])


def test_no_more_rows_are_kept_than_said(tmp_path):
    store = RowStore(write(tmp_path, {"rows": mx.zeros((ple.KEPT_ROWS + 9, 4))}))
    for row in range(store.shape[0]):
        store(np.array([row]))
    assert store._read_one.cache_info().currsize == ple.KEPT_ROWS


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


def test_a_store_cut_off_while_open_is_an_error(tmp_path):
    path = write(tmp_path, {"rows": mx.array(TABLE)})
    store = RowStore(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    assert store(np.array([8, 0])).shape == (2, 4)
    with pytest.raises(CheckpointError, match=r"needed 16 bytes of row 9, got 15.*convert the"):
        store(np.array([0, 9]))


def test_a_store_that_is_gone_closes_its_file(tmp_path):
    path = write(tmp_path, {"rows": mx.array(TABLE)})
    handle = RowStore(path)._read.args[0]._handle
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


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


def write_coded(folder, shape, rows):
    """Write a store of 8-bit rows, sparse: bytes are written for some rows alone."""
    specs = dict(zip(("rows.weight", "rows.scales"), ple.coded_specs(shape), strict=True))
    version = {ple.VERSION_KEY: ple.CODED}
    with TensorWriter(folder / FILE_NAME, specs, version) as writer:
        for row, values in rows.items():
            codes, scales = ple.code_rows(values[None])
            writer.write("rows.weight", codes, row * shape[1])
            writer.write("rows.scales", scales, row * scales.nbytes)
    return folder / FILE_NAME


def draw(seed, width, size=1.0):
    return size * np.random.default_rng(seed).standard_normal(width).astype(np.float32)


@pytest.mark.parametrize("width", [128, 96, 40, 7])
def test_coded_rows_are_within_half_a_step(tmp_path, width):
    rows = {row: draw(row, width, 10.0 ** (row - 6)) for row in range(10)}
    store = RowStore(write_coded(tmp_path, (10, width), rows))
    assert store.shape == (10, width)
    got = np.array(store(np.array([[9, 0], [3, 9]])))
    assert got.dtype == np.float32
    wanted = np.stack([rows[row] for row in (9, 0, 3, 9)]).reshape(2, 2, width)
    largest = np.abs(wanted).max(axis=-1, keepdims=True)
    # A scale is at most one float16 above the least that will do; at 1e-8 that is a coarse step.
    assert (np.abs(got - wanted) <= 1.001 * largest / 254 + 2.0**-25).all()
    assert np.abs(got[0, 0] - wanted[0, 0]).max() > largest[0, 0, 0] / 1000  # the test sees codes


def test_a_coded_row_loses_what_eight_bits_lose():
    rows = draw(1, 1 << 16).reshape(16, -1)
    error = ple.decode_rows(*ple.code_rows(rows)) - rows
    assert 1e-5 < (error**2).sum() / (rows**2).sum() < 3e-5


def test_zeros_and_extremes_are_coded_exactly():
    rows = np.zeros((2, 64), dtype=np.float32)
    rows[1, :3] = (127.0, -127.0, 5.0)
    codes, scales = ple.code_rows(rows)
    assert scales.tolist() == [[0, 0], [1, 0]]
    assert codes[1, :4].tolist() == [127, -127, 5, 0]
    np.testing.assert_array_equal(ple.decode_rows(codes, scales), rows)


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e8])
def test_rows_that_no_scale_holds_are_refused(value):
    rows = np.full((1, 32), value, dtype=np.float32)
    with pytest.raises(CheckpointError, match=r"needed finite rows up to 8 million, got "):
        ple.code_rows(rows)


@pytest.mark.parametrize("is_coded", [False, True])
def test_the_last_rows_of_the_largest_table_lie_beyond_4_gib(tmp_path, is_coded):
    """E4B's table; wider still where rows have one byte, so that offsets pass 2**32 there too."""
    V, W = 262144, 20480 if is_coded else 10752
    ids = (0, 1, V // 2, V - 2, V - 1)
    wanted = {row: draw(row, W).astype(np.float16).astype(np.float32) for row in ids}
    if is_coded:
        path = write_coded(tmp_path, (V, W), wanted)
        tolerance = 4.8 / 254
    else:
        path = tmp_path / FILE_NAME
        with TensorWriter(path, {"rows": TensorSpec("F16", (V, W))}) as writer:
            for row, values in wanted.items():
                writer.write("rows", values.astype(np.float16), row * W * 2)
        tolerance = 0
    assert (V - 2) * W * (1 if is_coded else 2) > 2**32
    got = np.array(RowStore(path)(np.array(ids)).astype(mx.float32))
    np.testing.assert_allclose(got, np.stack([*wanted.values()]), rtol=0, atol=tolerance)
    assert not np.array(RowStore(path)(np.array([V - 3]))).any()


def test_a_version_that_is_not_known_is_refused(tmp_path):
    mx.save_safetensors(
        str(tmp_path / FILE_NAME), {"rows": mx.zeros((2, 2))}, {ple.VERSION_KEY: "3"}
    )
    with pytest.raises(CheckpointError, match=r"needed rows of version 1 or 2, got 3\. Update"):
        RowStore(tmp_path / FILE_NAME)


@pytest.mark.parametrize(
    ("tensors", "got"),
    [
        ({}, "nothing"),
        ({"a": mx.zeros((2, 64), mx.int8)}, r"I8 \(2, 64\)"),
        (
            {"a": mx.zeros((2, 64), mx.int8), "b": mx.zeros((2, 1), mx.float16)},
            r"I8 \(2, 64\), F16 \(2, 1\)",
        ),
    ],
)
def test_coded_rows_without_their_scales_are_refused(tmp_path, tensors, got):
    mx.save_safetensors(str(tmp_path / FILE_NAME), tensors, {ple.VERSION_KEY: ple.CODED})
    with pytest.raises(CheckpointError, match=f"needed codes of I8 .* got {got}"):
        RowStore(tmp_path / FILE_NAME)
