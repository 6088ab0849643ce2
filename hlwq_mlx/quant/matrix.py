"""A coded matrix: the arrays of one weight on disk, held together, and the checks of their shapes.

What codes mean is in codec, and how they are laid out is in packing.
N rows, K columns padded to a multiple of 128.
"""

from dataclasses import dataclass, field
from functools import cached_property

import mlx.core as mx

from ..errors import ShapeError
from .packing import BLOCK, UNIT


@dataclass(frozen=True, eq=False)
class CodedMatrix:
    """One weight in the layout P32.

    `passed` holds which checks it has passed, so that each is made once.
    Shapes: codes uint32 [N, K*bits/32], norms [N, K/128], centroids [>= 2**bits].
    """

    codes: mx.array
    norms: mx.array
    centroids: mx.array
    bits: int
    passed: set[str] = field(default_factory=set, repr=False)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """N and K, the padding columns included."""
        N, blocks = self.norms.shape
        return N, blocks * BLOCK

    @cached_property
    def arrays(self) -> tuple[mx.array, mx.array, mx.array]:
        """The arrays in the order of the kernels' inputs."""
        return self.codes, self.norms, self.centroids

    def check(self, where: str) -> None:
        """Raise ShapeError, whose text begins with `where`, when the arrays do not fit."""
        if "arrays" in self.passed:
            return
        bits, codes, norms = self.bits, self.codes, self.norms
        if not 1 <= bits <= 8:
            raise ShapeError(f"[{where}] needed 1 to 8 bits, got {bits}. Check the manifest.")
        if norms.ndim != 2:
            raise ShapeError(
                f"[{where}] needed norms [N, K/{BLOCK}], got shape {norms.shape}. "
                "Reshape them to one row of blocks for each row of the weight."
            )
        N, blocks = norms.shape
        shape = (N, blocks * BLOCK * bits // UNIT)
        if codes.dtype != mx.uint32 or codes.shape != shape:
            raise ShapeError(
                f"[{where}] needed uint32 codes {shape} for {bits} bits and norms {norms.shape}, "
                f"got {codes.dtype} {codes.shape}. Pack them with packing.pack_p32 at that width."
            )
        if self.centroids.ndim != 1 or self.centroids.size < 1 << bits:
            raise ShapeError(
                f"[{where}] needed at least {1 << bits} centroids for {bits} bits, "
                f"got shape {self.centroids.shape}. Take the table of that width."
            )
        self.passed.add("arrays")

    def check_halves(self, where: str) -> None:
        """Raise ShapeError when the rows cannot be those of gate above as many of up."""
        if self.norms.shape[0] % 2:
            raise ShapeError(
                f"[{where}] needed as many rows of gate as of up, got {self.norms.shape[0]} in "
                "all. Concatenate two matrices of one shape."
            )
