"""What the kernels' contracts rule out is refused by their wrappers, before any kernel is built."""

from dataclasses import replace

import mlx.core as mx
import pytest

from hlwq_mlx.errors import ShapeError
from hlwq_mlx.quant import expert_kernels, kernels
from hlwq_mlx.quant.chips import Tile
from hlwq_mlx.quant.matrix import CodedMatrix


def matrix(N=16, K=256, bits=4):
    return CodedMatrix(
        mx.zeros((N, K * bits // 32), dtype=mx.uint32),
        mx.zeros((N, K // 128), dtype=mx.float16),
        mx.zeros(max(8, 1 << bits)),
        bits,
    )


def zeros(*shape, dtype=mx.float32):
    return mx.zeros(shape, dtype=dtype)


MATRIX_CALLS = {
    "qmv": lambda matrix: kernels.qmv(zeros(1, 256), matrix),
    "geglu": lambda matrix: kernels.geglu(zeros(1, 256), matrix),
    "qmm": lambda matrix: kernels.qmm(zeros(9, 256), matrix),
    "dequantize": kernels.dequantize,
    "rotated_weight": kernels.rotated_weight,
    "embed": lambda matrix: kernels.embed(mx.array([1]), matrix),
    "gather_qmv": lambda matrix: expert_kernels.gather_qmv(
        zeros(1, 256), mx.array([[1]]), matrix, 2
    ),
    "gather_qmm": lambda matrix: expert_kernels.gather_qmm(
        zeros(1, 256), mx.array([0, 1]), matrix, 1
    ),
}


@pytest.mark.parametrize("name", MATRIX_CALLS)
def test_matrices_that_do_not_fit(name):
    call = MATRIX_CALLS[name]
    right = matrix()
    where = rf"\[{'expert_' if 'gather' in name else ''}kernels\.{name}\]"
    with pytest.raises(ShapeError, match=rf"{where} needed 1 to 8 bits, got 9"):
        call(replace(right, bits=9))
    with pytest.raises(ShapeError, match=rf"{where} needed uint32 codes \(16, 40\) for 5 bits"):
        call(replace(right, bits=5))
    with pytest.raises(ShapeError, match=rf"{where} needed at least 16 centroids for 4 bits"):
        call(replace(right, centroids=zeros(8)))
    with pytest.raises(ShapeError, match=rf"{where} needed norms of float16 and centroids of"):
        call(replace(right, norms=right.norms.astype(mx.float32)))
    with pytest.raises(ShapeError, match=rf"{where} needed norms of float16 and centroids of"):
        call(replace(right, centroids=right.centroids.astype(mx.float16)))
    with pytest.raises(ShapeError, match=rf"{where} needed at least 1024 weights, 8 centroids"):
        call(matrix(N=2))
    with pytest.raises(ShapeError, match=rf"{where} needed at least 1024 weights, 8 centroids"):
        call(replace(matrix(bits=2), centroids=zeros(4)))


def test_a_matrix_of_2_to_the_32_words_is_too_large():
    class Sized:
        def __init__(self, size):
            self.size = size

    def fits(words):
        return kernels.can_address(CodedMatrix(Sized(words), Sized(words), Sized(8), 1))

    assert fits((1 << 32) - 1)
    assert not fits(1 << 32)


@pytest.mark.parametrize("name", ["qmv", "geglu", "qmm", "gather_qmv"])
def test_activations_that_do_not_fit(name):
    def call(x, matrix):
        if name == "gather_qmv":
            return expert_kernels.gather_qmv(x, mx.array([[1]]), matrix, 2)
        return getattr(kernels, name)(x, matrix)

    where = rf"\[{'expert_' if 'gather' in name else ''}kernels\.{name}\]"
    with pytest.raises(ShapeError, match=rf"{where} needed x \[\.\.\., 256\], got \(1, 128\)"):
        call(zeros(1, 128), matrix())
    with pytest.raises(ShapeError, match=rf"{where} needed a floating x"):
        call(zeros(1, 256, dtype=mx.int32), matrix())
    with pytest.raises(ShapeError, match=rf"{where} needed x of float32, float16 or bfloat16"):
        call(zeros(1, 256, dtype=mx.float64), matrix())


@pytest.mark.parametrize("name", ["qmv", "geglu"])
def test_rows_and_tiles_of_qmv(name):
    call = getattr(kernels, name)
    where = rf"\[kernels\.{name}\]"
    for shape, count in (((9, 256), 9), ((0, 256), 0), ((2, 5, 256), 10)):
        with pytest.raises(ShapeError, match=rf"{where} needed 1 to 8 rows, got {count}\."):
            call(zeros(*shape), matrix())
    with pytest.raises(ShapeError, match=rf"{where} needed lanes that divide the 8 units"):
        call(zeros(1, 256), matrix(), tile=Tile(2, 16, 4, 1))


def test_experts_of_gather_qmv():
    def call(experts, count=2, **options):
        return expert_kernels.gather_qmv(zeros(3, 256), experts, matrix(), count, **options)

    where = r"^\[expert_kernels\.gather_qmv\] needed"
    with pytest.raises(ShapeError, match=rf"{where} integer ids, got"):
        call(zeros(3, 2))
    with pytest.raises(ShapeError, match=rf"{where} experts \(3, 'k'\) for x \(3, 256\), got \(2"):
        call(zeros(2, 2, dtype=mx.uint32))
    with pytest.raises(ShapeError, match=rf"{where} experts \(3, 'k'\) .* got \(3, 0\)"):
        call(zeros(3, 0, dtype=mx.uint32))
    with pytest.raises(ShapeError, match=rf"{where} rows of 3 matrices of one height, got 16"):
        call(zeros(3, 2, dtype=mx.uint32), 3)
    with pytest.raises(ShapeError, match=rf"{where} lanes that divide the 8 units"):
        call(zeros(3, 2, dtype=mx.uint32), tile=Tile(2, 16, 4, 1))
    with pytest.raises(ShapeError, match=rf"{where} lanes .*, one row of x at once"):
        call(zeros(3, 2, dtype=mx.uint32), tile=Tile(2, 8, 4, 2))


def test_rows_of_gather_qmm():
    def call(x, starts, count=2):
        return expert_kernels.gather_qmm(x, starts, matrix(), count)

    where = r"^\[expert_kernels\.gather_qmm\] needed"
    starts = mx.array([0, 1, 3])
    with pytest.raises(ShapeError, match=rf"{where} integer ids, got"):
        call(zeros(3, 256), starts.astype(mx.float32))
    with pytest.raises(ShapeError, match=rf"{where} rows of x, 2 .* got 0 rows, 16 and \(3,\)"):
        call(zeros(0, 256), starts)
    with pytest.raises(ShapeError, match=rf"{where} rows of x, 2 .* 3 starts, got .* \(2,\)"):
        call(zeros(3, 256), starts[1:])
    with pytest.raises(ShapeError, match=rf"{where} rows of x, 3 matrices of one height"):
        call(zeros(3, 256), mx.array([0, 1, 1, 3]), 3)


def test_gate_and_up_are_halves():
    with pytest.raises(ShapeError, match=r"\[kernels\.geglu\] needed as many rows of gate as of"):
        kernels.geglu(zeros(1, 256), matrix(N=17))
    with pytest.raises(ShapeError, match=r"\[kernels\.geglu\] needed lanes that .* even number"):
        kernels.geglu(zeros(1, 256), matrix(), tile=Tile(1, 8, 4, 1))


def test_activations_of_2_to_the_32_elements_are_too_large():
    rows = zeros(1 << 24, 256)  # never evaluated
    with pytest.raises(ShapeError, match=r"\[kernels\.qmm\] needed x of .* than 2\*\*32 elements"):
        kernels.qmm(rows, matrix())
    with pytest.raises(ShapeError, match=r"\[kernels\.hadamard\] needed float32, float16 or"):
        kernels.hadamard(rows)


def test_qmm_needs_a_row():
    with pytest.raises(ShapeError, match=r"\[kernels\.qmm\] needed at least one row"):
        kernels.qmm(zeros(0, 256), matrix())


def test_ids_of_embed():
    with pytest.raises(ShapeError, match=r"\[kernels\.embed\] needed integer ids, got"):
        kernels.embed(zeros(3), matrix())
    with pytest.raises(ShapeError, match=r"\[kernels\.embed\] needed at least one id"):
        kernels.embed(zeros(0, dtype=mx.int32), matrix())


@pytest.mark.parametrize(
    "x",
    [zeros(3, 100), zeros(0, 128), mx.zeros(()), zeros(128, dtype=mx.int32)],
    ids=["columns", "empty", "scalar", "integers"],
)
def test_blocks(x):
    for name, call in {
        "hadamard": lambda: kernels.hadamard(x),
        "gelu_mul": lambda: kernels.gelu_mul(x, x),
        "residual_norm": lambda: kernels.residual_norm(x, x, zeros(128), zeros(1), 1e-6),
    }.items():
        with pytest.raises(ShapeError, match=rf"\[kernels\.{name}\] needed float32, float16 or"):
            call()


def test_gelu_mul_needs_one_shape():
    with pytest.raises(ShapeError, match=r"\[kernels\.gelu_mul\] needed gate and up of one shape"):
        kernels.gelu_mul(zeros(2, 128), zeros(1, 256))


@pytest.mark.parametrize(
    "arguments",
    [
        (zeros(1, 256), zeros(2, 128), zeros(256), zeros(1), 1e-6),
        (zeros(1, 256), zeros(1, 256), zeros(128), zeros(1), 1e-6),
        (zeros(1, 256), zeros(1, 256), zeros(256), zeros(2), 1e-6),
        (zeros(1, 256), zeros(1, 256), zeros(256), zeros(1), 1e-6, zeros(128)),
        (zeros(1, 8320), zeros(1, 8320), zeros(8320), zeros(1), 1e-6),
    ],
    ids=["update", "weight", "scale", "next", "columns"],
)
def test_residual_norm(arguments):
    with pytest.raises(ShapeError, match=r"\[kernels\.residual_norm\] needed .* K up to 8192, got"):
        kernels.residual_norm(*arguments)
