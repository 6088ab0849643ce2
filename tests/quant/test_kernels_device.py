"""What only a GPU can tell: that every variant in use compiles there and is sound."""

from dataclasses import replace

import mlx.core as mx
import pytest

from hlwq_mlx.quant import device
from hlwq_mlx.quant.activation import Activation
from hlwq_mlx.quant.backends import choose
from hlwq_mlx.quant.backends.base import reference
from hlwq_mlx.quant.matrix import CodedMatrix
from scripts.mac.self_tests import self_tests
from scripts.mac.sizes import FULL

pytestmark = [
    pytest.mark.metal,
    pytest.mark.skipif(not mx.metal.is_available(), reason="needs a Metal device"),
]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", FULL.dtypes)
def test_every_variant_passes_its_self_test(bits, dtype):
    sizes = replace(FULL, bits=(bits,), dtypes=(dtype,))
    assert [row for row in self_tests(sizes) if row["faults"]] == []


def test_the_chip_is_known():
    generation = device.chip().generation
    assert mx.device_info()["architecture"].startswith(f"applegpu_g{generation}")


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_layers_of_real_size(bits):
    N, K = 10240, 2560
    words = mx.random.randint(0, 1 << 16, (N, K * bits // 32), mx.uint32) * 65521
    norms = mx.random.uniform(0.5, 1.5, (N, K // 128), mx.float16)
    matrix = CodedMatrix(words, norms, mx.linspace(-3, 3, max(8, 1 << bits)), bits)
    for M in (1, 2, 33, 600):
        x = mx.random.normal((M, K)).astype(device.activation_dtype())
        y, expected = choose.prepare(matrix)(Activation(x)), reference(x, matrix)
        difference = mx.linalg.norm(y.astype(mx.float32) - expected)
        assert difference < 5e-3 * mx.linalg.norm(expected)
