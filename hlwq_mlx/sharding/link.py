"""What machines send each other while they compute: MLX's collectives, and the bytes they send.

MLX carries them, by its ring over TCP or by JACCL. `sent` counts what this machine sends.
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
        """Add up what every machine gives, which has one shape; machines are a power of two.

        Halves are added in one order everywhere. A ring's own sum of four adds each part of the
        array in another order, so that a row's bits would tell in which company it was; and it
        takes twice as many messages, of fewer bytes.
        """
        parts = self.gather(x).astype(mx.float32)
        while len(parts) > 1:
            parts = parts[::2] + parts[1::2]
        return parts[0].astype(x.dtype)

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
