"""`python -m hlwq_mlx.quantize`: both layouts, both ways of saying what to code, and the report."""

import math
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from hlwq_mlx import cli, library
from hlwq_mlx import convert as convert_command
from hlwq_mlx.disk.jsonfile import read_json
from hlwq_mlx.disk.tensorfile import TensorFile, TensorSpec, TensorWriter
from hlwq_mlx.errors import CheckpointError, RequestError, SourceError
from hlwq_mlx.quant import codec
from hlwq_mlx.quant.coder import energies_of
from hlwq_mlx.quant.tables import centroids
from hlwq_mlx.quantize import add_variant, main
from hlwq_mlx.source import locate, rules
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write.quantize import Encoder, Fidelity, write_published

DEMO = str(library.DEMO)
LAYER = "model.language_model.layers.3."


def quantize(*arguments):
    assert cli.run(main, ["--model", DEMO, *map(str, arguments)]) == 0


def test_the_published_layout_is_read_back_bit_for_bit(tmp_path, capsys):
    quantize("--variant", "pq4", "--layout", "published", "--output", tmp_path / "repo")
    quantize("--variant", "PQ2-Mixed", "--layout", "published", "--output", tmp_path / "repo")
    original = Source(library.DEMO)
    for variant in ("PQ4", "PQ2-Mixed"):
        opened = Source(tmp_path / "repo" / variant, variant)
        rule = rules.variant_rule(variant)[1]
        assert opened.coded.keys() | opened.plain.keys() == original.plain.keys()
        for name, tensor in opened.coded.items():
            bits = rule(name, tensor.shape)
            weight = original.plain[name].float_rows(0, tensor.shape[0])
            codes, norms = codec.encode(weight, centroids("clip4_100", bits))
            reading = opened.readings[name]
            assert (tensor.bits, reading.table) == (bits, "clip4_100")
            assert np.array_equal(tensor.rows(0, len(codes), reading.order), codes)
            assert np.array_equal(tensor.norms, norms)
        for name, tensor in opened.plain.items():
            assert np.array_equal(tensor.file.view(name), original.plain[name].file.view(name))
    assert (tmp_path / "repo" / "tokenizer.json").is_file()
    assert library.generate(
        *library.load(tmp_path / "repo", "PQ4"), [{"role": "user", "content": "Hello!"}]
    ).startswith("Hello!")


def test_a_folder_to_run_says_what_is_coded(tmp_path, capsys):
    output = tmp_path / "model"
    quantize("--bits", "mlp=3,attention=5", "--output", output)
    printed = capsys.readouterr()
    assert printed.out == f"{output}\n"
    manifest = read_json(output / "config.json")["quantization_config"]
    widths = {name.split(".", 4)[-1]: entry["bits"] for name, entry in manifest["tensors"].items()}
    assert manifest["tensors"][LAYER + "mlp.gate_proj.weight"] == {"bits": 3, "table": "converged"}
    assert {bits for name, bits in widths.items() if "mlp" in name} == {3}
    assert {bits for name, bits in widths.items() if "self_attn" in name} == {5}
    assert sorted(manifest["tables"]) == ["converged/3", "converged/5"]
    assert "mlp.gate_proj" in printed.err and "cos_sim" in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("layout", "made"), [("mlx", ""), ("published", "PQ4")])
def test_an_output_that_exists_is_refused_before_anything_is_read(
    layout, made, tmp_path, monkeypatch, capsys
):
    def find(*arguments):
        raise AssertionError("the model was looked for")

    monkeypatch.setattr(locate, "find", find)
    (tmp_path / "out" / made).mkdir(parents=True)
    command = ["--model", DEMO, "--variant", "PQ4", "--output", str(tmp_path / "out")]
    assert cli.run(main, [*command, "--layout", layout]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: [output] needed a new folder, got {tmp_path / 'out' / made}")


@pytest.mark.parametrize("layout", ["mlx", "published"])
def test_a_folder_that_cannot_be_made_ends_in_one_line(layout, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "out"
    command = ["--model", DEMO, "--variant", "PQ4", "--output", str(output), "--layout", layout]
    assert cli.run(main, command) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: [output] needed to write ")


@pytest.mark.parametrize("layout", ["mlx", "published"])
def test_a_disk_that_is_full_at_the_last_file_ends_in_one_line(
    layout, tmp_path, monkeypatch, capsys
):
    write = Path.write_bytes

    def fill(path, content):
        if ".partial-" not in str(path):
            return write(path, content)
        write(path, content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    output = tmp_path / "out"
    command = ["--model", DEMO, "--variant", "PQ4", "--output", str(output), "--layout", layout]
    assert cli.run(main, command) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: [output] needed to write ") and "No space left" in last
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == ({"codes.safetensors", "bf16.safetensors"} if layout == "published" else set())


@pytest.mark.parametrize("layout", ["mlx", "published"])
def test_a_disk_that_is_too_small_is_told_before_work_begins(layout, tmp_path, monkeypatch, capsys):
    def encode(*arguments):
        raise AssertionError("a matrix was coded")

    monkeypatch.setattr(codec, "encode", encode)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000_000))
    command = ["--model", DEMO, "--variant", "PQ4", "--output", str(tmp_path / "out")]
    assert cli.run(main, [*command, "--layout", layout]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"error: \[output\] needed \d\d\.\d\d MB in \S+, got 50\.00 MB free", last)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


KILLED = """
import os, signal, sys
from hlwq_mlx import cli, quantize
from hlwq_mlx.write import convert

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

convert.copy_side_files = die
cli.run(quantize.main, sys.argv[1:])
"""


def test_what_a_killed_run_left_is_cleared_by_the_next(tmp_path):
    arguments = ["--model", DEMO, "--variant", "PQ4", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-c", KILLED, *arguments]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-")
    assert cli.run(main, arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_model_without_config_is_refused_before_the_work(tmp_path):
    shutil.copyfile(library.DEMO / "model.safetensors", tmp_path / "model.safetensors")
    output = tmp_path / "repo" / "PQ4"
    with pytest.raises(SourceError, match=r"needed config\.json"):
        add_variant(Source(tmp_path), rules.variant_rule("PQ4")[1], output, Encoder("clip4_100"))
    assert not output.parent.exists()


def report(tmp_path, name, table, **options):
    rule = rules.variant_rule("PQ5")[1]
    return write_published(Source(library.DEMO), rule, tmp_path / name, Encoder(table, **options))


@pytest.mark.slow
def test_better_encoders_have_less_error(tmp_path):
    published, converged, refitted = (
        report(tmp_path, "a", "clip4_100"),
        report(tmp_path, "b", "converged"),
        report(tmp_path, "c", "converged", fit=codec.BEST_NORM),
    )
    for kind in published.classes:
        errors = [made.classes[kind].relative_error for made in (published, converged, refitted)]
        assert errors[0] > errors[1] > errors[2] > 0
        # Some blocks of the audio tower have a mean that the tables cut off.
        lowest = 0.9970 if "audio_tower" in kind else 0.9980
        assert lowest < published.classes[kind].cos_sim < converged.classes[kind].cos_sim < 1


def test_fidelity_is_what_it_says():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 128)).astype(np.float32)
    other = (weight + 0.1 * rng.standard_normal((8, 128))).astype(np.float32)
    whole, parts = Fidelity(), Fidelity()
    whole.add(weight.size, energies_of(weight, other))
    for start in range(0, 8, 3):
        parts += slice_fidelity(weight[start : start + 3], other[start : start + 3])
    wanted = np.linalg.norm(weight - other) / np.linalg.norm(weight)
    assert math.isclose(whole.relative_error, wanted, rel_tol=1e-6)
    assert math.isclose(parts.relative_error, wanted, rel_tol=1e-6)
    cosine = (weight * other).sum() / np.linalg.norm(weight) / np.linalg.norm(other)
    assert math.isclose(whole.cos_sim, cosine, rel_tol=1e-6)


def slice_fidelity(weight, other):
    part = Fidelity()
    part.add(weight.size, energies_of(weight, other))
    return part


def test_strong_means_are_named(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 256)).astype(np.float32)
    tensors = {LAYER + "mlp.up_proj.weight": weight + 1, LAYER + "mlp.down_proj.weight": weight}
    specs = {name: TensorSpec("F32", tensor.shape) for name, tensor in tensors.items()}
    with TensorWriter(tmp_path / "model.safetensors", specs) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    made = write_published(
        Source(tmp_path), rules.variant_rule("PQ5")[1], tmp_path / "PQ5", Encoder("clip4_100")
    )
    assert [name for name, _ in made.strong_means] == [LAYER + "mlp.up_proj.weight"]
    warning = list(made.lines())[-1]
    assert warning.startswith("warning: 100.0% of the blocks of ") and "up_proj" in warning


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_weights_that_cannot_be_coded_are_named(value, tmp_path):
    name = LAYER + "mlp.up_proj.weight"
    weights = {name: np.full((64, 128), value, dtype=np.float32)}
    save_file(weights, tmp_path / "model.safetensors")  # our own writer would refuse them
    message = (
        rf"^\[{name}\] needed weights that can be coded, got these: .* block norms up to 65504"
    )
    with pytest.raises(CheckpointError, match=message):
        write_published(
            Source(tmp_path), rules.variant_rule("PQ5")[1], tmp_path / "PQ5", Encoder("clip4_100")
        )
    assert not (tmp_path / "PQ5").exists()


def test_rules_of_the_publisher():
    def chosen(variant):
        rule = rules.variant_rule(variant)[1]
        names = TensorFile(library.DEMO / "model.safetensors").specs
        return {name for name, spec in names.items() if rule(name, spec.shape) is not None}

    text = 5 * 4 + 2 * 2 + 7 * 2  # q, k, v, o; q, o alone; up, down
    sound = 2 * (4 + 5 + 2) + 2  # feed forward, attention, convolution; into and out of the tower
    assert len(chosen("PQ5")) == text + sound
    assert not any("gate" in name or "embed" in name for name in chosen("PQ5"))
    assert any("mlp.gate_proj" in name for name in chosen("PQ2-Mixed"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlp=9", r"^\[bits\] needed class=1\.\.8 with a class of mlp, .* got 'mlp=9'"),
        ("mpl=2", r"got 'mpl=2'"),
        ("mlp", r"got 'mlp'"),
        ("mlp=²", r"got 'mlp=²'"),
        ("router=4", r"^\[bits\] needed 8 bits or none for router, got 4\. It is small, and"),
        ("mlp=2,mlp=4", r"^\[bits\] needed each class once, got mlp twice\."),
    ],
)
def test_widths_that_make_no_sense(text, message):
    with pytest.raises(RequestError, match=message):
        rules.parse_bits(text)


def test_classes_of_tensors():
    names = {
        "model.language_model.layers.0.mlp.gate_proj.weight": "mlp",
        "model.language_model.layers.0.self_attn.o_proj.weight": "attention",
        "model.language_model.layers.0.experts.gate_up_proj": "experts",
        "model.language_model.layers.0.experts.down_proj.weight": "experts",
        "model.language_model.layers.0.router.proj.weight": "router",
        "model.language_model.embed_tokens.weight": "embedding",
        "model.language_model.per_layer_model_projection.weight": "ple",
        "model.language_model.layers.0.per_layer_input_gate.weight": "ple",
        "model.vision_tower.encoder.layers.0.mlp.gate_proj.linear.weight": "vision",
        "model.audio_tower.layers.0.self_attn.q_proj.linear.weight": "audio",
        "model.language_model.norm.weight": None,
        "model.language_model.embed_tokens_per_layer.weight": None,
    }
    assert {name: rules.class_of(name) for name in names} == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "PQ7"], "error: [variant] needed one of PQ1, "),
        (["--bits", "mlp=0"], "error: [bits] needed class=1..8"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, tmp_path, capsys):
    command = ["--model", DEMO, "--output", str(tmp_path / "out"), *arguments]
    assert cli.run(main, command) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "PQ4", "--output", "out", "--context", "9"], "--context: not allowed with"),
        (["--bits", "mlp=4", "--output", "out", "--kv-bits", "8"], "--kv-bits: not allowed with"),
        (
            ["--variant", "PQ4", "--output", "out", "--max-kv-size", "99"],
            "--max-kv-size: not allowed without --fit",
        ),
        (
            ["--variant", "PQ4", "--output", "out", "--force"],
            "--force: not allowed without --discard-source",
        ),
        (["--fit", "16", "--discard-source"], "--discard-source: not allowed without --output"),
        (["--fit", "16", "--force"], "--force: not allowed without --output"),
        (["--fit", "16", "--layout", "published"], "--layout: not allowed without --output"),
    ],
)
def test_options_that_nothing_would_follow_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(["--model", DEMO, *arguments])
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_force_has_nothing_to_begin_without_discarding(tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert_command.main(["--model", DEMO, "--output", str(tmp_path / "out"), "--force"])
    assert "--force: not allowed without --discard-source" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_coded_source_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"needed uncoded matrices, got 62 that are coded"):
        write_published(
            Source(library.DEMO / "PQ5", "PQ5"),
            rules.variant_rule("PQ4")[1],
            tmp_path / "out",
            Encoder("clip4_100"),
        )


@pytest.mark.parametrize("bits", ["experts=4", "mlp=4,experts=2,router=8"])
def test_classes_that_the_model_lacks_are_named(tmp_path, capsys, bits):
    output = tmp_path / "out"
    assert cli.run(main, ["--model", DEMO, "--bits", bits, "--output", str(output)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: [bits] needed classes that the model has, got experts")
    assert "It has mlp, " in last or "It has attention, mlp" in last
    assert not output.exists()
