"""What machines send each other while they compute: MLX's collectives, and the bytes they send.

MLX carries them, by its ring over TCP or by JACCL. `sent` counts what this machine sends; what it
sends for a sum is what a ring needs of it, twice all but its own part.
"""

from collections.abc import Sequence

import mlx.core as mx


class Link:
    """One machine's end of a group."""

    def __init__(self, group: mx.distributed.Group) -> None:
        self._group = group
        self.rank, self.size = group.rank(), group.size()
        self.sent = 0

    @property
    def is_last(self) -> bool:
        return self.rank == self.size - 1

    def sum(self, x: mx.array) -> mx.array:
        """Add up what every machine gives, which has one shape."""
        self.sent += sum_bytes(x.nbytes, self.size)
        return mx.distributed.all_sum(x, group=self._group)

    def gather(self, x: mx.array) -> mx.array:
        """Put what every machine gives behind each other: [...] -> [size, ...]."""
        self.sent += x.nbytes * (self.size - 1)
        return mx.distributed.all_gather(x[None], group=self._group)

    def send(self, x: mx.array, to: int) -> None:
        """Send an array to a neighbour of the ring, and wait until it is on its way."""
        self.sent += x.nbytes
        mx.eval(mx.distributed.send(x, to, group=self._group))

    def receive(self, shape: Sequence[int], dtype: mx.Dtype, source: int) -> mx.array:
        """Return what a neighbour sends, which arrives when it is evaluated."""
        return mx.distributed.recv(tuple(shape), dtype, source, group=self._group)


def sum_bytes(nbytes: int, size: int) -> int:
    """Return what each machine of a ring sends to add up arrays of so many bytes."""
    return 2 * nbytes * (size - 1) // size
