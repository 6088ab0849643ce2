"""The stand-in's manners: what it accepts, refuses and returns beside MLX's own."""

import mlx.core as mx
import numpy as np
import pytest

import metal_host
from metal_host import Checks, CompileError, KernelFault, Kind, toolchain

pytestmark = pytest.mark.skipif(bool(metal_host.missing()), reason=metal_host.missing())

INDEX = "uint i = thread_position_in_grid.x;"
COPY = f"{INDEX} o[i] = x[i];"


def run(kernel, inputs, shape=(32,), dtype=mx.float32, **call):
    (output,) = kernel(
        inputs=inputs,
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[shape],
        output_dtypes=[dtype],
        **call,
    )
    return output


@pytest.mark.parametrize(
    "dtype",
    [mx.bool_, mx.uint8, mx.int16, mx.uint32, mx.int64, mx.float16, mx.bfloat16, mx.float32],
)
def test_every_dtype_goes_in_and_comes_out(dtype):
    x = (mx.arange(32) % 3).astype(dtype)
    kernel = metal_host.metal_kernel("copy", ["x"], ["o"], COPY)
    output = run(kernel, [x], dtype=dtype)
    assert output.dtype == dtype
    assert mx.array_equal(output, x)


def test_numbers_and_small_arrays_lie_in_constant_memory():
    body = f"{INDEX} o[i] = a + b + c[i % 3] + c_shape[0];"
    kernel = metal_host.metal_kernel("numbers", ["a", "b", "c"], ["o"], body)
    output = run(kernel, [2, 0.5, mx.array([10.0, 20.0, 30.0])])
    assert output.tolist() == [5.5 + 10 * (1 + i % 3) for i in range(32)]


def test_several_template_sets_of_one_kernel():
    body = f"{INDEX} o[i] = T(N * x[i]);"
    kernel = metal_host.metal_kernel("templated", ["x"], ["o"], body)
    x = mx.arange(32).astype(mx.float32)
    for count, dtype in ((2, mx.int32), (3, mx.float16)):
        output = run(kernel, [x], dtype=dtype, template=[("T", dtype), ("N", count)])
        assert output.tolist() == [count * i for i in range(32)]


@pytest.mark.parametrize("is_contiguous", [True, False])
def test_strided_inputs(is_contiguous):
    body = f"{INDEX} o[i] = x[(i / 8) * x_strides[0] + (i % 8) * x_strides[1]];"
    kernel = metal_host.metal_kernel(
        "strided", ["x"], ["o"], body, ensure_row_contiguous=is_contiguous
    )
    x = mx.arange(64).reshape(8, 8).astype(mx.float32).T[::2]
    assert mx.array_equal(run(kernel, [x], shape=(4, 8)), x)


def test_verbose_prints_the_text(capsys):
    kernel = metal_host.metal_kernel("copy", ["x"], ["o"], COPY)
    run(kernel, [mx.zeros(32)], verbose=True)
    assert "[[kernel]] void custom_kernel_copy_float_float(" in capsys.readouterr().out


def test_calls_that_mlx_refuses():
    kernel = metal_host.metal_kernel("copy", ["x"], ["o"], COPY)
    with pytest.raises(ValueError, match=r"Expected `inputs` to have size 1 but got size 2\."):
        run(kernel, [mx.zeros(32), 1])
    with pytest.raises(ValueError, match=r"Only supports the GPU\."):
        run(kernel, [mx.zeros(32)], stream=mx.cpu)
    with pytest.raises(ValueError, match=r"at least one output"):
        metal_host.metal_kernel("none", ["x"], [], COPY)
    with pytest.raises(ValueError, match=r"needed math_mode in .*'safe'"):
        metal_host.metal_kernel("m", [], ["o"], "", compile_options={"math_mode": "wrong"})


def test_math_modes_decide_about_infinity():
    body = f"{INDEX} o[i] = isinf(x[i]) ? 1 : 0;"
    for mode, expected in (("safe", 1), ("fast", 0)):
        kernel = metal_host.metal_kernel(
            "math", ["x"], ["o"], body, compile_options={"math_mode": mode}
        )
        assert run(kernel, [mx.full((32,), float("inf"))]).tolist() == [expected] * 32


def test_findings_of_the_last_call_stay_with_the_kernel():
    kernel = metal_host.metal_kernel("same", ["x"], ["o"], f"{INDEX} o[i] = x[i]; o[0] = 0;")
    with pytest.raises(KernelFault) as caught:
        run(kernel, [mx.zeros(32)])
    assert caught.value.kinds == {Kind.SAME_VALUE}
    with metal_host.checked(Checks(tolerated=metal_host.NOTES)):
        run(kernel, [mx.zeros(32)])
    assert [finding.kind for finding in kernel.findings] == [Kind.SAME_VALUE]


def test_a_fault_leaves_the_host_usable():
    wild = metal_host.metal_kernel(
        "wild", ["x"], ["o"], f"{INDEX} o[i] = ((const device float*)(ulong)i)[0];"
    )
    copy = metal_host.metal_kernel("copy", ["x"], ["o"], COPY)
    for _ in range(2):
        with pytest.raises(KernelFault) as caught:
            run(wild, [mx.zeros(32)])
        assert Kind.FAULT in caught.value.kinds
        assert mx.array_equal(run(copy, [mx.ones(32)]), mx.ones(32))


def test_compiler_messages_name_the_line():
    kernel = metal_host.metal_kernel("typo", ["x"], ["o"], f"\n{INDEX} o[i] = y[i];")
    with pytest.raises(CompileError, match=r"typo\.metal:6:\d+: error: use of undeclared"):
        run(kernel, [mx.zeros(32)])


def test_what_passed_needs_no_compiler_again(monkeypatch):
    for _ in range(2):
        kernel = metal_host.metal_kernel("copy", ["x"], ["o"], COPY)
        assert mx.array_equal(run(kernel, [mx.ones(32)]), mx.ones(32))
        monkeypatch.setattr(toolchain, "run", None)


def test_what_is_refused_is_refused_again():
    for _ in range(2):
        kernel = metal_host.metal_kernel(
            "lossy", ["x"], ["o"], f"{INDEX} bfloat16_t b = x[i]; o[i] = b;"
        )
        with pytest.raises(CompileError, match="bfloat"):
            run(kernel, [mx.zeros(32)])


def test_a_header_may_name_its_file():
    header = '#line 1 "part.metal"\nfloat first(const float* p) { return p[0]; }\n'
    kernel = metal_host.metal_kernel("whole", ["x"], ["o"], f"{INDEX} o[i] = 0;", header)
    with pytest.raises(CompileError, match=r"part\.metal:1: error: `float\* p` has no address"):
        run(kernel, [mx.zeros(32)])
    header = '#line 1 "part.metal"\nfloat at(const device float* p, uint i) {\n return p[i]; }\n'
    kernel = metal_host.metal_kernel("whole", ["x"], ["o"], f"{INDEX} o[i] = at(x, i + 1);", header)
    with pytest.raises(KernelFault, match=r"at part\.metal:2"):
        run(kernel, [mx.zeros(32)])


def test_device_takes_the_place_of_mlx():
    if mx.metal.is_available():
        pytest.skip("MLX has Metal here: nothing is replaced")
    original = mx.fast.metal_kernel
    with metal_host.device(Checks(lane_orders=(metal_host.FORWARD, metal_host.REVERSE))):
        kernel = mx.fast.metal_kernel("copy", ["x"], ["o"], COPY)
        double = mx.compile(lambda x: run(kernel, [2 * x]))
        assert mx.array_equal(double(mx.ones(32)), mx.full((32,), 2.0))
    assert mx.fast.metal_kernel is original


def test_runs_without_watching_are_the_same():
    body = f"{INDEX} o[i] = simd_sum(x[i]) * x[i];"
    kernel = metal_host.metal_kernel("sum", ["x"], ["o"], body)
    x = mx.random.normal((32,), key=mx.random.key(0))
    watched = run(kernel, [x])
    with metal_host.checked(Checks(is_watched=False)):
        assert mx.array_equal(run(kernel, [x]), watched)
    np.testing.assert_allclose(watched, np.array(x).sum() * np.array(x), rtol=1e-5)
