"""How many tokens a second machines bring together: a model, nothing of which was measured on Macs.

A token takes each machine the bytes that it reads over the bandwidth of its memory. A message takes
the link's latency, its bytes over the bandwidth, and the fence: GPU and CPU wait for each other
around each, because the network is the CPU's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RequestError
from ..gemma4.config import TextConfig
from ..memory.machine import RELEASES, mac

# Bytes a second that memory sustains: what Apple states, at the share of it that others measure on
# an M1 (57 of 68.25 GB/s).
SUSTAINED = 57 / 68.25
CHIPS = {
    name: peak * 1e9 * SUSTAINED
    for name, peak in {"M1": 68.25, "M2": 100, "M3": 100, "M4": 120}.items()
}
# Seconds from one machine's CPU to the other's, assumed: TCP by Ethernet's or Thunderbolt's bridge.
LATENCIES = {1.0: 150e-6, 10.0: 60e-6, 40.0: 40e-6}
# Seconds that GPU and CPU lose to each other around a collective: assumed, to be measured on a Mac.
FENCE_S = 50e-6


@dataclass(frozen=True)
class Mac:
    """A machine: what MLX may fill of its memory, and how fast it reads that."""

    name: str
    limit_bytes: float
    bytes_s: float


@dataclass(frozen=True)
class Link:
    """What connects neighbours."""

    gbit_s: float
    latency_s: float
    fence_s: float = FENCE_S

    @property
    def name(self) -> str:
        return f"{self.gbit_s:g} Gbit/s"

    def message_s(self, nbytes: float) -> float:
        """Return how long a message to a neighbour takes."""
        return self.latency_s + 8 * nbytes / (self.gbit_s * 1e9)


def mac_of(text: str) -> Mac:
    """Return the Mac that `CHIP:GB` names, with what macOS 26 gives its GPU.

    Raises: RequestError for another text.
    """
    chip, _, gb = text.partition(":")
    if chip not in CHIPS or not gb.isdecimal() or not int(gb):
        raise RequestError(
            f"[--macs] needed a chip of {', '.join(CHIPS)} and its memory in GB, as M1:16, got "
            f"{text}. Take the nearest."
        )
    return Mac(f"{chip}, {gb} GB", mac(int(gb), RELEASES[-1]).limit_bytes, CHIPS[chip])


def link_of(gbit_s: float) -> Link:
    """Return a link of this bandwidth, with the latency that is usual for the nearest one.

    Raises: RequestError for no bandwidth.
    """
    if not gbit_s > 0:
        raise RequestError(f"[--link] needed Gbit/s above 0, got {gbit_s}. 10 is Ethernet's.")
    nearest = min(LATENCIES, key=lambda known: abs(known - gbit_s))
    return Link(gbit_s, LATENCIES[nearest])


def all_reduces(text: TextConfig) -> int:
    """Count the collectives of a token where tensors part: two a layer, and both ends."""
    return 2 * text.num_hidden_layers + 2


def lone_tokens_s(read: float, mac: Mac) -> float:
    """Return the tokens a second of one machine that reads so many bytes for each."""
    return mac.bytes_s / read


def layers_tokens_s(
    read: Sequence[float], macs: Sequence[Mac], link: Link, hidden: int, last: int
) -> float:
    """Return the tokens a second where layers part: one machine works after the other.

    `hidden` bytes go from each to the next, `last` from the last to the first, which also tells
    the others the token.
    """
    works = sum(size / mac.bytes_s for size, mac in zip(read, macs, strict=True))
    hops = (len(macs) - 1) * link.message_s(hidden) + link.message_s(last)
    return 1 / (works + hops + len(macs) * link.fence_s + link.latency_s)


def tensors_tokens_s(
    read: Sequence[float], macs: Sequence[Mac], link: Link, collectives: int, nbytes: int
) -> float:
    """Return the tokens a second where tensors part: the slowest machine's, and every collective's.

    A ring hands what all give round in n - 1 messages.
    """
    works = max(part / mac.bytes_s for part, mac in zip(read, macs, strict=True))
    one = (len(macs) - 1) * link.message_s(nbytes) + link.fence_s
    return 1 / (works + collectives * one + link.latency_s)
