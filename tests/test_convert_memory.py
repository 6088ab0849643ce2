"""Converting tables larger than the memory it may take: measured, in a process of its own."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from mlx.utils import tree_flatten

from hlwq_mlx.gemma4.model import Model, ModelArgs
from hlwq_mlx.quant.packing import pack, unpack_p32
from hlwq_mlx.store import checkpoint
from hlwq_mlx.store.ple import FILE_NAME as ROW_STORE
from hlwq_mlx.store.ple import RowStore
from hlwq_mlx.store.tensorfile import TensorFile, TensorSpec, TensorWriter

LIMIT = 1.5 * 2**30
V, H, N, D = 262144, 256, 13, 256  # vocabulary, hidden size, layers, per-layer width
WIDTH = N * D  # 1.74 GB in bfloat16
ROWS = (0, 1, V // 2, V - 1)


def settings():
    made = tiny.config()
    text = made["text_config"]
    text |= {"vocab_size": V, "vocab_size_per_layer_input": V, "hidden_size": H}
    text |= {"num_hidden_layers": N, "hidden_size_per_layer_input": D}
    text["layer_types"] = ["full_attention"] * N
    text["num_kv_shared_layers"] = 0
    return made


def write_plain(path, left_out=()):
    """Write the 16-bit file: zeros, which take no disk, but for some rows of the row table."""
    parameters = tree_flatten(Model(ModelArgs.from_dict(settings())).parameters())
    specs = {name: TensorSpec("BF16", array.shape) for name, array in parameters}
    for name in left_out:
        del specs[name]
    with TensorWriter(path, specs | {tiny.ROWS: TensorSpec("BF16", (V, WIDTH))}) as writer:
        for row in ROWS:
            writer.write(tiny.ROWS, row_bits(row), row * WIDTH * 2)


def row_bits(row):
    draw = np.random.default_rng(row).standard_normal(WIDTH, dtype=np.float32)
    return (draw.view(np.uint32) >> 16).astype(np.uint16)


def write_codes(path):
    """Write the embedding, coded: 134 million codes of 5 bits, from one slice repeated."""
    key = tiny.EMBEDDING.replace(".", "__")
    specs = {
        f"{key}__packed": TensorSpec("U8", (V * H * 5 // 8,)),
        f"{key}__norms": TensorSpec("F16", (V, H // 128)),
        f"{key}__meta": TensorSpec("I64", (4,)),
    }
    codes, norms = draw_codes()
    packed = pack(codes, 5, "msb")
    with TensorWriter(path, specs) as writer:
        writer.write(f"{key}__meta", np.array([V, H // 128, 128, V * H]))
        for number in range(V // len(norms)):
            writer.write(f"{key}__packed", packed, number * packed.nbytes)
            writer.write(f"{key}__norms", norms, number * norms.nbytes)


def draw_codes():
    draw = np.random.default_rng(3).standard_normal((4096, H), dtype=np.float32)
    codes, norms, _ = tiny.encode(draw.tobytes(), draw.shape, 5, "clip4_100")
    return codes, norms


def anonymous_bytes(process_id):
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0  # it has ended


def check_memory(module, *arguments):
    """Run a command to its end and hold its anonymous memory to the limit."""
    peak = 0
    with subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        while child.poll() is None:
            peak = max(peak, anonymous_bytes(child.pid))
            time.sleep(0.02)
        errors = child.stderr.read()
    assert child.returncode == 0, errors
    assert V * WIDTH * 2 > LIMIT
    assert 2**24 < peak < LIMIT, f"{peak / 2**30:.2f} GiB"


def check_rows(folder):
    table = TensorFile(folder / ROW_STORE).view(tiny.ROWS)
    for row in ROWS:
        np.testing.assert_array_equal(table[row], row_bits(row))
    assert not table[2].any()


def check_coded_rows(folder):
    rows = np.array(RowStore(folder / ROW_STORE)(np.array([*ROWS, 2])))
    wanted = (np.stack([row_bits(row) for row in ROWS]).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(rows[:-1], wanted, rtol=0, atol=np.abs(wanted).max() / 250)
    assert not rows[-1].any()


@pytest.fixture
def root(tmp_path):
    """A repository's folder that does not stay behind: what goes there takes 2 GB."""
    yield tiny.write_root(tmp_path / "large", settings())
    shutil.rmtree(tmp_path / "large")


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from Linux's /proc")
@pytest.mark.parametrize("leftovers", ["auto", "small"])
def test_anonymous_memory_stays_small(root, leftovers):
    (root / "PQ5").mkdir()
    write_plain(root / "PQ5" / "bf16.safetensors", left_out=[tiny.EMBEDDING])
    write_codes(root / "PQ5" / "codes.safetensors")
    places = ["--model", root / "PQ5", "--output", root / "out"]
    check_memory("hlwq_mlx.convert", *places, "--leftovers", leftovers)
    (check_coded_rows if leftovers == "small" else check_rows)(root / "out")
    manifest = checkpoint.read_json(root / "out" / "config.json")["quantization_config"]
    projection = manifest["tensors"][f"{tiny.TEXT}per_layer_model_projection.weight"]
    assert projection == {"bits": 8, "table": "converged"}
    names = checkpoint.coded_names(tiny.EMBEDDING)
    words = TensorFile(root / "out" / "model-00001-of-00001.safetensors").view(names.codes)
    codes, _ = draw_codes()
    np.testing.assert_array_equal(unpack_p32(words, 5, V - 2, 2), codes[-2:])


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from Linux's /proc")
def test_anonymous_memory_stays_small_while_quantizing(root):
    write_plain(root / "model.safetensors")
    widths = ["--bits", "embedding=4,mlp=2", "--output", root / "out"]
    check_memory("hlwq_mlx.quantize", "--model", root, *widths)
    check_rows(root / "out")
    manifest = checkpoint.read_json(root / "out" / "config.json")["quantization_config"]
    assert manifest["tensors"][tiny.EMBEDDING]["bits"] == 4
