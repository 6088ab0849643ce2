"""What a chip can do for a weight while memory delivers it: figures of others, and a division.

Decoding waits for memory as long as a core has issued and computed its share of a weight before the
next one has come. `budget` is how many instructions a lane may issue for each weight until then.

Cores and bytes a second are from Apple's specifications of the Macs. Clocks of the M1 and M2 are
from metal-benchmarks (github.com/philipturner/metal-benchmarks), those of the M3 and M4 from lists
of hardware (hmc-tech.com); 128 lanes a core, each of which may issue once a cycle, from the former.
From the M3 on a core can issue to two of its pipes at once: there the budget is too small, and the
instructions that are counted are an M1's.
"""

from typing import NamedTuple

LANES = 128  # of a core
NORM_BITS = 0.125  # a float16 for every block of 128
SUSTAINED = 57 / 68.25  # of the peak: what decoders have reached on an M1, taken for every chip


class Chip(NamedTuple):
    """A chip with a number of GPU cores: clock in GHz, peak of memory in GB/s."""

    name: str
    cores: int
    clock: float
    peak: float

    @property
    def bandwidth(self) -> float:
        """Return the bytes a second that memory sustains."""
        return self.peak * SUSTAINED * 1e9

    @property
    def issued(self) -> float:
        """Return the instructions a second that all lanes issue together."""
        return self.cores * LANES * self.clock * 1e9

    def budget(self, bits: int) -> float:
        """Return the issue slots of a lane for a weight of `bits` bits at what memory sustains."""
        return self.issued / (self.bandwidth * 8 / (bits + NORM_BITS))


M1 = Chip("M1", 8, 1.278, 68.25)
CHIPS = (
    Chip("M1", 7, 1.278, 68.25),
    M1,
    Chip("M1 Pro", 14, 1.296, 200),
    Chip("M1 Pro", 16, 1.296, 200),
    Chip("M1 Max", 24, 1.296, 400),
    Chip("M1 Max", 32, 1.296, 400),
    Chip("M2", 8, 1.398, 100),
    Chip("M2", 10, 1.398, 100),
    Chip("M2 Pro", 16, 1.398, 200),
    Chip("M2 Pro", 19, 1.398, 200),
    Chip("M2 Max", 30, 1.398, 400),
    Chip("M2 Max", 38, 1.398, 400),
    Chip("M3", 8, 1.398, 100),
    Chip("M3", 10, 1.398, 100),
    Chip("M3 Pro", 14, 1.398, 150),
    Chip("M3 Pro", 18, 1.398, 150),
    Chip("M3 Max", 30, 1.398, 300),
    Chip("M3 Max", 40, 1.398, 400),
    Chip("M4", 8, 1.578, 120),
    Chip("M4", 10, 1.578, 120),
    Chip("M4 Pro", 16, 1.578, 273),
    Chip("M4 Pro", 20, 1.578, 273),
    Chip("M4 Max", 32, 1.578, 410),
    Chip("M4 Max", 40, 1.578, 546),
)
