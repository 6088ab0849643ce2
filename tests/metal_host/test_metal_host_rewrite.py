"""The rewriter's passes on the smallest text that needs each."""

import pytest

from metal_host.rewrite import RewriteError, rewrite

VARIABLE = (
    "typedef {kind} msl_variable_{n}{dimensions}; __local msl_variable_{n} &{name} = "
    "*(__local msl_variable_{n} *)(ulong)"
    "msl_threadgroup_variable({n}, sizeof(msl_variable_{n}), alignof({kind}));"
)

PASSES = {
    "address spaces": (
        "float f(const device float* x, threadgroup int* s) {}",
        "float f(const __global float* x, __local int* s) {}",
    ),
    "constant objects are const": (
        "constant float TABLE[2] = {1, 2};void f(constant int& n) const constant;",
        "const __constant float TABLE[2] = {1, 2};"
        "void f(const __constant int& n) const __constant;",
    ),
    "const constant stays": ("f(const constant int* n)", "f(const __constant int* n)"),
    "attributes": (
        "[[kernel]] void f(device float* y [[buffer(0)]]) {}",
        " void f(__global float* y ) {}",
    ),
    "subscripts are no attributes": ("y[x[i]] = z[i[0]];", "y[x[i]] = z[i[0]];"),
    "kernel as a keyword": ("kernel void f(device int* y) {}", "void f(__global int* y) {}"),
    "vector casts": (
        "v = float4(a, float2(1), 2);w = static_cast<metal::half2>(u);",
        "v = ::metal::make<float4>(a, ::metal::make<float2>(1), 2);"
        "w = ::metal::make<metal::half2>(u);",
    ),
    "vec<T, N>": ("v = vec<T, 4>(0);", "v = ::metal::make<vec<T, 4>>(0);"),
    "vector declared with arguments": (
        "{ float2 v(a, b); }",
        "{ float2 v = ::metal::make<float2>(a, b); }",
    ),
    "function that returns a vector": ("float2 f(float a) {}", "float2 f(float a) {}"),
    "names of vector types": (
        "using V = vec<float, 4>; typedef half2 H;v = V(1); h = H(2);",
        "using V = vec<float, 4>; typedef half2 H;"
        "v = ::metal::make<V>(1); h = ::metal::make<H>(2);",
    ),
    "conversions to bfloat": (
        "b = bfloat(h); c = static_cast<T>(h); p = static_cast<device T*>(q);",
        "b = ::metal::scast<bfloat>(h); c = ::metal::scast<T>(h); p = static_cast<__global T*>(q);",
    ),
    "literals of bfloat": ("b = 1.5bf; x = 0xbf;", "b = ((bfloat)1.5f); x = 0xbf;"),
    "constructors": (
        "struct Box { Box(float a) thread {} float get() thread {} };",
        "struct Box { Box(float a) {} float get() __private {} };",
    ),
    "references to const": (
        "f(const thread T& a, thread T& b)",
        "f(const T& a, __private T& b)",
    ),
    "words of OpenCL": ("float local = global;", "float local_ = global_;"),
    "as_type and atomic": (
        "as_type<uint>(x); atomic<int> a;",
        "::metal::as_type_<uint>(x); atomic_<int> a;",
    ),
    "threadgroup array": (
        "{ threadgroup float s[4]; }",
        "{ " + VARIABLE.format(kind="float", n=1, name="s", dimensions=" [ 4 ]") + " }",
    ),
    "several threadgroup variables": (
        "{ threadgroup vec<T, 2> a[N][2], b; }",
        "{ "
        + VARIABLE.format(kind="vec < T , 2 >", n=1, name="a", dimensions=" [ N ] [ 2 ]")
        + " "
        + VARIABLE.format(kind="vec < T , 2 >", n=2, name="b", dimensions="")
        + " }",
    ),
    "pointers to threadgroup memory": (
        "{ threadgroup float* p = s; f((threadgroup int*)p); }",
        "{ __local float* p = s; f((__local int*)p); }",
    ),
}


def squeeze(text):
    return " ".join(text.split()).replace(" )", ")").replace("( ", "(")


@pytest.mark.parametrize("name", PASSES)
def test_rewritten_text(name):
    before, after = PASSES[name]
    assert squeeze(rewrite(before).text) == squeeze(after)


def test_lines_stay_where_they_were():
    text = "[[kernel,\n max_total_threads_per_threadgroup(64)]]\nvoid f(device\nint* y) {\n}\n"
    assert rewrite(text).text.count("\n") == text.count("\n")


def test_kernels_are_recorded():
    unit = rewrite(
        "template <typename T> [[kernel]] void f(const constant int& n [[buffer(3)]], device T* y,"
        " uint3 p [[thread_position_in_grid]]) {}"
        'template [[host_name("f_" "int")]] [[kernel]] decltype(f<int>) f<int>;'
        "constant bool flag [[function_constant(7)]];"
    )
    (kernel,) = unit.kernels.values()
    assert kernel.name == "f"
    assert [(p.name, p.attribute, p.space) for p in kernel.parameters] == [
        ("n", "buffer", "constant"),
        ("y", "buffer", "device"),
        ("p", "thread_position_in_grid", ""),
    ]
    assert unit.instantiations == {"f_int": "f<int>"}
    assert unit.function_constants == {"flag": 7}
    assert "= MSL_CONSTANT_flag;" in unit.text
    assert "host_name" not in unit.text


def test_threadgroup_variables_are_named():
    unit = rewrite("{ threadgroup int a, b[2]; }")
    assert unit.variables == {1: "a", 2: "b"}


COMPLAINTS = {
    "float* p = x;": "`float* p` has no address space",
    "void f(const int& n) {}": "`int& n` has no address space",
    "y = std::max(a, b);": "no std:: library in MSL",
    "double d;": "`double` is not available in MSL",
    "unsigned long long n;": "`long long` is not available in MSL",
    "p = new float[2];": "`new` is not available in MSL",
    "{ threadgroup int n = 0; }": "a threadgroup variable cannot be initialised",
}


@pytest.mark.parametrize("text", COMPLAINTS)
def test_what_metal_lacks_is_complained_about(text):
    unit = rewrite(f'# 3 "k.metal"\n\n{{ }} {text}')
    assert unit.complaints == [f"k.metal:4: error: {COMPLAINTS[text]}"]


@pytest.mark.parametrize(
    "text",
    [
        "const device float* p = x;",
        "void f(thread float& x, constant const int* n) {}",
        "y = a * b; z = a & b; if (T * N > 2) {}",
        "f(float4(1) * x);",
        "T(const T&) = delete;",
    ],
)
def test_what_metal_has_is_not_complained_about(text):
    assert rewrite(text).complaints == []


def test_text_that_cannot_be_followed_is_refused():
    with pytest.raises(RewriteError, match=r"kernel:2\] needed \), got the end"):
        rewrite("\nkernel void f(device int* y {")
    with pytest.raises(
        RewriteError, match=r"needed a buffer or an attribute, got parameter 'int n'"
    ):
        rewrite("kernel void f(int n) {}")
