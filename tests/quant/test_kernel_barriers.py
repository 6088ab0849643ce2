"""No barrier of ours is idle: with any one of them gone, the Metal host finds a race."""

import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from metal_host import KernelFault, device

from hlwq_mlx.quant import bodies, kernels
from hlwq_mlx.quant.selftest import random_matrix

MATRIX = random_matrix(4)
BARRIERS = [
    (path.name, index)
    for path in sorted(bodies.metal_folder().glob("*.metal"))
    for index in range(path.read_text("ascii").count("_barrier(mem_flags"))
]


def rows(count):
    return mx.random.normal((count, 512), key=mx.random.key(count))


def residual_norm():
    weight = mx.ones(512)
    return kernels.residual_norm(rows(2), rows(2), weight, mx.ones(1), 1e-6, weight)


CALLS = {
    "dequantize.metal": lambda: kernels.dequantize(MATRIX),
    "embed.metal": lambda: kernels.embed(mx.array([3, 1]), MATRIX),
    "qmm.metal": lambda: kernels.qmm(rows(9), MATRIX),
    "qmv.metal": lambda: kernels.qmv(rows(1), MATRIX),
    "residual_norm.metal": residual_norm,
}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A folder of Metal files to damage."""
    folder = Path(shutil.copytree(bodies.metal_folder(), tmp_path / "metal"))
    monkeypatch.setattr(bodies, "metal_folder", lambda: folder)
    kernels.built.cache_clear()
    yield folder
    kernels.built.cache_clear()


@pytest.mark.slow  # each compiles a damaged kernel, as kernel_matrix.py --mutations does
@pytest.mark.skipif(mx.metal.is_available(), reason="a GPU does not find races")
@pytest.mark.parametrize(("file", "index"), BARRIERS)
def test_every_barrier_is_needed(file, index, copy):
    lines = (copy / file).read_text("ascii").splitlines()
    at = [number for number, line in enumerate(lines) if "_barrier(mem_flags" in line][index]
    del lines[at]
    (copy / file).write_text("\n".join(lines) + "\n", "ascii")
    with device(), pytest.raises(KernelFault, match="race"):
        CALLS[file]()
