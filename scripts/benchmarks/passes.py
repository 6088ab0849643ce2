"""What a pass of one or several tokens costs a chip: a model, not a measurement.

A product takes as long as memory delivers its weights, or as long as the chip issues the kernel's
instructions where that is longer: counts.json of the M1's, at the tiles of the M1. To these come
keys and values, which every token of a pass reads by itself, launches that wait for one another,
and the host's work between a token and the next pass, unless it is done meanwhile. Weights of 16
bits are taken to wait for memory at any number of tokens, and every token to read its own experts,
also those that another of the pass chooses. Nothing here was timed.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from hlwq_mlx.folder import published
from hlwq_mlx.gemma4.config import FULL
from hlwq_mlx.gemma4.drafter_config import DrafterConfig
from hlwq_mlx.memory import inventory
from hlwq_mlx.quant.chips import MOST_TOKENS
from hlwq_mlx.quant.packing import BLOCK
from hlwq_mlx.source.rules import Rule
from scripts.benchmarks import launches
from scripts.kernels.agx import counts, programs
from scripts.kernels.agx.chips import Chip

LAUNCH_S = 1.65e-6  # others report 1.3 to 2 microseconds for a launch that waits for another
SYNC_S = 2e-4  # assumed: the host waits once more, for the drafts
PLAIN = 2.0  # bytes of a weight of 16 bits
TOKENS = range(1, MOST_TOKENS + 1)

Shapes = dict[str, tuple[int, ...]]
Widths = Counter[int | None]
"""How many weights a pass reads of each width; None: 16 bits."""


class Model(NamedTuple):
    """A model as passes meet it: weights by width, launches by tokens, bytes of keys and values.

    `chosen` are weights of the experts of one token.
    """

    weights: Widths
    launches: Sequence[int]
    kv_bytes: int
    chosen: Widths

    @property
    def weight_bytes(self) -> float:
        """Return the bytes of weights that a pass of one token reads."""
        return sum(count * bytes_of(bits) for bits, count in (self.weights + self.chosen).items())


class Pass(NamedTuple):
    """The seconds of a pass: products, of which `waited` for memory, attention, launches, host."""

    products: float
    waited: float
    attention: float
    launches: float
    host: float

    @property
    def seconds(self) -> float:
        """Return the sum."""
        return self.products + self.attention + self.launches + self.host


class Drafter(NamedTuple):
    """A drafter: what each draft reads and launches; its drafts need one wait of the host."""

    bytes: float
    launches: int

    def seconds(self, chip: Chip, drafts: int) -> float:
        """Return what `drafts` drafts take, one after another."""
        each = self.bytes / chip.bandwidth + self.launches * LAUNCH_S
        return drafts * each + SYNC_S if drafts else 0.0


def bytes_of(bits: int | None) -> float:
    """Return the bytes of a weight: codes, and a float16 norm for every block."""
    return PLAIN if bits is None else bits / 8 + 2 / BLOCK


def widths(rule: Rule, shapes: Shapes) -> Widths:
    """Count a model's weights by width."""
    found: Widths = Counter()
    for name, shape in shapes.items():
        found[rule(name, shape)] += math.prod(shape)
    return found


def cost(model: Model, chip: Chip, tokens: int, host_s: float = 0.0) -> Pass:
    """Return what a pass of so many tokens takes."""
    waited = products = 0.0
    for weights, times, rows in ((model.weights, 1, tokens), (model.chosen, tokens, 1)):
        for bits, count in weights.items():
            memory = times * count * bytes_of(bits) / chip.bandwidth
            issued = 0.0 if bits is None else times * issue_s(chip, bits, rows, count)
            waited += memory
            products += max(memory, issued)
    attention = tokens * model.kv_bytes / chip.bandwidth
    return Pass(products, waited, attention, model.launches[tokens - 1] * LAUNCH_S, host_s)


def issue_s(chip: Chip, bits: int, tokens: int, weights: int) -> float:
    """Return the seconds in which a chip issues a product's instructions."""
    program = programs.qmv(bits, programs.usual_tile(bits, tokens))
    return weights * COUNTED[program.name].cost / chip.issued


def breaks_even(
    model: Model, chip: Chip, tokens: int, host_s: float, drafter: Drafter | None
) -> float:
    """Return how many tokens a pass has to give, of `tokens` tried, to be as fast as one by one."""
    drafting = drafter.seconds(chip, tokens - 1) if drafter else 0.0
    alone = cost(model, chip, 1, host_s).seconds
    return (cost(model, chip, tokens, host_s).seconds + drafting) / alone


def e4b_drafter(context: int) -> Drafter:
    """Return the drafter that Google publishes for E4B, of 16 bits.

    Of the words it scores its centroids, and then the rows that the best of these name. Its layers
    read the model's keys and values.
    """
    args = DrafterConfig.from_dict(published.E4B_DRAFTER)
    text = args.text_config
    layers = [text.layer(index) for index in range(text.num_hidden_layers)]
    keys = sum(
        2
        * layer.num_key_value_heads
        * layer.head_dim
        * (context if layer.layer_type == FULL else min(text.sliding_window, context))
        for layer in layers
    )
    weights = inventory.draft_bytes(inventory.of_drafter(None), args)
    return Drafter(weights + PLAIN * keys, launches.count_draft())


COUNTED = counts.load()
