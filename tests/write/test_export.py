"""Folders for others: loaded by stock mlx-lm, and compared with what the source decodes to."""

import json
from pathlib import Path

import demo
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import tiny
from mlx_lm.utils import load_model

from hlwq_mlx import cli, library
from hlwq_mlx import export as command
from hlwq_mlx.disk.tensorfile import TensorFile
from hlwq_mlx.errors import CheckpointError
from hlwq_mlx.folder import loading
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert, export

# Energy of the error over that of the weights: a step of 4.8 sigma over 2**bits - 1 in groups of
# 64, its square over 12; at 8 bits half of it is the rounding of scales and biases to bfloat16.
ENERGY = {4: (5e-3, 1.3e-2), 6: (3e-4, 8e-4), 8: (1.5e-5, 9e-5)}
STOCK_TEXT = "language_model.model."
REFERENCE = Path(__file__).parents[1] / "data" / "export" / "logits.npy"
PER_LAYER = ("per_layer_model_projection", "per_layer_input_gate", "embed_tokens_per_layer")


def make_source(root, rule, even=True):
    settings = tiny.config(even)
    tiny.write_root(root, settings)
    decoded = tiny.publish(root / "PQ5", tiny.make_weights(settings), rule)
    return Source(root / "PQ5", "PQ5"), decoded


def read(folder):
    tensors = {}
    for path in folder.glob("model*.safetensors"):
        tensors |= mx.load(str(path))
    return tensors


def dequantized(folder):
    """Every tensor under our name, in float32, and the width of each that is quantized."""
    tensors = read(folder)
    config = json.loads((folder / "config.json").read_text())
    quantization = config["quantization"]
    weights, widths = {}, {}
    for name, array in tensors.items():
        module = name.removesuffix(".weight")
        if module == name and name.endswith(("scales", "biases")):
            continue
        ours = tiny.TEXT + name.removeprefix(STOCK_TEXT)
        if f"{module}.scales" in tensors:
            grid = {key: quantization[key] for key in ("group_size", "bits")}
            grid |= quantization.get(module, {})
            parts = (
                tensors[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases")
            )
            array = mx.dequantize(array, *parts, **grid)
            widths[ours] = grid["bits"]
        weights[ours] = np.array(array.astype(mx.float32))
    return weights, widths


@pytest.mark.parametrize("bits", export.AFFINE_BITS)
def test_affine_is_close_to_the_decoded_weights(bits, tmp_path):
    source, decoded = make_source(tmp_path, tiny.pure(5))
    export.export_affine(source, tmp_path / "out", bits)
    weights, widths = dequantized(tmp_path / "out")
    dead = tiny.dead_names()
    assert weights.keys() == {n for n in decoded if n.startswith(tiny.TEXT) and n not in dead}
    for name, weight in weights.items():
        if name not in widths:
            np.testing.assert_array_equal(weight, decoded[name])
            continue
        is_per_layer = any(part in name for part in (*PER_LAYER, "per_layer_projection"))
        assert widths[name] == (8 if is_per_layer else bits)
        error = ((weight - decoded[name]) ** 2).sum() / (decoded[name] ** 2).sum()
        low, high = ENERGY[widths[name]]
        assert low < error < high, name


@pytest.mark.parametrize("even", [True, False], ids=["groups of 64", "odd rows"])
def test_stock_mlx_lm_computes_what_its_weights_do(even, tmp_path):
    source, _ = make_source(tmp_path, tiny.all_coded, even)
    export.export_affine(source, tmp_path / "out", 6)
    weights, widths = dequantized(tmp_path / "out")
    model, _ = load_model(tmp_path / "out")
    assert type(model).__module__ == "mlx_lm.models.gemma4"
    model.set_dtype(mx.float32)
    got = tiny.logits(model)
    wanted = tiny.logits(tiny.dense_model(tiny.config(even), weights))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-4)
    assert (tiny.ROWS in widths) and (even or len(widths) < len(source.coded))


@pytest.mark.parametrize("bits", [6, 8])
def test_stock_mlx_lm_answers_from_the_demo(bits, tmp_path):
    source = Source(library.DEMO / "PQ5", "PQ5")
    export.export_affine(source, tmp_path / "out", bits)
    model, tokenizer = mlx_lm.load(str(tmp_path / "out"))
    model.set_dtype(mx.float32)
    for question, answer in (
        (demo.CARD_QUESTION, "4"),
        (f"{demo.STORY} {demo.STORY_QUESTION}", demo.STORY_ANSWER),
    ):
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, enable_thinking=False
        )
        assert mlx_lm.generate(model, tokenizer, prompt, max_tokens=20) == answer


@pytest.mark.parametrize("even", [True, False], ids=["whole blocks", "padded blocks"])
def test_bf16_is_the_decoded_source_rounded_once(even, tmp_path):
    source, decoded = make_source(tmp_path, tiny.pure(5), even)
    export.export_bf16(source, tmp_path / "out")
    tensors = read(tmp_path / "out")
    assert tensors.keys() == decoded.keys()
    for name, weight in decoded.items():
        wanted = np.array(tiny.as_bfloat16(weight).view(mx.uint16))
        assert tensors[name].dtype == mx.bfloat16
        got = np.array(tensors[name].view(mx.uint16))
        is_read = name.startswith(tiny.TEXT) and name not in tiny.dead_names()
        if not is_read and wanted.ndim == 2:  # what the source does not tell is not cut
            got = got[:, : wanted.shape[1]]
        np.testing.assert_array_equal(got, wanted)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == tiny.config(even)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == decoded.keys()


def test_bf16_of_a_bf16_model_is_that_model(tmp_path):
    """The demo's own weights, from which transformers' answers in tests/data are."""
    export.export_bf16(Source(library.DEMO), tmp_path / "out")
    before = TensorFile(library.DEMO / "model.safetensors")
    after = TensorFile(tmp_path / "out" / "model-00001-of-00001.safetensors")
    assert after.specs == before.specs
    for name in before.specs:
        np.testing.assert_array_equal(after.view(name), before.view(name))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((library.DEMO / "config.json").read_text())


def test_transformers_computes_the_same_with_an_exported_bf16_model(tmp_path):
    """Its own logits, of the very folder that the demo's PQ5 is exported to: tests/data/export."""
    wanted = np.load(REFERENCE)
    ids = np.random.default_rng(0).integers(20, 1000, len(wanted))
    export.export_bf16(Source(library.DEMO / "PQ5", "PQ5"), tmp_path / "exported")
    convert.convert(Source(tmp_path / "exported"), tmp_path / "out")
    got = np.array(loading.load(tmp_path / "out")(mx.array(ids)[None])[0])
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)  # seen 1.3e-5 of 17


def test_the_command_exports(tmp_path, capsys):
    make_source(tmp_path, tiny.pure(5))
    places = ["--model", str(tmp_path), "--variant", "pq5", "--output", str(tmp_path / "out")]
    assert cli.run(command.main, [*places, "--affine", "4"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'out'}\n"
    assert "affine, 4 bits: " in printed.err and "100%" in printed.err
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert cli.run(command.main, [*places, "--bf16"]) == 2
    assert "which exists. Remove it or choose another --output." in capsys.readouterr().err


@pytest.mark.parametrize("width", [160, 176], ids=["groups of 32", "no groups"])
def test_stock_mlx_lm_computes_what_its_experts_do(width, tmp_path):
    """There gate|up are two stacks, and a down_proj that no group divides is bfloat16."""
    settings = tiny.experts_config()
    settings["text_config"]["moe_intermediate_size"] = width
    tiny.write_root(tmp_path, settings)
    drawn = tiny.make_weights(settings, has_dead=False, has_towers=False)
    decoded = tiny.publish(tmp_path / "PQ5", drawn, tiny.pure(5))
    exported = export.export_affine(Source(tmp_path / "PQ5", "PQ5"), tmp_path / "out", 6)
    assert exported.left_out == 0
    weights, widths = dequantized(tmp_path / "out")
    for name in [name for name in weights if "switch_glu.gate" in name]:
        halves = weights.pop(name), weights.pop(name.replace("gate_proj", "up_proj"))
        weights[name.replace("gate_proj", "gate_up_proj")] = np.concatenate(halves, axis=1)
    weights = {
        name.removesuffix(".weight").replace("switch_glu.", "")
        if "experts." in name
        else name: each
        for name, each in weights.items()
    }
    assert weights.keys() == decoded.keys()
    assert {bits for name, bits in widths.items() if "router" in name} == {8}
    low, high = (0.5 * ENERGY[6][0], ENERGY[6][1])  # groups of 32 lose less
    for name in decoded:
        is_stack = "gate_up" in name or ("experts.down" in name and width == 160)
        if is_stack:
            error = ((weights[name] - decoded[name]) ** 2).sum() / (decoded[name] ** 2).sum()
            assert low < error < high, name
    model, _ = load_model(tmp_path / "out")
    model.set_dtype(mx.float32)
    wanted = tiny.logits(tiny.dense_model(settings, weights))
    np.testing.assert_allclose(tiny.logits(model), wanted, rtol=0, atol=2e-4)


def test_what_is_left_out_is_counted_once(tmp_path):
    """The tied head is neither read nor of the text model's names; towers have no reader there."""
    settings = tiny.config()
    weights = tiny.make_weights(settings)
    weights["lm_head.weight"] = weights[tiny.EMBEDDING]
    tiny.write_root(tmp_path, settings)
    tiny.publish(tmp_path / "PQ5", weights, tiny.pure(5))
    source = Source(tmp_path / "PQ5", "PQ5")
    towers = sum(not name.startswith(tiny.TEXT) for name in weights) - 1
    exported = export.export_affine(source, tmp_path / "affine", 8)
    assert exported.left_out == len(tiny.dead_names()) + towers + 1
    assert exported.tensors + exported.left_out == len(weights)
    exported = export.export_bf16(source, tmp_path / "bf16")
    assert (exported.left_out, exported.tensors) == (1, len(weights) - 1)


def test_a_source_that_does_not_fit_leaves_nothing(tmp_path):
    source, _ = make_source(tmp_path, tiny.pure(5))
    del source.plain[f"{tiny.TEXT}norm.weight"]
    for write in (export.export_bf16, lambda *places: export.export_affine(*places, 8)):
        with pytest.raises(CheckpointError, match=r"norm\.weight\] needed in the source, got no"):
            write(source, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_the_commands_widths_are_those_there_are():
    assert command.BITS == export.AFFINE_BITS
