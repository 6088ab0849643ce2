import os
import signal
import tempfile
from pathlib import Path

import mlx.core as mx
import pytest
from metal_host import toolchain

from hlwq_mlx.library import CACHE_VARIABLE
from hlwq_mlx.quant.backends.native import build
from hlwq_mlx.quant.backends.native import library as native

# References and tolerances are float32's, and float32 runs on the CPU; tests of the other dtypes
# and of kernels say so themselves.
mx.set_default_device(mx.cpu)
# A run in the background ignores Ctrl-C, one by nohup SIGHUP, and so would the commands of tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # MLX keeps what it compiles for a CPU in the temporary folder, where two processes that start
    # at once would read each other's half-written files. It stays there for the next run.
    folder = Path(tempfile.gettempdir()) / f"hlwq-tests-{worker}"
    folder.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(folder)
# Servers of the tests are on this machine, whatever proxy leads out of it.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

# Begun first, for of two processes one would wait for a long file that the other begins last.
LONG_FILES = {
    *("test_demo.py", "test_rows_in_company.py", "test_hub.py", "test_stock.py"),
    *("test_kernels_model.py", "test_wheel.py", "test_convert_memory.py", "test_convert.py"),
}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_session(tmp_path_factory):
    """Keep converted models of the tests apart from a person's, for sub-processes too."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ[CACHE_VARIABLE] = str(folder)
    # What was compiled for an earlier run serves this one, and both processes of a run.
    path = build.library_path()
    compiled = build.build(target=toolchain.cache_folder() / path.name)
    path.parent.mkdir()
    path.symlink_to(compiled)
    build.sum_path(path).symlink_to(build.sum_path(compiled))
    assert build.is_there()  # or stock MLX would compute, and nobody would see it


@pytest.fixture(autouse=True)
def draws_are_the_same_in_every_run():
    """MLX would seed itself by the clock."""
    mx.random.seed(0)


@pytest.fixture(autouse=True)
def kernels_of_mlx_are_back():
    """Find the test that leaves a kernel of its own in MLX, for it is others that would fail."""
    before = mx.fast.metal_kernel
    yield
    assert mx.fast.metal_kernel is before


@pytest.fixture
def by_stock():
    """Compute by stock MLX, as where no library could be compiled."""
    with pytest.MonkeyPatch.context() as patch:  # that a test's own undoing leaves alone
        patch.setattr(native, "library", lambda: None)
        yield
