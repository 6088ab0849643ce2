"""The synthetic repository, narrow and shallow: read, converted and loaded as the full-size one."""

import shutil
import sys

import mlx.core as mx
import numpy as np
import pytest

from hlwq_mlx import library
from hlwq_mlx.disk.tensorfile import TensorFile
from hlwq_mlx.folder import loading, published
from hlwq_mlx.memory import inventory
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert
from scripts.benchmarks import fullsize, make_fullsize

WORDS = 320


def narrow():
    """E4B's towers and 4 of its layers, with small widths that blocks of 128 still fill."""
    settings = make_fullsize.config(4, WORDS)
    settings["text_config"] |= {
        **{"hidden_size": 128, "hidden_size_per_layer_input": 64, "intermediate_size": 256},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8},
        **{"head_dim": 64, "global_head_dim": 128},
    }
    settings["vision_config"] |= {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    settings["vision_config"]["position_embedding_size"] = 32
    settings["audio_config"] |= {"hidden_size": 128, "output_proj_dims": 256}
    return settings


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    shutil.copy(library.DEMO / "tokenizer.json", root)  # the real one takes seconds
    for variant in ("PQ5", "PQ2-Mixed"):
        make_fullsize.make(root, variant, narrow())
    return root


@pytest.mark.parametrize("variant", ["PQ5", "PQ2-Mixed"])
def test_it_is_what_a_publisher_would_write(root, variant):
    found = inventory.take(str(root), variant)
    assert list(inventory.doubts(found)) == []
    assert {entry.name for entry in found.entries} == published.tensors(narrow()).keys()


@pytest.mark.parametrize("variant", ["PQ5", "PQ2-Mixed"])
def test_it_converts_loads_and_scores(root, variant, tmp_path):
    summary = convert.convert(Source(root / variant, variant), tmp_path / "out")
    assert summary.warnings == ()
    assert not any("inf_100" in line for line in summary.evidence)
    found = fullsize.answer(tmp_path / "out", prompt_tokens=20, new_tokens=3)
    assert found["is_finite"]
    logits = np.array(loading.load(tmp_path / "out")(mx.arange(2, 30)[None]))
    assert 0.1 < logits.std() < 30
    assert min(found[name] for name in ("load_s", "prefill_s", "decode_s", "mlx_peak")) > 0


def test_a_run_that_was_stopped_goes_on(root):
    codes, plain = (root / "PQ5" / f"{name}.safetensors" for name in ("codes", "bf16"))
    before, written = plain.read_bytes(), codes.stat().st_mtime_ns
    plain.unlink()
    plain.with_suffix(".partial").write_bytes(b"part")
    make_fullsize.make(root, "PQ5", narrow())
    assert codes.stat().st_mtime_ns == written
    assert plain.read_bytes() == before
    assert not plain.with_suffix(".partial").exists()


def test_norms_keep_what_passes_through_at_its_size(root):
    file = TensorFile(root / "PQ5" / "codes.safetensors")
    norms = file.view("model__language_model__layers__0__mlp__up_proj__weight__norms")
    assert abs(float(norms.astype(np.float32).mean()) - 1) < 0.05  # sqrt(128 / 128 columns)
    scalar = "model.audio_tower.layers.0.feed_forward1.ffw_layer_1.input_max"
    assert TensorFile(root / "PQ5" / "bf16.safetensors").view(scalar).shape == ()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
def test_a_process_is_measured():
    found = fullsize.measured(
        ["-c", "b = bytearray(1 << 26); import time; time.sleep(1); print(7)"]
    )
    assert found["output"] == "7\n"
    assert found["seconds"] > 1 and 1 << 26 < found["peak"] < 1 << 28
    with pytest.raises(SystemExit, match="ended with 3"):
        fullsize.measured(["-c", "raise SystemExit(3)"])
