"""What a Mac's compiler is given, and that its absence is said."""

from pathlib import Path

import metal_host
import pytest
from metal_host import toolchain
from metal_host.rewrite import rewrite

from hlwq_mlx.quant.bodies import BODIES
from scripts.kernels import compile_metal


@pytest.fixture(scope="module")
def units():
    return compile_metal.units()


def test_every_kernel_has_a_unit_of_its_variants(units):
    assert set(units) == {f"hlwq_{name}" for name in BODIES}
    for name, text in units.items():
        names = [line.split('"')[1] for line in text.splitlines() if "[[host_name(" in line]
        assert len(names) == len(set(names)), name
    widths = {name: units[name].count("[[host_name(") for name in units}
    assert widths["hlwq_qmm"] == 8 * 3
    assert widths["hlwq_dequantize"] == 2 * 8 * 3
    assert widths["hlwq_residual_norm"] == 2 * 3


def test_units_can_be_parsed(units):
    if reason := metal_host.missing():
        pytest.skip(reason)
    for name, text in units.items():
        unit = rewrite(toolchain.preprocess(text))
        assert not list(filter(toolchain.is_about_kernel, unit.complaints))
        assert any(kernel.startswith(f"custom_kernel_{name}") for kernel in unit.kernels)


def test_the_command():
    assert compile_metal.command(Path("a/qmv.metal"))[:5] == [
        *("xcrun", "-sdk", "macosx", "metal", "-c")
    ]


def test_without_a_compiler_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(compile_metal.shutil, "which", lambda name: None)
    assert compile_metal.main() == 0
    assert capsys.readouterr().out.startswith("compile_metal: skipped")


def test_a_refusal_fails_the_gate(monkeypatch, tmp_path, units):
    run = compile_metal.subprocess.run
    seen = []

    def compiler(command, **options):
        seen.append(Path(command[-3]).name)
        return run(["false" if "qmm" in command[-3] else "true"], **options)

    monkeypatch.setattr(compile_metal, "has_compiler", lambda: True)
    monkeypatch.setattr(compile_metal, "units", lambda: units)
    monkeypatch.setattr(compile_metal.subprocess, "run", compiler)
    assert compile_metal.main() == 1
    assert seen == [f"{name}.metal" for name in units]
