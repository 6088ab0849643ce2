"""A share that is read from disk is that part of the matrix, and no more is read."""

import mlx.core as mx
import numpy as np
import pytest

from hlwq_mlx.disk.tensorfile import TensorFile
from hlwq_mlx.folder.names import coded_names
from hlwq_mlx.quant import codec
from hlwq_mlx.quant.layers import pad_table
from hlwq_mlx.quant.matrix import CodedMatrix
from hlwq_mlx.quant.packing import BLOCK, p32_planes
from hlwq_mlx.quant.tables import centroids
from hlwq_mlx.sharding.reading import read
from hlwq_mlx.sharding.shares import WHOLE, Run, Share

N, K = 12, 5 * BLOCK
SHARES = {
    "whole": WHOLE,
    "rows": Share((Run(3, 9),)),
    "columns": Share(None, Run(2 * BLOCK, 4 * BLOCK)),
    "the padded end": Share(None, Run(3 * BLOCK, 5 * BLOCK - 64)),
    "rows of several matrices": Share((Run(0, 2), Run(4, 6), Run(8, 10))),
}


@pytest.fixture(scope="module")
def weight():
    return np.random.default_rng(0).standard_normal((N, K), dtype=np.float32)


def taken(matrix, share):
    rows = np.concatenate([np.arange(*run) for run in share.rows or [Run(0, N)]])
    start, stop = share.columns or Run(0, K)
    return matrix[rows, start : -(-stop // BLOCK) * BLOCK]


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_a_share_of_codes_decodes_to_that_part(tmp_path, weight, bits, share):
    table = centroids("clip4_100", bits)
    codes, norms = codec.encode(weight, table)
    names = coded_names("x.weight")
    planes = np.concatenate([plane.reshape(-1) for plane in p32_planes(codes, bits)])
    arrays = {names.codes: mx.array(planes).reshape(N, -1), names.norms: mx.array(norms)}
    mx.save_safetensors(str(tmp_path / "x.safetensors"), arrays)
    file = TensorFile(tmp_path / "x.safetensors")
    whole, own = ([read(file, name, each, bits) for name in arrays] for each in (WHOLE, share))
    np.testing.assert_array_equal(
        decoded(own, table, bits), taken(decoded(whole, table, bits), share)
    )


def decoded(arrays, table, bits):
    matrix = CodedMatrix(*arrays, mx.array(pad_table(table)), bits)
    return np.array(codec.embed(mx.arange(matrix.shape[0]), matrix))


def test_shares_of_a_stack_keep_its_shape(tmp_path):
    stack = mx.arange(3 * 4 * 6, dtype=mx.float32).reshape(3, 4, 6).astype(mx.bfloat16)
    mx.save_safetensors(str(tmp_path / "x.safetensors"), {"x.weight": stack})
    file = TensorFile(tmp_path / "x.safetensors")
    rows = Share(tuple(Run(at, at + 1) for at in range(1, 12, 2)))  # rows 1 and 3 of each
    assert mx.array_equal(read(file, "x.weight", rows, None), stack[:, 1::2])
    assert mx.array_equal(read(file, "x.weight", Share((Run(4, 12),)), None), stack[1:])
    assert mx.array_equal(read(file, "x.weight", Share(None, Run(2, 5)), None), stack[..., 2:5])
