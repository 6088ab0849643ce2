"""MLX's own kernels, from the headers in the installed wheel, against MLX's results on the CPU.

They are known to be right on a GPU: what the checkers say of them is false, and what they compute
here is what they compute there. On a Mac the wheel's kernels run on the GPU in MLX's own tests.
"""

from functools import cache

import mlx.core as mx
import numpy as np
import pytest

import metal_host
from metal_host import KernelFault, Library
from metal_host.library import include, launch
from metal_host.toolchain import MLX_INCLUDE, MLX_KERNELS

pytestmark = pytest.mark.skipif(bool(metal_host.missing()), reason=metal_host.missing())

NAMES = {mx.float32: "float", mx.float16: "float16_t", mx.bfloat16: "bfloat16_t"}
# max |host - MLX in float32| / max |MLX|: sums in float32, outputs rounded to the dtype, and for
# products inputs scaled in the dtype first.
TOL = {mx.float32: 1e-5, mx.float16: 4e-3, mx.bfloat16: 2e-2}
ALIGNED = {200: True, 201: True, 202: True}  # function constants that steel's gemm asks for
GROUP = 64
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


@cache
def quantized():
    return Library(include("utils.h", "steel/gemm/gemm.h", "quantized_utils.h", "quantized.h"))


@cache
def hadamard_source():
    return (MLX_INCLUDE / MLX_KERNELS / "hadamard.h").read_text()


def relative_error(got, expected):
    got, expected = (np.array(array.astype(mx.float32)) for array in (got, expected))
    return np.abs(got - expected).max() / np.abs(expected).max()


def product(rows, columns, outputs, bits, dtype):
    """Return the arguments of an affine product y = x W^T, and what MLX makes of them."""
    keys = mx.random.split(mx.random.key(bits), 2)
    x = mx.random.normal((rows, columns), key=keys[0]).astype(dtype)
    weight = mx.random.normal((outputs, columns), key=keys[1]).astype(dtype)
    w, scales, biases = mx.quantize(weight, group_size=GROUP, bits=bits)
    scales_32, biases_32 = scales.astype(mx.float32), biases.astype(mx.float32)
    expected = mx.quantized_matmul(
        x.astype(mx.float32), w, scales_32, biases_32, group_size=GROUP, bits=bits
    )
    return {"w": w, "scales": scales, "biases": biases, "x": x}, expected


@pytest.mark.parametrize(
    ("name", "columns", "outputs", "bits", "dtype"),
    [
        ("affine_qmv_fast", 512, 16, 2, mx.float32),
        ("affine_qmv_fast", 512, 16, 3, mx.float16),
        ("affine_qmv_fast", 512, 16, 4, mx.bfloat16),
        ("affine_qmv_fast", 512, 16, 8, mx.float32),
        ("affine_qmv", 320, 20, 4, mx.float32),
        ("affine_qmv", 320, 20, 5, mx.bfloat16),
        ("affine_qmv", 320, 20, 6, mx.float16),
    ],
)
def test_matrix_times_vectors(name, columns, outputs, bits, dtype):
    arguments, expected = product(2, columns, outputs, bits, dtype)
    program = quantized().kernel(f"{name}<{NAMES[dtype]}, {GROUP}, {bits}, false>", ALIGNED)
    arguments |= {"in_vec_size": columns, "out_vec_size": outputs}
    groups = (2, -(-outputs // 8), 1)
    got = launch(program, arguments, ("y", (2, outputs), dtype), groups, (32, 2, 1))
    assert relative_error(got, expected) <= TOL[dtype]


@pytest.mark.parametrize(
    ("rows", "columns", "outputs", "bits", "dtype"),
    [
        (32, 64, 32, 4, mx.float32),
        (40, 64, 40, 3, mx.bfloat16),
    ],
)
def test_matrix_times_matrix(rows, columns, outputs, bits, dtype):
    arguments, expected = product(rows, columns, outputs, bits, dtype)
    is_aligned = "true" if outputs % 32 == 0 else "false"
    template = f"<{NAMES[dtype]}, {GROUP}, {bits}, {is_aligned}, false>"
    program = quantized().kernel(f"affine_qmm_t{template}", ALIGNED)
    arguments |= {"K": columns, "N": outputs, "M": rows}
    groups = (-(-outputs // 32), -(-rows // 32), 1)
    got = launch(program, arguments, ("y", (rows, outputs), dtype), groups, (32, 2, 2))
    assert relative_error(got, expected) <= TOL[dtype]


def transform(source, size, radix, width, dtype):
    """Transform three rows with a hadamard_n; return them beside MLX's."""
    program = Library(include("utils.h") + source).kernel(
        f"hadamard_n<{NAMES[dtype]}, {size}, {radix}, {width}>"
    )
    x = mx.random.normal((3, size), key=mx.random.key(size)).astype(dtype)
    arguments = {"in": x, "scale": size**-0.5}
    groups, threadgroup = (1, 3, 1), (size // radix, 1, 1)
    got = launch(program, arguments, ("out", x.shape, dtype), groups, threadgroup)
    return got, mx.hadamard_transform(x.astype(mx.float32))


@pytest.mark.parametrize(
    ("size", "radix", "width", "dtype"),
    [(64, 4, 2, mx.float32), (128, 16, 4, mx.float16), (1024, 16, 4, mx.bfloat16)],
)
def test_hadamard_transform(size, radix, width, dtype):
    got, expected = transform(hadamard_source(), size, radix, width, dtype)
    assert relative_error(got, expected) <= TOL[dtype]


@pytest.mark.parametrize("gone", range(3))
def test_hadamard_transform_without_one_of_its_barriers(gone):
    pieces = hadamard_source().split(BARRIER)
    source = BARRIER.join(pieces[: gone + 1]) + BARRIER.join(pieces[gone + 1 :])
    with pytest.raises(KernelFault):
        transform(source, 1024, 16, 4, mx.float32)
