"""The wheel as a user installs it: complete, and at home with stock mlx-lm."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import demo
import environments
import pytest

from hlwq_mlx.quant.backends.native import build
from hlwq_mlx.quant.backends.native.library import require_library

ROOT = Path(__file__).parent.parent


def build_wheel(folder):
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling, of the test extra")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("hlwq_mlx-*.whl"))


def install(wheel, folder):
    """Make an environment whose own hlwq_mlx comes from the wheel, ahead of this checkout's."""
    environment = environments.make(folder)
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    subprocess.run(
        [*pip, "install", "--ignore-installed", *options, str(wheel)],
        check=True,
        capture_output=True,
    )
    return environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    return install(wheel, tmp_path_factory.mktemp("environment"))


def test_the_wheel_is_complete(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"hlwq_mlx/demo/{name}" for name in demo.SHIPPED}
    assert shipped <= names
    page = ROOT / "hlwq_mlx" / "server" / "page"
    assert {f"hlwq_mlx/server/page/{path.name}" for path in page.iterdir()} <= names
    assert {"hlwq_mlx/py.typed", "hlwq_mlx/metal/qmv.metal"} <= names
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"hlwq_mlx"}
    metal = {f"hlwq_mlx/metal/{path.name}" for path in (ROOT / "metal").glob("*.metal")}
    found = {name for name in names if name.startswith("hlwq_mlx/metal/")}
    assert found == metal | {"hlwq_mlx/metal/README.md"}


def test_a_wheel_brings_the_native_library_where_that_is_asked_for(wheel, tmp_path, monkeypatch):
    assert wheel.name.endswith("-py3-none-any.whl")
    monkeypatch.setenv("HLWQ_WHEEL_NATIVE", "1")
    built = build_wheel(tmp_path)
    assert not built.name.endswith("-any.whl")
    environment = install(built, tmp_path / "environment")
    folder = environments.site_packages(environment) / "hlwq_mlx/quant/backends/native"
    shipped = folder / build.library_path().name
    asked = (
        "from hlwq_mlx.quant.backends.native import library, build;"
        "found = library.library(); print(found and found.instructions, build.compiler())"
    )
    instructions, compiled = require_library().instructions, os.environ["HLWQ_CACHE"]
    monkeypatch.setenv("CXX", "false")  # nothing is compiled,
    monkeypatch.setenv("HLWQ_CACHE", str(tmp_path / "empty"))  # and nothing found elsewhere
    ran = environments.run(environment, "-c", asked)
    assert ran.stdout.split() == [instructions, "['false']"], ran.stderr
    assert not (tmp_path / "empty").exists()
    shipped.write_bytes(b"of another machine")
    monkeypatch.setenv("HLWQ_CACHE", compiled)
    ran = environments.run(environment, "-c", asked)
    assert (ran.stdout.split()[0], ran.stderr) == (instructions, "")


def test_the_wheel_answers(installed):
    ran = environments.run(installed, "-c", "import hlwq_mlx; print(hlwq_mlx.__file__)")
    assert Path(ran.stdout.strip()).is_relative_to(installed)
    hlwq = str(installed / "bin" / "hlwq")
    ran = environments.run(installed, hlwq, "generate", "--prompt", demo.CARD_QUESTION)
    assert (ran.returncode, ran.stdout) == (0, "4\n"), ran.stderr
    ran = environments.run(installed, hlwq, "nonsense")
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert "`hlwq --help` says" in ran.stderr


@pytest.mark.slow  # as tests/mlxlm/test_stock.py has it without a wheel
def test_stock_mlx_lm_loads_through_the_wheel(installed):
    assert environments.run(installed, "-m", "hlwq_mlx.register").returncode == 0
    ran = environments.run(
        installed,
        *("-m", "mlx_lm", "generate", "--model", str(demo.folder())),
        *("--prompt", demo.CARD_QUESTION, "--chat-template-config", '{"enable_thinking": false}'),
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("==========")[1].strip() == "4"
