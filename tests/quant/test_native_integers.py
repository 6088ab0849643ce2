"""The native library's integer mode against float64, by every kind of instructions here."""

import mlx.core as mx
import numpy as np
import pytest
import test_native
from test_native import WIDTHS, distance, rotated, rows, weight_of

from hlwq_mlx.quant import codec
from hlwq_mlx.quant.activation import Activation
from hlwq_mlx.quant.backends.native import library as native
from hlwq_mlx.quant.backends.native.product import Native
from hlwq_mlx.quant.layers import pad_table
from hlwq_mlx.quant.matrix import CodedMatrix
from hlwq_mlx.quant.packing import pack_p32
from hlwq_mlx.quant.selftest import random_matrix

INTEGER_BOUND = 5e-4
library = test_native.library


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_integer_mode_is_within_its_bound(bits, library, monkeypatch):
    monkeypatch.setenv(native.MODE, native.INTEGER)
    matrix, x = random_matrix(bits), rows(11)
    product = Native(matrix, library)
    y = np.array(product(Activation(x)))
    assert 0 < distance(y, rotated(x) @ weight_of(matrix).T) < INTEGER_BOUND
    for count in (1, 3):
        np.testing.assert_array_equal(np.array(product(Activation(x[:count]))), y[:count])


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_integer_mode_is_within_its_bound_where_x_has_a_mean(bits, library, monkeypatch):
    monkeypatch.setenv(native.MODE, native.INTEGER)
    matrix, x = random_matrix(bits), 1 + rows(64) / 10  # rotated, one number dwarfs the others
    y = np.array(Native(matrix, library)(Activation(x)))
    assert distance(y, rotated(x) @ weight_of(matrix).T) < INTEGER_BOUND


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_of_the_integer_mode_fit_32_bits(sign, library, monkeypatch):
    monkeypatch.setenv(native.MODE, native.INTEGER)
    x = sign * mx.array(np.eye(1, 512, 5), mx.float32)
    signs = np.array(codec.hadamard(x))[:, :128]  # of one size: each is a largest number
    codes = np.tile(signs > 0, (3, 4)).astype(np.uint8)
    table = mx.array(pad_table(np.array([-1, 1], np.float32)))
    matrix = CodedMatrix(mx.array(pack_p32(codes, 1)), mx.ones((3, 4), mx.float16), table, 1)
    y = np.array(Native(matrix, library)(Activation(mx.concatenate([x, x]))))
    assert distance(y, np.full((2, 3), 1.0)) < INTEGER_BOUND


def test_what_is_no_number_stays_none_in_the_integer_mode(library, monkeypatch):
    monkeypatch.setenv(native.MODE, native.INTEGER)
    x = mx.where(mx.arange(512) == 7, mx.nan, rows(2))
    x = mx.concatenate([x, mx.full((1, 512), 1e-38), mx.zeros((1, 512))])
    y = np.array(Native(random_matrix(5), library)(Activation(x)))
    assert np.isnan(y[:2]).all() and np.isfinite(y[2:]).all()
