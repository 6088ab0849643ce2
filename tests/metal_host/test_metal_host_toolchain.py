"""When the host is there, and where it keeps what it builds."""

import sys
from pathlib import Path

import mlx.core as mx
import pytest

import metal_host
from metal_host import toolchain

ROOT = Path(__file__).parents[2]


def test_another_system_is_a_reason_to_skip(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert metal_host.missing() == "the Metal host needs Linux on x86-64, this is darwin"


@pytest.mark.skipif(sys.platform != "linux", reason="asks for Linux first")
def test_a_compiler_that_is_not_installed_is_a_reason_to_skip(monkeypatch):
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    assert "pip install -e '.[test]'" in metal_host.missing()


def test_device_skips_with_the_reason(monkeypatch):
    if mx.metal.is_available():
        pytest.skip("MLX has Metal here: nothing to skip")
    monkeypatch.setattr("metal_host.stand_in.missing", lambda: "no compiler")
    with pytest.raises(pytest.skip.Exception, match="no compiler"), metal_host.device():
        pass


@pytest.mark.skipif(bool(metal_host.missing()), reason=metal_host.missing())
def test_what_is_built_is_kept_outside_the_repository(monkeypatch):
    assert not toolchain.cache_folder().is_relative_to(ROOT)
    text = 'extern "C" float twice(float x) { return 2 * x; }'
    first = toolchain.compile_kernel("", text, toolchain.Build())
    monkeypatch.setattr(toolchain, "run", None)
    assert toolchain.compile_kernel("", text, toolchain.Build()) == first
