"""The native library against float64 and stock MLX, by every kind of instructions that are here."""

import ctypes
import errno
import fcntl
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from hlwq_mlx.errors import DeviceError, ShapeError
from hlwq_mlx.gemma4 import by_cpu
from hlwq_mlx.gemma4.masks import Causal, Seen
from hlwq_mlx.gemma4.rope import rotate
from hlwq_mlx.quant import codec, ops
from hlwq_mlx.quant.activation import Activation
from hlwq_mlx.quant.backends import choose
from hlwq_mlx.quant.backends.native import build
from hlwq_mlx.quant.backends.native import library as native
from hlwq_mlx.quant.backends.native.library import Norm, Rest, Weight, floats
from hlwq_mlx.quant.backends.native.product import Native, NativeExperts, NativeGateUp, NativeRows
from hlwq_mlx.quant.layers import pad_table
from hlwq_mlx.quant.selftest import random_matrix
from hlwq_mlx.quant.tables import centroids

WIDTHS = range(1, 9)
INSTRUCTIONS = [*build.INSTRUCTIONS[build.machine()]]
EXACT_BOUND = 1e-6
SLOWER = "products run by stock MLX, many times slower:"


@pytest.fixture(params=INSTRUCTIONS)
def library(request):
    """The library by one kind of instructions."""
    found = native.require_library()
    best = found.instructions
    if not found.use(request.param):
        pytest.skip(f"{request.param}: not run, this processor has it not")
    yield found
    found.use(best)


def rotated(x):
    return np.array(codec.hadamard(x)).astype(np.float64)


def distance(got, expected):
    expected = np.asarray(expected, np.float64)
    return np.linalg.norm(np.asarray(got) - expected) / np.linalg.norm(expected)


def rows(count, columns=512):
    return mx.random.normal((count, columns), key=mx.random.key(count))


def weight_of(matrix):
    return np.array(codec.rotated_weight(matrix)).astype(np.float64)


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_product_is_that_of_float64_and_a_row_the_same_alone(bits, library):
    matrix, x = random_matrix(bits), rows(33)
    product = Native(matrix, library)
    y = np.array(product(Activation(x)))
    assert distance(y, rotated(x) @ weight_of(matrix).T) < EXACT_BOUND
    for count in (1, 2, 7, 8):
        np.testing.assert_array_equal(np.array(product(Activation(x[:count]))), y[:count])
    for threads in (1, 5):
        library.set_threads(threads)
        np.testing.assert_array_equal(np.array(product(Activation(x))), y)
    library.set_threads(native.thread_count())


@pytest.mark.parametrize("shift", [0, 0.01])
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_table_need_not_be_its_own_mirror_image(bits, shift, library):
    table = mx.array(pad_table(centroids("clip4_100", bits))) + shift
    matrix, x = replace(random_matrix(bits), centroids=table), rows(7)
    product = Native(matrix, library)
    y = np.array(product(Activation(x)))
    assert distance(y, rotated(x) @ weight_of(matrix).T) < EXACT_BOUND
    np.testing.assert_array_equal(np.array(product(Activation(x[:1]))), y[:1])


def test_the_default_mode_is_exact_and_another_is_refused(monkeypatch):
    monkeypatch.delenv(native.MODE, raising=False)
    assert not native.is_integer()
    monkeypatch.setenv(native.MODE, "fast")
    with pytest.raises(DeviceError, match="needed exact or integer, got fast"):
        native.is_integer()


@pytest.mark.parametrize("bits", WIDTHS)
def test_gate_up_experts_and_rows_are_those_of_the_twins(bits, library):
    matrix, x = random_matrix(bits), rows(9)
    gated = np.array(NativeGateUp(matrix, library)(Activation(x)))
    assert distance(gated, np.array(codec.geglu(codec.hadamard(x), matrix))) < 3e-6
    experts = mx.array([[0, 6], [6, 3], [1, 2]] * 3)
    chosen = np.array(NativeExperts(matrix, 7, library)(Activation(x), experts))
    assert (
        distance(chosen, np.array(codec.gather_qmv(codec.hadamard(x), experts, matrix, 7))) < 1e-6
    )
    y = np.array(Native(matrix, library)(Activation(x))).reshape(9, 7, 10)
    np.testing.assert_array_equal(chosen[1, 1], y[1, 3])
    ids = mx.array([[3, 69], [0, 3]])
    found = np.array(NativeRows(matrix, library)(ids))
    assert distance(found, np.array(codec.embed(ids, matrix))) < EXACT_BOUND


def test_columns_that_fill_no_block(library):
    matrix, x = random_matrix(3), rows(4, 400)
    padded = mx.pad(x, [(0, 0), (0, 112)])
    y = np.array(Native(matrix, library)(Activation(x)))
    assert distance(y, rotated(padded) @ weight_of(matrix).T) < EXACT_BOUND


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_plain_weights(dtype, library):
    weight = mx.random.normal((37, 200), key=mx.random.key(2)).astype(dtype)
    x = floats(rows(13, 201)[:, 1:])
    y = library.multiply(Weight.plain(weight), x)
    exact = np.array(weight.astype(mx.float32)).astype(np.float64)
    assert distance(y, x.astype(np.float64) @ exact.T) < EXACT_BOUND
    np.testing.assert_array_equal(library.multiply(Weight.plain(weight), x[5:6]), y[5:6])


def test_operations_between_products(library):
    x, update, weight = rows(3, 77), rows(4, 77)[:3], rows(5, 77)[0]
    norm = Norm(floats(weight), 1e-6, 0.7, floats(weight))
    h, normed = library.residual_norm(norm, floats(x), floats(update))
    wanted = codec.residual_norm_float32(x, update, weight, mx.array([0.7]), 1e-6, weight)
    assert distance(h, np.array(wanted[0])) < 1e-6
    assert distance(normed, np.array(wanted[1])) < 1e-6
    scores = np.concatenate([np.geomspace(1e-6, 300, 50), [0.0]]).astype(np.float32)[None]
    scores = np.concatenate([scores, -scores])
    wanted = 30 * np.tanh(scores.astype(np.float64) / 30)
    np.testing.assert_allclose(library.cap_scores(scores, 30.0), wanted, rtol=5e-7, atol=0)
    # Far from zero, too, where gelu is 0 or the identity.
    gate = 40 * x
    y = library.gelu_mul(floats(gate), floats(update))
    assert distance(y, np.array(codec.gelu_mul_float32(gate, update))) < 1e-6


def test_a_layer_norms_what_arrives_as_the_layer_before_would_have(library):
    x, update, norm = rows(3, 77), rows(4, 77)[:3], nn.RMSNorm(77, 1e-6)
    norm.weight = rows(5, 77)[0]
    own = ops.fused_ops(77, 1e-6, 0)
    h, normed = own.residual_norm(x, update, norm, norm)
    assert mx.array_equal(own.norm(h, norm).plain, normed.plain)


def own_bytes():
    """What this process has of its own in memory, without what was freed."""
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what the process has in memory")
@pytest.mark.parametrize("of_experts", [False, True])
def test_little_is_kept_of_what_many_rows_needed(of_experts):
    library, K, inner = native.require_library(), 512, 2048
    x, chosen = np.ones((4096, K), np.float32), np.zeros((4096, 8), np.uint32)
    norm = Norm(np.ones(K, np.float32), 1e-6)
    gate_up, down = (Weight.plain(mx.zeros(shape)) for shape in ((2 * inner, K), (K, inner)))
    rest = Rest([norm, norm], [gate_up, down], [])
    before = own_bytes()
    if of_experts:
        library.multiply_experts(gate_up, x, chosen, 8)
    else:
        library.finish(rest, x, x, None)
    assert own_bytes() - before < 16e6


def test_x_of_another_width_is_refused(library):
    plain = Weight.plain(mx.ones((4, 300)))
    for columns in (172, 301, 100_000):
        with pytest.raises(ShapeError, match=r"needed x \[\.\.\., 300\]"):
            library.multiply(plain, np.ones((1, columns), np.float32))


def test_what_is_no_number_stays_none(library):
    bad = np.full((1, 48), np.nan, np.float32)
    fine = np.ones((1, 48), np.float32)
    assert np.isnan(library.cap_scores(bad, 30.0)).all()
    for gate, up in ((bad, fine), (fine, bad)):
        assert np.isnan(library.gelu_mul(gate, up)).all()
    q, k, v = attention(1, 3)
    for spoiled in range(3):
        arrays = [q, k, v]
        arrays[spoiled] = arrays[spoiled] + mx.where(mx.arange(48) == 5, mx.nan, 0.0)
        assert np.isnan(
            np.array(by_cpu.attend(library, arrays[0], *([each] for each in arrays[1:]), None))
        ).any()


def test_heads_are_normed_and_rotated(library):
    B, L, D = 2, 5, 32
    x, norm = rows(B * L, 3 * D).reshape(B, L, 3 * D), rows(6, D)[0]
    waves = mx.concatenate([10.0 ** mx.arange(0, 4, 0.5), mx.full((8,), mx.inf)])
    offset = mx.array([0, 1000])
    got = by_cpu.heads(library, x, D, 1e-6, norm, waves, offset)
    heads = x.reshape(B, L, 3, D).transpose(0, 2, 1, 3)
    wanted = rotate(mx.fast.rms_norm(heads, norm, 1e-6), waves, offset)
    assert distance(got, np.array(wanted)) < 2e-5  # an angle of 1,000 is rounded to 6e-5
    plain = by_cpu.heads(library, x, D, 1e-6)
    assert distance(plain, np.array(mx.fast.rms_norm(heads, None, 1e-6))) < 1e-6


def attention(L, K, B=1, D=48):
    keys = [
        mx.random.normal((B, heads, n, D), key=mx.random.key(n))
        for heads, n in ((4, L), (2, K), (2, K + 1))
    ]
    return keys[0], keys[1], keys[2][:, :, 1:]  # whose positions begin within their memory


def masked(L, K, window=None):
    seen = np.tri(L, K, K - L, dtype=bool)
    return seen if window is None else seen & ~np.tri(L, K, K - L - window, dtype=bool)


@pytest.mark.parametrize("L", [1, 2, 7, 40])
def test_attention_is_that_of_stock_mlx(L, library):
    for K in (L, L + 3, 130):
        q, k, v = attention(L, K)
        pairs = np.random.default_rng(K).random((L, K)) < 0.5
        pairs[:, 0] = True
        cases = (
            (None, np.ones((L, K), bool)),
            (Causal(None), masked(L, K)),
            (Causal(5), masked(L, K, 5)),
            (Seen(pairs), pairs),
            (mx.array(pairs)[None, None], pairs),
        )
        for mask, seen in cases:
            got = by_cpu.attend(library, q, [k], [v], mask)
            wanted = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=mx.array(seen))
            assert distance(got, np.array(wanted)) < 3e-6, (K, mask)


def test_a_query_attends_alone_as_in_company(library):
    q, k, v = attention(20, 50)
    together = np.array(by_cpu.attend(library, q, [k], [v], Causal(9)))
    for i in (0, 6, 19):
        seen = slice(0, 31 + i)
        alone = by_cpu.attend(
            library, q[:, :, i : i + 1], [k[:, :, seen]], [v[:, :, seen]], Causal(9)
        )
        np.testing.assert_array_equal(np.array(alone)[:, :, 0], together[:, :, i])


def test_sequences_of_different_lengths_attend_as_each_alone(library):
    each = [attention(1, K) for K in (3, 70, 18)]
    queries = mx.concatenate([q for q, _, _ in each])
    keys, values = [k for _, k, _ in each], [v for _, _, v in each]
    together = np.array(by_cpu.attend(library, queries, keys, values, Causal(None)))
    for row, (q, k, v) in enumerate(each):
        alone = by_cpu.attend(library, q, [k], [v], Causal(None))
        np.testing.assert_array_equal(np.array(alone)[0], together[row])


def test_layers_take_the_library_on_a_cpu_and_say_that_they_are_not_lazy():
    assert type(choose.prepare(random_matrix(4))) is Native
    assert type(choose.prepare_gate_up(random_matrix(4))) is NativeGateUp
    assert type(choose.prepare_experts(random_matrix(4), 7)) is NativeExperts
    assert not Native.is_lazy
    assert ops.fused_ops(128, 1e-6, 128) != ops.PLAIN


@contextmanager
def fresh(monkeypatch, folder):
    """A cache of its own, which the library was not asked of yet."""
    monkeypatch.setenv("HLWQ_CACHE", str(folder))
    native.library.cache_clear()
    try:
        yield build.library_path()
    finally:
        native.library.cache_clear()


def test_the_switch_turns_it_off(monkeypatch, tmp_path):
    with fresh(monkeypatch, tmp_path):
        monkeypatch.setenv(native.SWITCH, "0")
        assert native.library() is None
    assert not [*tmp_path.iterdir()]


def test_without_a_compiler_one_line_says_what_would_help(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(build, "compiler", lambda: None)
    with fresh(monkeypatch, tmp_path):
        assert native.library() is None
        assert native.library() is None
        with pytest.raises(DeviceError, match="pip install ziglang"):
            build.build()
    assert [record.message for record in caplog.records] == [
        f"{SLOWER} [native] needed a C++ compiler, got none. {build.ADVICE}"
    ]


def test_the_first_answer_does_not_wait_for_the_compiler(monkeypatch, tmp_path):
    begun = []
    monkeypatch.setattr(build, "build_beside", lambda: begun.append(1))
    with fresh(monkeypatch, tmp_path):
        assert native.library() is None
    assert begun == [1]


def lay(path, content, of=None):
    """Put a library there, as if it had been made with the bytes `of`."""
    path.parent.mkdir()
    path.write_bytes(content if of is None else of)
    build.sum_path(path).write_text(build._sum(path))
    path.write_bytes(content)


@pytest.mark.parametrize("kept", [0, 64, 4096, -1])
def test_half_a_library_is_not_loaded_but_compiled_again(kept, monkeypatch, tmp_path, caplog):
    """To load one ends the process: the system finds no page behind the end of the file."""
    whole, begun = native.require_library() and build.library_path().read_bytes(), []
    monkeypatch.setattr(build, "build_beside", lambda: begun.append(1))
    with fresh(monkeypatch, tmp_path) as path:
        lay(path, whole[:kept], of=whole)
        assert native.library() is None and not build.is_there()
    assert begun == [1] and not caplog.records


def test_a_library_that_the_system_does_not_take_is_said_and_kept(monkeypatch, tmp_path, caplog):
    with fresh(monkeypatch, tmp_path) as path:
        lay(path, b"of another processor")
        assert native.library() is None
        assert path.exists()
    [line] = [record.message for record in caplog.records]
    assert line.startswith(f"{SLOWER} [native] needed a library that loads, got: {path}: ")


def test_what_the_compiler_says_is_told_in_a_line_and_nothing_is_left(monkeypatch, tmp_path):
    said = "raise SystemExit('In file a.cpp:\\n  a.cpp:3: error: no such thing\\n  3 | here')"
    monkeypatch.setattr(build, "compiler", lambda: [sys.executable, "-c", said])
    with fresh(monkeypatch, tmp_path) as path:
        killed = path.with_name(f".{path.name}.partial-of-one-that-was-killed")
        killed.mkdir(parents=True)
        with pytest.raises(DeviceError) as raised:
            build.build()
        assert [each.suffix for each in path.parent.iterdir()] == [".lock"]
    assert str(raised.value).startswith(
        f"[native] needed a library from {sys.executable}, got a.cpp:3: error: no such thing. "
    )


def test_a_compiler_writes_where_it_is_removed_behind_it(monkeypatch, tmp_path):
    """A home that cannot be written had zig run until its time was over."""
    wrote = "import os; [open(os.environ[n] + '/left', 'w') for n in os.environ['NAMES'].split()]"
    monkeypatch.setenv("NAMES", " ".join(build.SCRATCH_VARIABLES))
    monkeypatch.setattr(build, "compiler", lambda: [sys.executable, "-c", f"{wrote}; exit('told')"])
    for name in build.SCRATCH_VARIABLES:
        monkeypatch.setenv(name, "/dev/null")
    with fresh(monkeypatch, tmp_path) as path:
        with pytest.raises(DeviceError, match="got told"):
            build.build()
        assert [each.suffix for each in path.parent.iterdir()] == [".lock"]


def test_where_there_are_no_locks_the_library_is_built_without(monkeypatch, tmp_path):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setenv("CXX", "false")
    with fresh(monkeypatch, tmp_path), pytest.raises(DeviceError, match="got exit status 1"):
        build.build()


def test_a_compiler_that_fails_is_told_at_the_next_start(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setattr(build.os, "nice", lambda by: 0)
    with fresh(monkeypatch, tmp_path):
        with pytest.raises(SystemExit, match=r"^error: .* from false, got exit status 1"):
            build.main()
        assert native.library() is None
    assert "false" in caplog.text and "Name another compiler by CXX" in caplog.text


def occupied(monkeypatch, folder):
    (folder / "cache").write_text("a file")


def long(monkeypatch, folder):
    (folder / "cache").symlink_to(folder / ("x" * 300))


def full(monkeypatch, folder):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))


def misspelt(monkeypatch, folder):
    monkeypatch.setenv("CXX", 'g++ "')


@pytest.mark.parametrize(
    ("hinder", "said"),
    [
        (occupied, "got 'Not a directory'"),
        (long, "got 'File name too long'"),
        (full, "got 1.05 MB free"),
        (misspelt, "No closing quotation"),
    ],
)
def test_what_keeps_it_from_being_compiled_is_one_line(hinder, said, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(build, "build_beside", lambda: pytest.fail("it was begun"))
    hinder(monkeypatch, tmp_path)
    with fresh(monkeypatch, tmp_path / "cache"):
        assert native.library() is None
    [line] = [record.message for record in caplog.records]
    assert line.startswith(SLOWER) and said in line and "\n" not in line


def test_nothing_of_the_current_folder_is_run(monkeypatch, tmp_path):
    (tmp_path / "hlwq_mlx").mkdir()
    (tmp_path / "hlwq_mlx" / "__init__.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "false")
    with fresh(monkeypatch, tmp_path / "cache"):
        build.build_beside().wait(60)
        assert "Name another compiler" in build.failure_path().read_text()


NONSENSE = [(native.SWITCH, "off"), (native.MODE, "fast"), (native.THREADS, "two")]


@pytest.mark.parametrize("switch", ["0", "1"])
@pytest.mark.parametrize(("name", "value"), [*NONSENSE, (native.THREADS, "1000")])
def test_a_variable_that_says_nothing_known_is_refused(name, value, switch, monkeypatch, tmp_path):
    """With a library, without one, or before it is built, all alike; an empty one is as none."""
    monkeypatch.setenv(native.SWITCH, switch)
    monkeypatch.setattr(build, "build_beside", lambda: None)
    with fresh(monkeypatch, tmp_path):
        monkeypatch.setenv(name, "")
        assert native.library() is None
        native.library.cache_clear()
        monkeypatch.setenv(name, value)
        with pytest.raises(DeviceError, match=f"got {value}"):
            native.library()


@pytest.mark.slow
def test_two_processes_build_once(monkeypatch, tmp_path):
    with fresh(monkeypatch, tmp_path) as path:
        command = [sys.executable, "-m", build.__name__]
        both = [subprocess.Popen(command) for _ in range(2)]
        assert [process.wait(600) for process in both] == [0, 0]
        assert sorted(each.suffix for each in path.parent.iterdir()) == [".lock", ".sha256", ".so"]
        assert native.require_library().instructions in INSTRUCTIONS


@pytest.mark.slow
def test_the_compiler_of_the_extra_makes_the_same_library(monkeypatch, tmp_path):
    """Products for every kind of instructions, which are told from one another at run time."""
    pytest.importorskip("ziglang", reason="it is the compiler of the extra `native`")
    own = native.require_library()
    best = own.instructions
    monkeypatch.setattr(build, "compiler", lambda: [*build.ZIG])
    with fresh(monkeypatch, tmp_path):
        made = native.require_library()
    assert made.instructions == best
    x, weights = floats(rows(7)), [Weight.coded(random_matrix(bits)) for bits in WIDTHS]
    for instructions in INSTRUCTIONS:
        assert made.use(instructions) == own.use(instructions)
        for weight in weights:
            np.testing.assert_array_equal(made.multiply(weight, x), own.multiply(weight, x))
    own.use(best)
