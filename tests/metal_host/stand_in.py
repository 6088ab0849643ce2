"""Where the kernels of a test run: on the GPU of a Mac, or here."""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import pytest

from .checks import Checks, checked
from .kernel import metal_kernel
from .toolchain import missing


@contextmanager
def device(checks: Checks | None = None) -> Iterator[None]:
    """Make `mx.fast.metal_kernel` work within a block, or skip the test with the reason.

    Where MLX has Metal, nothing is replaced and `checks` mean nothing. Elsewhere kernels made in
    the block run on the Metal host, eagerly, so compilation is off meanwhile.
    """
    if mx.metal.is_available():
        yield
        return
    if reason := missing():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch, checked(checks or Checks()):
        patch.setattr(mx.fast, "metal_kernel", metal_kernel)
        mx.disable_compile()
        try:
            yield
        finally:
            mx.enable_compile()
