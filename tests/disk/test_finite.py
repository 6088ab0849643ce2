"""Numbers that are NaN or infinite: refused where they are copied, named where they are met."""

import shutil

import demo
import mlx.core as mx
import numpy as np
import openai
import pytest
import tiny
from pairwise import pairwise
from served import served

from hlwq_mlx import cli, export, library, quantize
from hlwq_mlx.compat.card import HLWQModel
from hlwq_mlx.disk.finite import find_not_finite
from hlwq_mlx.disk.tensorfile import TensorFile
from hlwq_mlx.engine.answer import generate_tokens
from hlwq_mlx.engine.request import Prepared, Request
from hlwq_mlx.errors import CheckpointError
from hlwq_mlx.folder import loading
from hlwq_mlx.generate import main as generate_command
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert, leftovers

NORM = f"{tiny.TEXT}layers.1.input_layernorm.weight"
SCALAR = f"{tiny.TEXT}layers.0.layer_scalar"
BAD = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf}


@pytest.mark.parametrize(
    ("dtype", "kind"), [("F16", np.float16), ("F32", np.float32), ("F64", np.float64)]
)
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_where_the_first_bad_number_is(dtype, kind, bad):
    for at in (0, 5, 150_000, 299_999):  # in the first step and in later ones
        values = np.full(300_000, np.finfo(kind).max, dtype=kind)
        assert find_not_finite(values.view(np.uint8), dtype) is None
        values[at] = bad
        values[-1] = bad
        assert find_not_finite(values.view(np.uint8), dtype) == at


def test_bfloat16_is_told_by_its_bits():
    every = np.arange(1 << 16, dtype=np.uint16)
    finite = np.isfinite((every.astype(np.uint32) << 16).view(np.float32))
    found = [find_not_finite(bits.reshape(1).view(np.uint8), "BF16") is None for bits in every]
    assert np.array_equal(found, finite)


def test_whole_numbers_are_always_finite():
    ones = np.full(64, 255, dtype=np.uint8)
    assert {find_not_finite(ones, dtype) for dtype in ("U8", "I8", "U32", "I64")} == {None}


COPIED = pairwise(
    name=[NORM, SCALAR, tiny.ROWS, f"{tiny.TEXT}layers.0.mlp.gate_proj.weight", tiny.VISION],
    bad=[np.nan, np.inf],
    choice=[leftovers.KEEP, leftovers.SMALL],
)


@pytest.mark.parametrize(("name", "bad", "choice"), [tuple(case.values()) for case in COPIED])
def test_a_conversion_copies_finite_numbers_alone(tmp_path, name, bad, choice):
    root = tiny.write_root(tmp_path / "source", tiny.config())
    weights = tiny.make_weights(tiny.config())
    weights[name].flat[-1] = bad
    tiny.publish(root / "PQ5", weights, tiny.pure(5))
    with pytest.raises(
        CheckpointError, match=r"needed (finite|weights that can be coded)"
    ) as caught:
        convert.convert(Source(root / "PQ5"), tmp_path / "out", choice)
    assert name in str(caught.value) or "ple.safetensors" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (quantize, ["--variant", "PQ5"]),
        (quantize, ["--variant", "PQ5", "--layout", "published"]),
        (export, ["--bf16"]),
        (export, ["--affine", "4"]),
    ],
)
def test_so_does_every_command_that_writes(tmp_path, capsys, command, options):
    root = tiny.write_root(tmp_path / "source", tiny.config())
    weights = tiny.make_weights(tiny.config())
    weights[NORM][3] = np.inf
    tiny.save_plain(root / "model.safetensors", weights)
    arguments = ["--model", str(root), "--output", str(tmp_path / "out"), *options]
    assert cli.run(command.main, arguments) == cli.EXIT_ERROR
    assert f"error: [{_stock(NORM, options)}] needed finite numbers" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["model.safetensors"]


def _stock(name, options):
    return name.replace(tiny.TEXT, "language_model.model.") if "--affine" in options else name


def spoil(folder, name, bad=np.nan):
    """Write over a number of a converted folder, as a damaged or foreign writer would leave it."""
    for path in folder.glob("*.safetensors"):
        file = TensorFile(path)
        if name in file.specs:
            with path.open("r+b") as handle:
                handle.seek(file.start(name))
                dtype = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
                bits = mx.array(bad).astype(mx.bfloat16).view(mx.uint16).item()
                kind = dtype[file.specs[name].dtype]
                value = kind(bits if kind is np.uint16 else bad)
                handle.write(value.tobytes())
            return folder
    raise AssertionError(name)


LAYER = "model.language_model.layers.1."


@pytest.fixture(params=["input_layernorm.weight", "self_attn.o_proj.norms", "layer_scalar"])
def broken(request, tmp_path):
    """The demo, one weight of which is NaN; and that weight's name."""
    name = LAYER + request.param
    return spoil(shutil.copytree(demo.folder(), tmp_path / "demo"), name), name


def test_every_front_end_names_the_weight(broken, capsys):
    folder, name = broken
    message = rf"^\[{name}\] needed finite weights, got NaN or infinity, and no answer is"
    model, tokenizer = library.load(folder)
    with pytest.raises(CheckpointError, match=message):
        library.generate(model, tokenizer, "Hello!")
    card = HLWQModel.from_pretrained(str(folder))
    with pytest.raises(CheckpointError, match=message):
        card.generate([[2, 5, 6]])
    capsys.readouterr()
    arguments = ["--model", str(folder), "--prompt", "Hello!"]
    assert cli.run(generate_command, arguments) == cli.EXIT_ERROR
    printed = capsys.readouterr()
    assert printed.out.strip() == ""
    assert printed.err.splitlines()[-1].startswith(f"error: [{name}] needed finite weights")


@pytest.mark.parametrize("broken", ["input_layernorm.weight"], indirect=True)
def test_the_server_names_the_weight_and_stays_up(broken):
    folder, name = broken
    ask = {"model": "default_model", "messages": [{"role": "user", "content": "Hello!"}]}
    with served(folder) as client:
        patient = client.with_options(max_retries=0)
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match=name.replace(".", r"\.")):
                patient.chat.completions.create(**ask)
        with pytest.raises(openai.APIError, match=name.replace(".", r"\.")):
            list(patient.chat.completions.create(stream=True, **ask))
        with pytest.raises(openai.InternalServerError, match="needed finite weights"):
            patient.chat.completions.create(seed=1, **ask)  # which is answered alone


def test_a_row_of_the_row_store_is_named(tmp_path):
    root = tiny.write_root(tmp_path / "source", tiny.config())
    tiny.publish(root / "PQ5", tiny.make_weights(tiny.config()), tiny.pure(5))
    convert.convert(Source(root / "PQ5"), tmp_path / "out")
    model = loading.load(spoil(tmp_path / "out", tiny.ROWS))
    assert len(list(generate_tokens(model, Request(Prepared([2, 5]), max_tokens=2)))) == 2
    message = r"^\[row 0 of the per-layer embeddings\] needed finite weights"
    with pytest.raises(CheckpointError, match=message):
        list(generate_tokens(model, Request(Prepared([0, 5]), max_tokens=2)))


def test_what_no_weight_is_to_blame_for(tmp_path):
    model, _ = library.load(demo.folder())
    norm = model.model.language_model.norm
    norm.eps = float("nan")
    with pytest.raises(CheckpointError, match=r"^\[scores\] .* from weights that are all finite"):
        list(generate_tokens(model, Request(Prepared([2, 5]), max_tokens=2)))
