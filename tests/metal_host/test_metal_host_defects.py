"""A kernel for each defect that the Metal host claims to find, and clean ones beside them.

A checker that cannot fail is worthless: each case breaks one thing and names the finding it wants.
Whoever adds a `Kind` adds its case; `test_every_kind_is_found` fails otherwise.
"""

from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import pytest

import metal_host
from metal_host import Checks, CompileError, KernelFault, Kind

pytestmark = pytest.mark.skipif(bool(metal_host.missing()), reason=metal_host.missing())

NAMES = """
uint t = thread_position_in_grid.x;
uint l = thread_position_in_threadgroup.x;
uint lane = thread_index_in_simdgroup;
uint group = simdgroup_index_in_threadgroup;
"""
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
SHARED = "threadgroup float s[64]; s[l] = x[t];"


@dataclass(frozen=True)
class Case:
    """A kernel of one input x and one output o, and how it is launched."""

    body: str
    header: str = ""
    inputs: dict[str, mx.array] = field(default_factory=dict)
    threads: int = 64
    threadgroup: int = 64
    shape: tuple[int, ...] = ()
    template: tuple[tuple[str, mx.Dtype], ...] = ()
    init_value: float | None = None
    atomic_outputs: bool = False
    checks: Checks = Checks()  # noqa: RUF009

    def run(self) -> mx.array:
        inputs = self.inputs or {"x": mx.random.normal((self.threads,), key=mx.random.key(1))}
        kernel = metal_host.metal_kernel(
            "broken",
            list(inputs),
            ["o"],
            NAMES + self.body,
            self.header,
            atomic_outputs=self.atomic_outputs,
        )
        with metal_host.checked(self.checks):
            (output,) = kernel(
                inputs=list(inputs.values()),
                template=self.template,
                grid=(self.threads, 1, 1),
                threadgroup=(self.threadgroup, 1, 1),
                output_shapes=[self.shape or (self.threads,)],
                output_dtypes=[mx.float32],
                init_value=self.init_value,
            )
        return output


CLEAN = {
    "elementwise": Case("o[t] = x[t];"),
    "reduction through threadgroup memory": Case(
        "threadgroup float s[2]; float v = simd_sum(x[t]); if (lane == 0) s[group] = v;"
        f"{BARRIER} o[t] = s[0] + s[1];"
    ),
    "exchange within a simdgroup after simdgroup_barrier": Case(
        f"{SHARED} simdgroup_barrier(mem_flags::mem_threadgroup); o[t] = s[l ^ 1];"
    ),
    "output that starts initialised": Case("o[t] += x[t];", init_value=0),
    "partial output that starts initialised": Case("if (t < 60) o[t] = x[t];", init_value=0),
    "vector load at an aligned address": Case(
        "float4 v = ((const device float4*)x)[t / 4]; o[t] = v[t % 4];"
    ),
    "shift by the width, which MSL masks": Case(
        "int z = int(x[t] * 0) + 32; o[t] = float(1u << z);"
    ),
    "atomics on an initialised output": Case(
        "atomic_fetch_add_explicit(&o[0], 1.0f, memory_order_relaxed);",
        atomic_outputs=True,
        shape=(1,),
        init_value=0,
    ),
    "bfloat by an explicit conversion": Case("bfloat b = bfloat(x[t]); o[t] = float(b);"),
    "short last threadgroup": Case("o[t] = x[t];", threads=100),
    "several lane orders": Case(
        f"{SHARED} {BARRIER} o[t] = s[63 - l];", checks=Checks(lane_orders=(0, 1, 2, 3))
    ),
}

BROKEN = {
    "read past the end": (Kind.READ_BOUNDS, Case("o[t] = x[t + 1];")),
    "read before the start": (Kind.READ_BOUNDS, Case("o[t] = x[int(t) - 1];")),
    "read past the end of an array in constant memory": (
        Kind.READ_BOUNDS,
        Case("o[t] = x[t] + c[3];", inputs={"x": mx.ones(64), "c": mx.ones(3)}),
    ),
    "write past the end": (Kind.WRITE_BOUNDS, Case("o[t] = 0; if (t == 63) o[t + 1] = 1;")),
    "write past the end, unwatched": (
        Kind.REDZONE,
        Case("o[t] = 0; if (t == 63) o[t + 1] = 1;", checks=Checks(is_watched=False)),
    ),
    "null pointer": (Kind.WILD, Case("device float* p = nullptr; o[t] = x[t]; p[t] = 1;")),
    "threadgroup array past its end": (
        Kind.THREADGROUP_BOUNDS,
        Case(f"threadgroup float s[63]; s[l] = 1; {BARRIER} o[t] = s[0];"),
    ),
    "private array past its end": (
        Kind.UNDEFINED,
        Case(
            "float a[4] = {0, 0, 0, 0}; for (int i = 0; i <= int(x[t] * 0) + 4; i++) a[i] = i;"
            "o[t] = a[0];"
        ),
    ),
    "input written through a cast": (
        Kind.INPUT_WRITTEN,
        Case("((device float*)x)[t] = 1; o[t] = 0;"),
    ),
    "no barrier": (Kind.RACE_THREADGROUP, Case(f"{SHARED} o[t] = s[63 - l];")),
    "barrier of mem_none": (
        Kind.RACE_THREADGROUP,
        Case(f"{SHARED} threadgroup_barrier(mem_flags::mem_none); o[t] = s[63 - l];"),
    ),
    "barrier of mem_device for threadgroup data": (
        Kind.RACE_THREADGROUP,
        Case(f"{SHARED} threadgroup_barrier(mem_flags::mem_device); o[t] = s[63 - l];"),
    ),
    "no second barrier in a loop": (
        Kind.RACE_THREADGROUP,
        Case(
            "threadgroup float s[64]; float a = 0; for (int i = 0; i < 3; i++) {"
            f"s[l] = x[t] + i; {BARRIER} a += s[(l + 1) % 64]; }} o[t] = a;"
        ),
    ),
    "exchange within a simdgroup without barrier": (
        Kind.RACE_THREADGROUP,
        Case(f"{SHARED} o[t] = s[l ^ 1];"),
    ),
    "simdgroup_barrier between simdgroups": (
        Kind.RACE_THREADGROUP,
        Case(f"{SHARED} simdgroup_barrier(mem_flags::mem_threadgroup); o[t] = s[63 - l];"),
    ),
    "race that one order of lanes hides": (
        Kind.RACE_THREADGROUP,
        Case(
            "threadgroup int s[1]; s[0] = 0; s[0] += 1; o[t] = s[0];",
            checks=Checks(lane_orders=(0, 1, 2)),
        ),
    ),
    "output exchanged without barrier": (
        Kind.RACE_DEVICE,
        Case("o[t] = x[t]; o[63 - t] += 1;"),
    ),
    "output exchanged, barrier without mem_device": (
        Kind.RACE_DEVICE,
        Case(
            f"o[t] = x[t]; {BARRIER} float v = o[63 - t];"
            "threadgroup_barrier(mem_flags::mem_device); o[t] = v;"
        ),
    ),
    "two threadgroups write one output": (
        Kind.RACE_BETWEEN_GROUPS,
        Case("o[l] = x[t];", threads=128, shape=(64,)),
    ),
    "one threadgroup reads what another wrote": (
        Kind.RACE_BETWEEN_GROUPS,
        Case("o[t] = x[t]; float v = o[(t + 64) % 128]; o[t] = v;", threads=128),
    ),
    "one threadgroup writes what a simdgroup of another read": (
        Kind.RACE_BETWEEN_GROUPS,
        Case(
            "float v = group == 0 ? o[0] : 0; if (t == 64) o[0] = 1; if (t < 127) o[t + 1] = v;",
            threads=128,
            init_value=0,
        ),
    ),
    "all lanes write one value": (
        Kind.SAME_VALUE,
        Case("o[t] = x[t]; o[0] = 7;", inputs={"x": mx.full((64,), 7.0)}),
    ),
    "order shows in the result": (
        Kind.ORDER_DEPENDENT,
        Case(
            f"threadgroup float s[1]; s[0] = float(l); {BARRIER} o[t] = s[0];",
            checks=Checks(lane_orders=(0, 1), is_watched=False),
        ),
    ),
    "threadgroup memory not written": (
        Kind.UNINITIALISED_THREADGROUP,
        Case(f"threadgroup float s[64]; if (l < 63) s[l] = x[t]; {BARRIER} o[t] = s[l];"),
    ),
    "output read before it is written": (Kind.UNINITIALISED_OUTPUT, Case("o[t] += x[t];")),
    "atomics on an uninitialised output": (
        Kind.UNINITIALISED_OUTPUT,
        Case(
            "atomic_fetch_add_explicit(&o[0], 1.0f, memory_order_relaxed);",
            atomic_outputs=True,
            shape=(1,),
        ),
    ),
    "output not fully written": (Kind.UNWRITTEN_OUTPUT, Case("if (t < 60) o[t] = x[t];")),
    "barrier in both branches": (
        Kind.BARRIER_DIVERGENCE,
        Case(
            f"{SHARED} if (l < 32) {{ {BARRIER} o[t] = s[l]; }} else {{ o[t] = s[l]; {BARRIER} }}"
        ),
    ),
    "barriers of different flags": (
        Kind.BARRIER_FLAGS,
        Case(
            "threadgroup_barrier(l < 32 ? mem_flags::mem_threadgroup : mem_flags::mem_device);"
            "o[t] = x[t];"
        ),
    ),
    "return before a barrier": (
        Kind.BARRIER_EXIT,
        Case(f"{SHARED} o[t] = 1; if (l > 40) return; {BARRIER} o[t] = s[40 - l];"),
    ),
    "simdgroup_barrier for some lanes": (
        Kind.DIVERGED_SIMDGROUP_BARRIER,
        Case("if (lane < 5) simdgroup_barrier(mem_flags::mem_none); o[t] = simd_sum(x[t]);"),
    ),
    "simd_sum for some lanes": (
        Kind.PARTIAL_SIMD,
        Case("float v = x[t]; if (lane < 16) v = simd_sum(v); o[t] = v;"),
    ),
    "simd_sum after some lanes returned": (
        Kind.PARTIAL_SIMD,
        Case("o[t] = 0; if (lane > 20) return; o[t] = simd_sum(x[t]);"),
    ),
    "shuffle from an inactive lane": (
        Kind.INACTIVE_LANE,
        Case("float v = x[t]; if (lane < 16) v = simd_shuffle(v, 20); o[t] = v;"),
    ),
    "shuffle from lane 32": (Kind.INACTIVE_LANE, Case("o[t] = simd_shuffle(x[t], 32);")),
    "shuffle from a lane that a short simdgroup lacks": (
        Kind.INACTIVE_LANE,
        Case("o[t] = simd_shuffle_xor(x[t], 16);", threads=40, threadgroup=40),
    ),
    "matrix operation for 31 lanes": (
        Kind.PARTIAL_MATRIX,
        Case(
            "simdgroup_float8x8 m(1.0f); if (lane < 31) simdgroup_store(m, o, 8); else o[0] = 0;",
            threads=32,
            threadgroup=32,
            shape=(64,),
        ),
    ),
    "bit field past the word's end": (
        Kind.BIT_FIELD_RANGE,
        Case("o[t] = float(extract_bits(uint(t), 30u, 4u));"),
    ),
    "vector load at an odd address": (
        Kind.UNDEFINED,
        Case("float4 v = *(const device float4*)(x + (t & 3) + 1); o[t] = v.x;"),
    ),
    "vector load that needs more alignment than a slice has": (
        Kind.UNDEFINED,
        Case(
            "float4 v = ((const device float4*)x)[t / 4]; o[t] = v[t % 4];",
            checks=Checks(misalign=4),
        ),
    ),
    "integer division by zero": (Kind.UNDEFINED, Case("int z = int(x[t] * 0); o[t] = 5 / z;")),
    "float to integer out of range": (
        Kind.UNDEFINED,
        Case("o[t] = float(int(x[t] * 0 + 3e10f));"),
    ),
    "fault of unwatched code": (
        Kind.FAULT,
        Case(
            "device float* p = (device float*)(ulong)(16 + t); o[t] = x[t]; p[0] = 1;",
            checks=Checks(is_watched=False),
        ),
    ),
    "endless recursion": (
        Kind.STACK_OVERFLOW,
        Case(
            "o[t] = f(int(x[t]));",
            header="int f(int n) { return n < -1000000000 ? 0 : f(n - 1) + f(n - 2) + 1; }",
        ),
    ),
    "more than 32 KiB of threadgroup memory": (
        Kind.THREADGROUP_MEMORY,
        Case(f"threadgroup float s[9000]; s[l] = 1; {BARRIER} o[t] = s[l];"),
    ),
}

REFUSED = {
    "device pointer as thread pointer": (
        "cannot initialize",
        Case("thread const float* p = x; o[t] = p[0];"),
    ),
    "device pointer for a threadgroup parameter": (
        "no matching function",
        Case("o[t] = g(x);", header="float g(threadgroup const float* p) { return p[0]; }"),
    ),
    "pointer without address space": (
        "no address space",
        Case("const float* p = x + t; o[t] = p[0];"),
    ),
    "parameter without address space": (
        "no address space",
        Case("o[t] = g(x + t);", header="float g(const float* p) { return p[0]; }"),
    ),
    "double": ("double", Case("double d = x[t]; o[t] = d;")),
    "long long": ("long long", Case("long long d = t; o[t] = d;")),
    "float that becomes bfloat": ("bfloat", Case("bfloat b = x[t]; o[t] = float(b);")),
    "constant that becomes bfloat in a template": (
        "bfloat",
        Case("V total = 1.0f; o[t] = float(total) + x[t];", template=(("V", mx.bfloat16),)),
    ),
    "vector that becomes another": (
        "conversion|initializ|cannot",
        Case("int4 i = int4(1); float4 f = i; o[t] = f.x;"),
    ),
    "write to a const input": ("read-only|const", Case("x[t] = 1; o[t] = 0;")),
    "three components of four": (
        "wrong number",
        Case("float4 f = float4(1, 2, 3); o[t] = f.x;"),
    ),
    "std::": ("std", Case("o[t] = std::max(x[t], 1.0f);")),
    "goto": ("goto", Case("if (t > 3) goto e; o[t] = 1; e: o[t] = 2;")),
    "new": ("`new` is not available", Case("device float* p = new float[3]; o[t] = p[0];")),
    "throw": ("throw", Case("if (t > 3) throw 1; o[t] = 1;")),
    "virtual": ("virtual", Case("o[t] = 1;", header="struct A { virtual void f(); };")),
    "initialised threadgroup variable": (
        "initialised",
        Case("threadgroup float s[4] = {0}; o[t] = s[0];"),
    ),
    "unknown name": ("undeclared", Case("o[thread_position_in_grd.x] = 1;")),
    "simd_sum of 64 bits": ("deleted", Case("o[t] = float(simd_sum((long)t));")),
}


@pytest.mark.parametrize("name", CLEAN)
def test_clean_kernels_raise_nothing(name):
    CLEAN[name].run()


@pytest.mark.parametrize("name", BROKEN)
def test_defects_are_found(name):
    kind, case = BROKEN[name]
    with pytest.raises(KernelFault) as caught:
        case.run()
    assert kind in caught.value.kinds, str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_metal_refuses_does_not_compile(name):
    message, case = REFUSED[name]
    with pytest.raises(CompileError, match=message):
        case.run()


def test_every_kind_is_found():
    assert {kind for kind, _ in BROKEN.values()} == set(Kind)


def test_uninitialised_private_values_reach_the_output_as_garbage():
    output = np.array(Case("float a[2]; a[0] = x[t]; o[t] = a[int(x[t] * 0) + 1];").run())
    assert np.all(np.isnan(output) | (np.abs(output) > 1e8))


def test_more_threads_than_metal_has_are_refused():
    with pytest.raises(ValueError, match=r"Thread group size \(2048\)"):
        Case("o[t] = 1;", threads=2048, threadgroup=2048).run()


def test_tolerated_kinds_do_not_raise():
    tolerant = Checks(tolerated=metal_host.NOTES)
    Case("float v = x[t]; if (lane < 16) v = simd_sum(v); o[t] = v;", checks=tolerant).run()


def test_a_finding_names_place_thread_and_line():
    with pytest.raises(KernelFault) as caught:
        Case("\n\no[t] = x[t + 1];").run()
    (finding,) = caught.value.findings
    assert finding.kind is Kind.READ_BOUNDS
    assert finding.detail == "4 bytes at byte 256 of x, which has 256, by thread 63"
    file, _, line = finding.where.partition(":")
    assert file == "broken.metal"
    assert int(line) == SIGNATURE_LINES + NAMES.count("\n") + 3
    assert finding.count == 1


SIGNATURE_LINES = 7
