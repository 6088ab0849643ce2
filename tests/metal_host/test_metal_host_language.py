"""The Metal library and language as the host understands them, against numpy.

On a Mac the same cases run on the GPU, and so say whether the host understands them rightly.
"""

from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import pytest

import metal_host
from metal_host import Checks

RNG = np.random.default_rng(0)
LANES = np.arange(32)
X = RNG.normal(size=32).astype(np.float32)
Y = RNG.normal(size=32).astype(np.float32)
N = RNG.integers(-50, 50, 32).astype(np.int32)
A = RNG.normal(size=(8, 8)).astype(np.float32)
B = RNG.normal(size=(8, 8)).astype(np.float32)
F32, F16 = np.float32, np.float16


@dataclass(frozen=True)
class Case:
    """A body that computes `o` from x (and y) with 32 threads, and what o has to be."""

    body: str
    expected: object
    tolerance: float = 0.0
    inputs: dict[str, np.ndarray] = field(default_factory=lambda: {"x": X})
    dtype: mx.Dtype = mx.float32
    header: str = ""
    threads: int = 32
    init_value: float | None = None

    def run(self) -> np.ndarray:
        shape = np.shape(self.expected) or (32,)
        with metal_host.device():
            kernel = mx.fast.metal_kernel(
                "case_",
                list(self.inputs),
                ["o"],
                "uint l = thread_index_in_simdgroup;\n" + self.body,
                self.header,
                atomic_outputs=self.init_value is not None,
            )
            (output,) = kernel(
                inputs=[mx.array(value) for value in self.inputs.values()],
                grid=(self.threads, 1, 1),
                threadgroup=(self.threads, 1, 1),
                output_shapes=[shape],
                output_dtypes=[self.dtype],
                init_value=self.init_value,
            )
            return np.array(output)


XY = {"x": X, "y": Y}
INT = {"inputs": {"x": N}, "dtype": mx.int32}


def to_bfloat(values):
    """Round float32 to the nearest bfloat16, ties to even."""
    bits = np.asarray(values, F32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(F32)


def fill_up(down_from):
    return np.where(LANES >= 3, X[LANES - 3], down_from)


SIMD = {
    "simd_sum": Case("o[l] = simd_sum(x[l]);", np.full(32, X.sum()), 1e-5),
    "simd_product": Case("o[l] = simd_product(x[l]);", np.full(32, X.prod()), 1e-5),
    "simd_min": Case("o[l] = simd_min(x[l]);", np.full(32, X.min())),
    "simd_max": Case("o[l] = simd_max(x[l]);", np.full(32, X.max())),
    "simd_and": Case("o[l] = simd_and(x[l]);", np.full(32, np.bitwise_and.reduce(N)), **INT),
    "simd_or": Case("o[l] = simd_or(x[l]);", np.full(32, np.bitwise_or.reduce(N)), **INT),
    "simd_xor": Case("o[l] = simd_xor(x[l]);", np.full(32, np.bitwise_xor.reduce(N)), **INT),
    "inclusive sum": Case("o[l] = simd_prefix_inclusive_sum(x[l]);", np.cumsum(N), **INT),
    "exclusive sum": Case("o[l] = simd_prefix_exclusive_sum(x[l]);", np.cumsum(N) - N, **INT),
    "exclusive product": Case(
        "o[l] = simd_prefix_exclusive_product(x[l]);",
        np.concatenate([[1], np.cumprod(X)[:-1]]),
        1e-5,
    ),
    "vector sum": Case(
        "float4 v = simd_sum(float4(x[l], 1, 2, l)); o[l] = v.x + v.y + v.z + v.w;",
        np.full(32, X.sum() + 32 + 64 + 496),
        1e-5,
    ),
    "shuffle": Case("o[l] = simd_shuffle(x[l], (l * 7) % 32);", X[(LANES * 7) % 32]),
    "shuffle xor": Case("o[l] = simd_shuffle_xor(x[l], 5);", X[LANES ^ 5]),
    "shuffle down keeps the highest lanes": Case(
        "o[l] = simd_shuffle_down(x[l], 3);", np.where(LANES < 29, X[(LANES + 3) % 32], X)
    ),
    "shuffle up keeps the lowest lanes": Case("o[l] = simd_shuffle_up(x[l], 3);", fill_up(X)),
    "rotate down": Case("o[l] = simd_shuffle_rotate_down(x[l], 3);", X[(LANES + 3) % 32]),
    "rotate up": Case("o[l] = simd_shuffle_rotate_up(x[l], 3);", X[LANES - 3]),
    "fill up": Case(
        "o[l] = simd_shuffle_and_fill_up(x[l], y[l], 3);", fill_up(Y[LANES - 3]), inputs=XY
    ),
    "fill down": Case(
        "o[l] = simd_shuffle_and_fill_down(x[l], y[l], 3);",
        np.where(LANES < 29, X[(LANES + 3) % 32], Y[(LANES + 3) % 32]),
        inputs=XY,
    ),
    "broadcast": Case(
        "o[l] = simd_broadcast(x[l], 17) + simd_broadcast_first(x[l]);",
        np.full(32, X[17] + X[0]),
    ),
    "ballot": Case(
        "o[l] = uint((ulong)simd_ballot(x[l] > 0));",
        np.full(32, sum(1 << int(i) for i in LANES if X[i] > 0), np.uint32),
        dtype=mx.uint32,
    ),
    "any and all": Case(
        "o[l] = uint(simd_any(l == 5)) + 2 * uint(simd_all(l < 31)) + 4 * uint(simd_all(l < 32));",
        np.full(32, 5, np.uint32),
        dtype=mx.uint32,
    ),
    "quad": Case(
        "o[l] = quad_sum(x[l]) + quad_shuffle_xor(x[l], 1);",
        X.reshape(8, 4).sum(1).repeat(4) + X[LANES ^ 1],
        1e-6,
    ),
}

TYPES = {
    "vectors and swizzles": Case(
        "float4 v = float4(x[l], float2(2, 3), 4); v.xy = v.yx; v.zw *= 2.0f; float3 u = v.wzy;"
        "o[l] = u.x + 10 * u.y + 100 * u.z + 1000 * v.x + dot(float3(1), float3(1, 2, 3));",
        8 + 60 + 100 * X + 2000 + 6,
        1e-4,
    ),
    "bytes as a word": Case(
        "uchar4 c = uchar4(1, 2, 3, 255); o[l] = as_type<uint>(c);",
        np.full(32, 0xFF030201, np.uint32),
        dtype=mx.uint32,
    ),
    "vector conversions truncate": Case(
        "int4 i = int4(float4(1.9f, -1.9f, 2.5f, x[l] * 0 + 7)); half4 h = half4(i);"
        "float4 f = float4(h) + float4(uchar4(1));"
        "o[l] = f.x + 10 * f.y + 100 * f.z + 1000 * f.w + vec<float, 2>(3).y;",
        np.full(32, 2 + 0 + 300 + 8000 + 3.0),
    ),
    "packed_float3": Case(
        "float3 v = ((const device packed_float3*)x)[l % 10];"
        "o[l] = v.x + v.y * 10 + v.z * 100 + sizeof(packed_float3) + 100 * sizeof(float3);",
        [X[3 * i] + 10 * X[3 * i + 1] + 100 * X[3 * i + 2] + 1612 for i in LANES % 10],
        1e-5,
    ),
    "half rounds every operation": Case(
        "half a = half(x[l]), b = half(y[l]); half c = a * b + a; o[l] = float(c);",
        (X.astype(F16) * Y.astype(F16) + X.astype(F16)).astype(F32),
        inputs=XY,
    ),
    "bfloat rounds every operation": Case(
        "bfloat a = bfloat(x[l]), b = bfloat(y[l]); bfloat c = a * b + a; o[l] = float(c);",
        to_bfloat(to_bfloat(to_bfloat(X) * to_bfloat(Y)) + to_bfloat(X)),
        inputs=XY,
    ),
    "half becomes bfloat": Case(
        "o[l] = float(bfloat(half(x[l])));", to_bfloat(X.astype(F16).astype(F32))
    ),
    "literals are float": Case("o[l] = sizeof(1.0) * 10 + sizeof(1.0h);", np.full(32, 42.0)),
    "structs, functors and templates": Case(
        "Box<float, 4> b(x[l]); o[l] = b.sum() + twice<Negate>(x[l]);",
        6 * X + 2 * X,
        1e-5,
        header="""
template <typename T, int N> struct Box {
  T v[N];
  Box(T a) thread { for (int i = 0; i < N; i++) v[i] = a * i; }
  T sum() const thread { T s = 0; for (int i = 0; i < N; i++) s += v[i]; return s; }
};
struct Negate { float operator()(float a) const thread { return -a; } };
template <typename F> METAL_FUNC float twice(float x) { return F()(F()(x)) * 2; }
""",
    ),
    "constant tables and structs in device memory": Case(
        "Pair p = ((const device Pair*)x)[l % 16]; o[l] = p.a * TABLE[l % 3] + p.b;",
        [X[2 * (i % 16)] * (1 + i % 3) + X[2 * (i % 16) + 1] for i in LANES],
        1e-6,
        header="struct Pair { float a, b; }; constant float TABLE[3] = {1, 2, 3};",
    ),
}

FUNCTIONS = {
    "counting bits": Case(
        "uint u = uint(x[l] * 0) + 0x00f0f00fu;"
        "o[l] = popcount(u) + clz(u) * 100 + ctz(u) * 1000 + rotate(u, 4u) % 7;",
        np.full(32, 12 + 800 + (0x0F0F00F0 % 7.0)),
    ),
    "bit fields": Case(
        "uint u = 0xabcd1234u + uint(x[l] * 0);"
        "o[l] = extract_bits(u, 8, 8) + float(insert_bits(0u, 5u, 4, 4)) * 1000;",
        np.full(32, 0x12 + 80000.0),
    ),
    "bit fields of negative numbers": Case(
        "o[l] = extract_bits(int(l) - 16, 0u, 4u) + reverse_bits(int(l)) * 0;",
        (LANES - 16 + 8) % 16 - 8.0,
    ),
    "elementary": Case(
        "float v = x[l]; o[l] = exp(v) + fma(v, v, 1.0f) + rsqrt(v * v + 1) + fast::exp2(v)"
        " + precise::tanh(v) + sinpi(v);",
        np.exp(X) + X * X + 1 + 1 / np.sqrt(X * X + 1) + 2.0**X + np.tanh(X) + np.sin(np.pi * X),
        1e-5,
    ),
    "rounding and choosing": Case(
        "float v = x[l]; o[l] = select(1.0f, 2.0f, v > 0) + clamp(v, -0.5f, 0.5f) + sign(v)"
        " + floor(v) + rint(v) + max(v, 0.0f) + abs(v);",
        np.where(X > 0, 2, 1)
        + np.clip(X, -0.5, 0.5)
        + np.sign(X)
        + np.floor(X)
        + np.rint(X)
        + np.maximum(X, 0)
        + np.abs(X),
        1e-5,
    ),
    "NaN is not the larger": Case(
        "o[l] = max(NAN, x[l]) + metal::fmin(x[l], NAN) + float(isnan(x[l] * NAN));",
        2 * X + 1,
        1e-6,
    ),
}

MEMORY = {
    "threadgroup atomics": Case(
        "threadgroup atomic_int c; uint t = thread_index_in_threadgroup;"
        "if (t == 0) atomic_store_explicit(&c, 0, memory_order_relaxed);"
        "threadgroup_barrier(mem_flags::mem_threadgroup);"
        "atomic_fetch_add_explicit(&c, int(t), memory_order_relaxed);"
        "threadgroup_barrier(mem_flags::mem_threadgroup);"
        "o[t] = atomic_load_explicit(&c, memory_order_relaxed);",
        np.full(128, 127 * 64),
        dtype=mx.int32,
        threads=128,
    ),
    "compare and exchange until the largest stays": Case(
        "float v = x[l]; float e = atomic_load_explicit(&o[0], memory_order_relaxed);"
        "while (v > e && !atomic_compare_exchange_weak_explicit(&o[0], &e, v,"
        " memory_order_relaxed, memory_order_relaxed)) {}",
        [X.max()],
        init_value=-1e30,
    ),
    "atomic minimum and or": Case(
        "atomic_fetch_min_explicit(&o[0], l + 3, memory_order_relaxed);"
        "atomic_fetch_or_explicit(&o[1], 1u << (l % 8), memory_order_relaxed);",
        np.array([3, 1000 | 255], np.uint32),
        dtype=mx.uint32,
        init_value=1000,
    ),
    "two threadgroup variables of one declaration": Case(
        "threadgroup float a[32], b[4][8]; a[l] = x[l]; b[l / 8][l % 8] = 2 * x[l];"
        "threadgroup_barrier(mem_flags::mem_threadgroup);"
        "o[l] = a[31 - l] + b[3 - l / 8][7 - l % 8];",
        3 * X[::-1],
        1e-6,
    ),
}


def product_case(kind, dtype, tolerance):
    a, b = A.astype(dtype), B.astype(dtype)
    return Case(
        f"simdgroup_matrix<{kind}, 8, 8> a, b; simdgroup_float8x8 c(0.0f); simdgroup_load(a, x, 8);"
        "simdgroup_load(b, y, 8, ulong2(0, 0), true); simdgroup_multiply_accumulate(c, a, b, c);"
        "simdgroup_multiply_accumulate(c, a, b, c); simdgroup_store(c, o, 8);",
        2 * (a.astype(F32) @ b.astype(F32).T),
        tolerance,
        inputs={"x": a, "y": b},
    )


MATRICES = {
    "float: load, transpose, multiply, store": product_case("float", F32, 1e-5),
    "half: load, transpose, multiply, store": product_case("half", F16, 3e-3),
    "threadgroup memory, diagonal and filled": Case(
        "threadgroup float s[64]; simdgroup_float8x8 d(2.0f), r;"
        "simdgroup_float8x8 f = make_filled_simdgroup_matrix<float, 8, 8>(3.0f);"
        "simdgroup_multiply(r, d, f); simdgroup_store(r, s, 8);"
        "simdgroup_barrier(mem_flags::mem_threadgroup); o[l] = s[l]; o[l + 32] = s[l + 32];",
        np.full(64, 6.0),
    ),
}

CASES = SIMD | TYPES | FUNCTIONS | MEMORY | MATRICES


@pytest.mark.parametrize("name", CASES)
def test_results_equal_those_of_numpy(name):
    case = CASES[name]
    np.testing.assert_allclose(case.run(), case.expected, rtol=case.tolerance, atol=case.tolerance)


def test_positions_in_short_threadgroups():
    """A grid of 4 x 6 x 2 in threadgroups of 2 x 4 x 2: the second row of them is half as high."""
    body = """
    uint3 g = thread_position_in_grid, p = threadgroup_position_in_grid;
    uint i = g.x + 4 * (g.y + 6 * g.z);
    o[i] = p.x * 100000 + p.y * 10000 + p.z * 1000 + thread_index_in_threadgroup * 10
         + threads_per_threadgroup.y + dispatch_threads_per_threadgroup.y * 1000000
         + simdgroups_per_threadgroup * 10000000;
    """
    with metal_host.device():
        kernel = mx.fast.metal_kernel("positions", [], ["o"], body)
        (output,) = kernel(
            inputs=[],
            grid=(4, 6, 2),
            threadgroup=(2, 4, 2),
            output_shapes=[(48,)],
            output_dtypes=[mx.uint32],
        )
    z, y, x = np.indices((2, 6, 4))
    height = np.where(y < 4, 4, 2)
    index = x % 2 + 2 * (y % 4 + height * z)
    expected = (x // 2) * 100000 + (y // 4) * 10000 + index * 10 + height + 4000000 + 10000000
    np.testing.assert_array_equal(np.array(output), expected.reshape(-1))


def run_here(body, x, checks):
    """Run an elementwise body on the host, whatever device MLX has."""
    if reason := metal_host.missing():
        pytest.skip(reason)
    kernel = metal_host.metal_kernel(
        "case_", ["x"], ["o"], "uint l = thread_position_in_grid.x;" + body
    )
    with metal_host.checked(checks):
        (output,) = kernel(
            inputs=[mx.array(x)],
            grid=(32, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(32,)],
            output_dtypes=[mx.float32],
        )
    return np.array(output)


@pytest.mark.parametrize("flush", [False, True])
def test_flushing_denormal_numbers(flush):
    smallest_normal = np.full(32, np.finfo(F32).tiny)
    output = run_here("o[l] = x[l] * 0.5f;", smallest_normal, Checks(flush_to_zero=flush))
    np.testing.assert_array_equal(output, 0 if flush else smallest_normal / 2)


def test_jitter_moves_approximate_functions_alone():
    checks = Checks(jitter_ulp=4)
    exact = run_here("o[l] = sqrt(abs(x[l]));", X, checks)
    np.testing.assert_array_equal(exact, np.sqrt(np.abs(X)))
    moved = run_here("o[l] = exp(x[l]);", X, checks)
    ulps = np.abs(moved.view(np.int32) - np.exp(X).view(np.int32))
    assert 0 < ulps.max() <= 4 + 2  # numpy's exp and libm's differ by up to 2


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_lanes_run_in_the_order_asked_for(order):
    body = "o[l] = atomic_fetch_add_explicit((device atomic_int*)&n[0], 1, memory_order_relaxed);"
    if reason := metal_host.missing():
        pytest.skip(reason)
    kernel = metal_host.metal_kernel(
        "order", [], ["o", "n"], "uint l = thread_position_in_grid.x;" + body
    )
    with metal_host.checked(Checks(lane_orders=(order,))):
        turns, _ = kernel(
            inputs=[],
            grid=(32, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(32,), (1,)],
            output_dtypes=[mx.int32, mx.int32],
            init_value=0,
        )
    turns = np.array(turns).tolist()
    forward = list(range(32))
    assert sorted(turns) == forward
    assert (turns == forward) is (order == metal_host.FORWARD)
    assert (turns == forward[::-1]) is (order == metal_host.REVERSE)
