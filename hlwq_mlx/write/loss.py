"""Measure what coding would lose, unit by unit and width by width, on a sample of the weights.

A loss is the error energy of a tensor's codes over the energy of its weights, summed over the
tensors of a unit (rules.Unit), by a weight. A stack of experts counts once, as the one matrix that
a token meets there: every block ends in a norm, so what each adds to the residual stream, and its
error there, is as large as any other's, however many weights it has. The head stands alone behind
the sum of all of them, so it counts as much as they do together. What attention copies wrongly is
lost for good: it counts for eight others, by what scripts/benchmarks/mixtures.py measured.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..quant.coder import Energies
from ..quant.tables import centroids, error_energy
from ..source.repository import PlainTensor
from ..source.rules import Unit, unit_of
from .output import ahead
from .quantize import Encoder, encode, has_strong_means

WIDTHS = range(1, 9)
_SAMPLE_WEIGHTS = 1 << 18  # 2,048 blocks, whose mean error is known to a few hundredths
ATTENTION_WEIGHT = 8.0
_RUNS = 16
_PATIENCE_S = 1.0

Losses = Mapping[Unit, Mapping[int, float]]
"""By unit and bits."""


def by_table(shapes: Mapping[str, tuple[int, ...]], table: str) -> Losses:
    """Return what normally distributed weights of these shapes would lose."""
    energies = {bits: error_energy(centroids(table, bits)) for bits in WIDTHS}
    units = [unit for each in shapes.items() if (unit := unit_of(*each)) is not None]
    weights = weights_of(units)
    return {
        unit: {bits: count * weights[unit] * energy for bits, energy in energies.items()}
        for unit, count in Counter(units).items()
    }


def weights_of(units: Sequence[Unit]) -> dict[Unit, float]:
    """Return how much a tensor's loss counts, given the unit of every tensor."""
    in_layers = {"attention": ATTENTION_WEIGHT}
    layers = sum(in_layers.get(unit.kind, 1.0) for unit in units if unit.layer >= 0)
    return {
        unit: layers if unit.kind == "embedding" else in_layers.get(unit.kind, 1.0)
        for unit in units
    }


def measure(tensors: Mapping[str, PlainTensor], encoder: Encoder) -> Losses:
    """Code a sample of every matrix of the text model at every width, a few at a time.

    Raises: CheckpointError for weights that cannot be coded.
    """
    units = {
        name: unit
        for name, tensor in tensors.items()
        if (unit := unit_of(name, tensor.shape)) is not None
    }
    weights = weights_of(list(units.values()))
    losses = {unit: dict.fromkeys(WIDTHS, 0.0) for unit in sorted(weights)}
    coders = {
        has_means: {bits: encoder.coder(bits, has_means) for bits in WIDTHS}
        for has_means in (False, True)
    }

    def code(name: str) -> tuple[Unit, dict[int, float]]:
        rows = sample(tensors[name])
        chosen = coders[has_strong_means(rows)]
        coded = {bits: encode(name, rows, coder) for bits, coder in chosen.items()}
        return units[name], {bits: relative(each.energies) for bits, each in coded.items()}

    with tqdm(total=len(units), unit="tensor", desc="measure", delay=_PATIENCE_S) as progress:
        for unit, lost in ahead(partial(code, name) for name in units):
            for bits, loss in lost.items():
                losses[unit][bits] += weights[unit] * loss
            progress.update()
    return losses


def with_strong_means(tensors: Mapping[str, PlainTensor]) -> set[str]:
    """Return the names of matrices of the text model that have strong means, by their samples."""
    return {
        name
        for name, tensor in tensors.items()
        if unit_of(name, tensor.shape) is not None and has_strong_means(sample(tensor))
    }


def sample(tensor: PlainTensor) -> NDArray[np.float32]:
    """Return rows out of all parts of a tensor, all of them where it is small: [n, K]."""
    rows, columns = tensor.matrix
    length = max(1, _SAMPLE_WEIGHTS // columns // _RUNS)
    if rows <= length * _RUNS:
        return tensor.float_rows(0, rows)
    starts = [(rows - length) * run // (_RUNS - 1) for run in range(_RUNS)]
    return np.concatenate([tensor.float_rows(start, start + length) for start in starts])


def relative(energies: Energies) -> float:
    """Return the error energy over the energy of the weights; 0 for weights that are all 0."""
    return energies.errors / energies.weights if energies.weights else 0.0
