"""Converting, quantizing and exporting tables larger than the memory that this may take.

Measured, each in a process of its own.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import tiny
from mlx.utils import tree_flatten

from hlwq_mlx.disk.jsonfile import read_json
from hlwq_mlx.disk.tensorfile import TensorFile, TensorSpec, TensorWriter
from hlwq_mlx.folder.names import coded_names
from hlwq_mlx.folder.rows import FILE_NAME as ROW_STORE
from hlwq_mlx.folder.rows import RowStore
from hlwq_mlx.gemma4.model import Model, ModelArgs
from hlwq_mlx.quant import codec
from hlwq_mlx.quant.packing import pack, unpack_p32
from hlwq_mlx.quant.tables import centroids

LIMIT = 200 * 2**20  # 130 MB are seen; the embedding in float32 alone is 134 MB
V, H, N, D = 131072, 256, 5, 256  # vocabulary, hidden size, layers, per-layer width
WIDTH = N * D  # 336 MB in bfloat16
ROWS = (0, 1, V // 2, V - 1)
SLICE = 4096  # rows of codes that are drawn, then repeated
UP = f"{tiny.TEXT}layers.0.mlp.up_proj.weight"
on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="anonymous memory is read from Linux's /proc"
)


def settings():
    made = tiny.config()
    text = made["text_config"]
    text |= {"vocab_size": V, "vocab_size_per_layer_input": V, "hidden_size": H}
    text |= {"num_hidden_layers": N, "hidden_size_per_layer_input": D}
    text["layer_types"] = ["full_attention"] * N
    text["num_kv_shared_layers"] = 0
    return made


def write_plain(path, left_out=(), rows_dtype="BF16"):
    """Write the 16-bit file: zeros, which take no disk, but for some rows of the large tables."""
    parameters = tree_flatten(Model(ModelArgs.from_dict(settings())).parameters())
    specs = {name: TensorSpec("BF16", array.shape) for name, array in parameters}
    specs[tiny.ROWS] = TensorSpec(rows_dtype, (V, WIDTH))
    for name in left_out:
        del specs[name]
    with TensorWriter(path, specs) as writer:
        for name in {tiny.ROWS, tiny.EMBEDDING} & specs.keys():
            for row in ROWS:
                bits = row_bits(row)[: specs[name].shape[1]]
                is_half = specs[name].dtype == "F16"
                piece = as_float(bits).astype(np.float16) if is_half else bits
                writer.write(name, piece, row * piece.nbytes)


def row_bits(row):
    draw = np.random.default_rng(row).standard_normal(WIDTH, dtype=np.float32)
    return (draw.view(np.uint32) >> 16).astype(np.uint16)


def as_float(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def row_values(rows, width):
    return as_float(np.stack([row_bits(row)[:width] for row in rows]))


def write_variant(root, coded, rows, rows_dtype="BF16"):
    """Write PQ5 with one coded matrix, of 5 bits, from one slice repeated."""
    key = coded.replace(".", "__")
    specs = {
        f"{key}__packed": TensorSpec("U8", (rows * H * 5 // 8,)),
        f"{key}__norms": TensorSpec("F16", (rows, H // 128)),
        f"{key}__meta": TensorSpec("I64", (4,)),
    }
    codes, norms, _ = draw_codes(min(rows, SLICE))
    packed = pack(codes, 5, "msb")
    (root / "PQ5").mkdir()
    write_plain(root / "PQ5" / "bf16.safetensors", [coded], rows_dtype)
    with TensorWriter(root / "PQ5" / "codes.safetensors", specs) as writer:
        writer.write(f"{key}__meta", np.array([rows, H // 128, 128, rows * H]))
        for number in range(rows // len(norms)):
            writer.write(f"{key}__packed", packed, number * packed.nbytes)
            writer.write(f"{key}__norms", norms, number * norms.nbytes)


def draw_codes(rows):
    """Return codes, norms and what they decode to."""
    draw = np.random.default_rng(3).standard_normal((rows, H), dtype=np.float32)
    return tiny.encode(draw.tobytes(), draw.shape, 5, "clip4_100")


def anonymous_bytes(process_id):
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0  # it has ended


def check_memory(module, *arguments):
    """Run a command to its end and hold its anonymous memory to the limit."""
    peak = 0
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with (
        tempfile.TemporaryFile("w+") as errors,  # a pipe that nobody reads would fill
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as child,
    ):
        while child.poll() is None:
            peak = max(peak, anonymous_bytes(child.pid))
            time.sleep(0.02)
        errors.seek(0)
        assert child.returncode == 0, errors.read()
    assert V * WIDTH * 2 > LIMIT
    assert 2**24 < peak < LIMIT, f"{peak / 2**30:.2f} GiB"


def check_rows(folder):
    table = TensorFile(folder / ROW_STORE).view(tiny.ROWS)
    for row in ROWS:
        np.testing.assert_array_equal(table[row], row_bits(row))
    assert not table[2].any()


def check_coded_rows(folder):
    rows = np.array(RowStore(folder / ROW_STORE)(np.array([*ROWS, 2])))
    wanted = row_values(ROWS, WIDTH)
    np.testing.assert_allclose(rows[:-1], wanted, rtol=0, atol=np.abs(wanted).max() / 250)
    assert not rows[-1].any()


def shard(folder):
    return TensorFile(folder / "model-00001-of-00001.safetensors")


@pytest.fixture
def root(tmp_path):
    """A repository's folder that does not stay behind: what goes there takes 500 MB."""
    yield tiny.write_root(tmp_path / "large", settings())
    shutil.rmtree(tmp_path / "large")


def run(root, module, *arguments):
    check_memory(module, "--model", root, "--output", root / "out", *arguments)
    return root / "out"


@on_linux
def test_anonymous_memory_stays_small_while_leftovers_are_coded(root):
    write_variant(root, UP, H)
    out = run(root, "hlwq_mlx.convert", "--variant", "PQ5", "--leftovers", "auto")
    check_rows(out)
    manifest = read_json(out / "config.json")["quantization_config"]
    for name in (tiny.EMBEDDING, f"{tiny.TEXT}per_layer_model_projection.weight"):
        assert manifest["tensors"][name] == {"bits": 8, "table": "converged"}
    names = coded_names(tiny.EMBEDDING)
    words, norms = shard(out).view(names.codes), shard(out).view(names.norms)
    codes = np.concatenate([unpack_p32(words, 8, row, 1) for row in ROWS])
    decoded = codec.decode(codes, norms[list(ROWS)], centroids("converged", 8))
    wanted = row_values(ROWS, H)
    assert 0 < np.square(decoded - wanted).sum() / np.square(wanted).sum() < 1e-4


@on_linux
@pytest.mark.slow
def test_anonymous_memory_stays_small_while_rows_are_coded(root):
    write_variant(root, tiny.EMBEDDING, V)
    out = run(root, "hlwq_mlx.convert", "--variant", "PQ5", "--leftovers", "small")
    check_coded_rows(out)
    words = shard(out).view(coded_names(tiny.EMBEDDING).codes)
    codes, _, _ = draw_codes(SLICE)
    np.testing.assert_array_equal(unpack_p32(words, 5, V - 2, 2), codes[-2:])


@on_linux
@pytest.mark.slow
def test_anonymous_memory_stays_small_while_quantizing(root):
    write_plain(root / "model.safetensors")
    out = run(root, "hlwq_mlx.quantize", "--bits", "embedding=4,mlp=2")
    check_rows(out)
    manifest = read_json(out / "config.json")["quantization_config"]
    assert manifest["tensors"][tiny.EMBEDDING]["bits"] == 4


@pytest.mark.slow
@on_linux
def test_anonymous_memory_stays_small_while_exporting_affine(root):
    write_variant(root, tiny.EMBEDDING, V)
    out = run(root, "hlwq_mlx.export", "--variant", "PQ5", "--affine", "4")
    rows = affine_rows(out, tiny.ROWS, [*ROWS, 2], 8)
    wanted = row_values(ROWS, WIDTH)
    np.testing.assert_allclose(rows[:-1], wanted, rtol=0, atol=np.abs(wanted).max() / 100)
    assert not rows[-1].any()
    _, _, decoded = draw_codes(SLICE)
    rows = affine_rows(out, tiny.EMBEDDING, [0, V - 1], 4)
    wanted = decoded[[0, -1]]
    assert 0 < np.square(rows - wanted).sum() / np.square(wanted).sum() < 2e-2


def affine_rows(folder, name, rows, bits):
    """Return some rows of a matrix as MLX reads them."""
    file, module = (
        shard(folder),
        name.replace(tiny.TEXT, "language_model.model.").removesuffix(".weight"),
    )
    words, *grid = (file.view(f"{module}.{part}")[rows] for part in ("weight", "scales", "biases"))
    scales, biases = (mx.array(part).view(mx.bfloat16).astype(mx.float32) for part in grid)
    return np.array(mx.dequantize(mx.array(words), scales, biases, group_size=64, bits=bits))


@pytest.mark.slow
@on_linux
def test_anonymous_memory_stays_small_while_exporting_bf16(root):
    """A float16 table, since one of bfloat16 is copied as it lies in the file."""
    write_variant(root, tiny.EMBEDDING, V, rows_dtype="F16")
    out = run(root, "hlwq_mlx.export", "--variant", "PQ5", "--bf16")
    table = shard(out).view(tiny.ROWS)
    halves = row_values(ROWS, WIDTH).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(table[list(ROWS)], bfloat16_bits(halves))
    assert not table[2].any()
    _, _, decoded = draw_codes(SLICE)
    table = shard(out).view(tiny.EMBEDDING)
    np.testing.assert_array_equal(table[-SLICE:], bfloat16_bits(decoded))


def bfloat16_bits(values):
    return np.array(tiny.as_bfloat16(values).view(mx.uint16))
