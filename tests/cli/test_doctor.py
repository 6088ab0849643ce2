"""`python -m hlwq_mlx.doctor`, as a person runs it."""

import json
import re
import shutil
from pathlib import Path

import demo
import pytest

from hlwq_mlx import cli, doctor, library
from hlwq_mlx.errors import RequestError
from hlwq_mlx.memory import machine
from hlwq_mlx.memory.machine import Machine
from hlwq_mlx.source import rules

ROOT = Path(__file__).parents[2]
# What the README's shorter table has of the whole one's columns.
SHORT = (0, 3, 4, 5, 6, 8)


def told(capsys, *arguments):
    code = cli.run(doctor.main, arguments)
    return code, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("is_converted", [False, True])
def test_a_model_that_fits_leaves_with_0(capsys, is_converted):
    where = str(demo.folder()) if is_converted else str(library.DEMO / "PQ5")
    code, lines = told(capsys, where, "--context", "64")
    assert code == 0
    text = "\n".join(lines)
    assert re.search(r"^attention +5 bits +24 tensors +442,368 weights", text, re.MULTILINE)
    gates = "8 bits" if is_converted else "not coded"  # convert codes what was left
    assert re.search(rf"^mlp +{gates} +7 tensors", text, re.MULTILINE)
    assert ("converted" if is_converted else "as published") in text
    assert "odd: " not in text
    assert re.search(r"^fits: \d+\.\d\d MB at a context of 64 \(text weights ", text, re.MULTILINE)


def test_no_context_is_judged_that_the_model_does_not_have(capsys):
    code, lines = told(capsys, str(demo.folder()))
    most = demo.load()[0].args.text_config.max_position_embeddings
    assert code == 0 and most < cli.CONTEXT
    assert f"context: {most} tokens, where the model ends, and not {cli.CONTEXT}" in lines
    stated = re.findall(r"(?:at a context of|that fits:) (\d+)", "\n".join(lines))
    assert stated == [str(most)] * 2


def test_a_model_that_does_not_fit_leaves_with_1(capsys, monkeypatch):
    small = Machine("a small machine", 1 << 30, 1 << 22, has_metal=False)
    monkeypatch.setattr(machine, "this_machine", lambda folder: small)
    with pytest.raises(SystemExit) as left:
        told(capsys, str(demo.folder()))
    assert left.value.code == doctor.EXIT_UNFIT
    assert "does not fit: " in capsys.readouterr().out


def test_a_folder_that_would_not_load_is_refused(capsys, tmp_path):
    """From headers: a row store that is gone, and a tower's tensor of another width than stated."""
    folder = tmp_path / "model"
    shutil.copytree(demo.folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    coded = config["quantization_config"]["tensors"]
    name = next(name for name in coded if "vision" in name)
    coded[name]["bits"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    assert cli.run(doctor.main, [str(folder)]) == 2
    assert "error: " in capsys.readouterr().err
    shutil.copy(demo.folder() / "config.json", folder)
    assert cli.run(doctor.main, [str(folder)]) == 0
    (folder / "ple.safetensors").unlink()
    assert cli.run(doctor.main, [str(folder)]) == 2
    assert "error: [ple.safetensors] needed the row store" in capsys.readouterr().err


def test_wrong_options_are_refused(capsys):
    demo_model = str(library.DEMO)
    for arguments, said in (
        ([], "one of the arguments --model MODEL --table is required"),
        ([demo_model, "--table"], "not allowed with argument"),
        ([demo_model, "--model", demo_model], "not allowed with argument"),
        ([demo_model, "--force"], "unrecognized arguments: --force"),  # it loads nothing
        (["--table", "--verify"], "--verify: not allowed with --table"),
        (["--table", "--macs", "M1:16", "M1:16"], "--macs: not allowed with --table"),
        ([demo_model, "--verify", "--macs", "M1:8", "M1:8"], "--macs: not allowed with --verify"),
        ([demo_model, "--verify", "--variant", "PQ5"], "--variant: not allowed with --verify"),
        ([demo_model, "--verify", "--context", "9"], "--context: not allowed with --verify"),
        ([demo_model, "--verify", "--leftovers", "keep"], "--leftovers: not allowed with --verify"),
        ([demo_model, "--verify", "--kv-bits", "8"], "--kv-bits: not allowed with --verify"),
        ([demo_model, "--link", "10"], "--link: not allowed without --macs"),
        ([demo_model, "--context", "0"], "argument --context: needed at least 1, got 0"),
    ):
        with pytest.raises(SystemExit) as left:
            doctor.main(arguments)
        assert left.value.code == 2
        assert said in capsys.readouterr().err


def test_a_model_is_named_as_in_other_commands_or_bare():
    parse = doctor.make_parser().parse_args
    for arguments in (["m"], ["--model", "m"], ["--variant", "PQ5", "m"]):
        assert parse(arguments).model == "m"
    assert parse(["--table"]).model is None


def test_the_tables_of_memory_are_what_it_prints(capsys):
    code, lines = told(capsys, "--table")
    assert code == 0
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| PQ")]
    assert len(rows) == len(rules.VARIANTS)
    whole = (ROOT / "scripts" / "README.md").read_text()
    assert [line for line in lines if line not in whole] == []
    short = (ROOT / "README.md").read_text()
    wanted = [f"| {' | '.join(row[at] for at in SHORT)} |" for row in rows]
    assert [line for line in wanted if line not in short] == []


def test_the_table_is_of_one_variant_if_asked(capsys):
    code, lines = told(capsys, "--table", "--variant", "pq5")
    assert code == 0
    assert [line[:7] for line in lines if line.startswith("| PQ")] == ["| PQ5 |"]
    with pytest.raises(RequestError, match=r"\[variant\] needed one of PQ1, .* got PQ7"):
        doctor.main(["--table", "--variant", "PQ7"])
    assert not capsys.readouterr().out
