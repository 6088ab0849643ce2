"""Choose codes for what is in 16 bits: which tensors, how wide, at what cost.

Of a 16-bit model it is what was asked for (quantize.Coding), whatever it loses. The rest of this
file is about what a publisher, or that, left in 16 bits.

`keep` codes nothing. Otherwise a class of tensors gets the narrowest width at which the converged
table loses no more than a share of what the variant's own codes lose: `auto` a twentieth, so that
nobody can tell, `small` as much again, for Macs with 8 GB. What a width loses is a property of its
table (tables.error_energy); what a class really lost is measured as it is written. A tensor whose
blocks have a strong mean stays as it is: the table cuts that off (spec: data.md, finding 4).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..quant.packing import BLOCK, Codes
from ..quant.tables import centroids, error_energy
from ..source.coded import CodedTensor
from ..source.detect import Reading
from ..source.repository import PlainTensor
from ..source.rules import LEAST_ROUTER_BITS, TOWERS, class_of, matrix_class
from .output import ahead, row_slices
from .quantize import (
    MEAN_SHARE,
    Code,
    Coding,
    Encoder,
    Fidelity,
    Report,
    count_strong_means,
    encode,
    report_class,
)

AUTO, KEEP, SMALL = CHOICES = ("auto", "keep", "small")
TABLE = "converged"
ENCODER = Encoder(TABLE)
SHARES = {AUTO: 0.05, SMALL: 1.0}  # of the error energy of the variant's own codes
_PATIENCE_S = 1.0

# A row of the head is a token's score: below 4 bits tokens are confused. Per-layer matrices and
# towers are small, and what passes through them reaches every layer.
FLOORS = {"mlp": 1, "attention": 1, "experts": 1, "router": LEAST_ROUTER_BITS, "embedding": 4}
FLOORS |= {"ple": 8, "audio": 8, "vision": 8}

Coded = Mapping[str, tuple[CodedTensor, Reading]]


def own_energy(coded: Coded, asked: Mapping[str, "Leftover"] | None = None) -> float:
    """Return the error energy of the text model's coded weights over their energy; 0 for none.

    `asked` are those that will be coded because it was asked for.
    """
    blocks = {name: (tensor.norms.size, reading) for name, (tensor, reading) in coded.items()}
    blocks |= {name: (each.all_blocks, each.reading) for name, each in (asked or {}).items()}
    energies: dict[tuple[float, ...], float] = {}
    weights, lost = 0, 0.0
    for name, (count, reading) in blocks.items():
        if class_of(name) in TOWERS:
            continue
        table = tuple(reading.centroids.tolist())
        if table not in energies:
            energies[table] = error_energy(reading.centroids)
        weights += count
        lost += count * energies[table]
    return lost / weights if weights else 0.0


def width(choice: str, kind: str, own: float) -> int | None:
    """Return the bits for a class of tensors; None where it stays as it is.

    `own` is what `own_energy` returns, `kind` a class of rules.CLASSES.
    """
    limit = SHARES.get(choice, 0.0) * own
    narrowest = next((bits for bits in range(1, 9) if _energy(bits) <= limit), None)
    return None if narrowest is None else max(narrowest, FLOORS[kind])


@cache
def _energy(bits: int) -> float:
    return error_energy(centroids(TABLE, bits))


@cache
def _coder(encoder: Encoder, bits: int) -> Code:
    return encoder.coder(bits)


@dataclass
class Leftover:
    """A 16-bit matrix that is coded as it is written; `fidelity` grows with it."""

    tensor: PlainTensor
    bits: int
    fidelity: Fidelity
    encoder: Encoder = ENCODER

    @property
    def blocks(self) -> int:
        return -(-self.tensor.matrix[1] // BLOCK)

    @property
    def all_blocks(self) -> int:
        return self.tensor.matrix[0] * self.blocks

    @property
    def reading(self) -> Reading:
        table = self.encoder.table
        return Reading("msb", table, centroids(table, self.bits), "coded as it was written")

    def coded_rows(self, start: int, stop: int) -> tuple[Codes, NDArray[np.float16]]:
        """Code some rows: codes [n, K], norms [n, K/128].

        Raises: CheckpointError for weights that are not finite or too large for the norms.
        """
        return self._coded(self.tensor.float_rows(start, stop))

    def _coded(self, weight: NDArray[np.float32]) -> tuple[Codes, NDArray[np.float16]]:
        coded = encode(self.tensor.name, weight, _coder(self.encoder, self.bits))
        self.fidelity.add(weight.size, coded.energies)
        return coded.codes, coded.norms


@dataclass
class Asked(Leftover):
    """A matrix that is coded because it was asked for; its strong means are counted meanwhile."""

    far_blocks: list[int] = field(default_factory=list)

    def _coded(self, weight: NDArray[np.float32]) -> tuple[Codes, NDArray[np.float16]]:
        self.far_blocks.append(count_strong_means(weight))
        return super()._coded(weight)

    @property
    def strong_means(self) -> float:
        """The share of blocks with a strong mean."""
        return sum(self.far_blocks) / self.all_blocks


@dataclass
class Plan:
    """The tensors that will be coded and, when all is written, the errors that cost.

    `report` is about leftovers, `asked` about what was asked for.
    """

    choice: str
    own: float
    chosen: dict[str, Leftover] = field(default_factory=dict)
    report: Report = field(default_factory=Report)
    asked: Report = field(default_factory=Report)

    def note_strong_means(self) -> None:
        """Note, once all is written, what was asked for and does not suit the tables."""
        for leftover in self.chosen.values():
            if isinstance(leftover, Asked) and leftover.strong_means > MEAN_SHARE:
                self.asked.strong_means.append((leftover.tensor.name, leftover.strong_means))

    @property
    def row_bits(self) -> int:
        """The bits of the row store, which is read from disk and never has less than 8."""
        return 8 if self.choice == SMALL else 16

    def manifest(self) -> dict[str, Any]:
        """Return what was done as the folder's manifest states it."""
        classes = {
            name: {
                "bits": bits,
                "weights": fidelity.weights,
                "relative_error": round(fidelity.relative_error, 6),
            }
            for (name, bits), fidelity in sorted(self.report.classes.items())
        }
        strong = sorted(name for name, _ in self.report.strong_means)
        return {"choice": self.choice, "classes": classes, "strong_means": strong}

    def lines(self) -> Iterator[str]:
        """Return what was done as lines for a person; none when nothing was."""
        if self.asked.classes:
            yield from self.asked.lines()
        if self.report.classes:
            yield (
                f"leftovers, {self.choice}: coded with the {TABLE} table; the variant's own codes "
                f"have a relative error of {self.own**0.5:.5f}"
            )
            yield from self.report.class_lines()
        for name, share in self.report.strong_means:
            yield f"left at 16 bits: {name}, {share:.1%} of whose blocks have a strong mean"


def make_plan(
    choice: str, coded: Coded, plain: Mapping[str, PlainTensor], coding: Coding | None = None
) -> Plan:
    """Choose what of the plain tensors to code, reading the leftovers in question once."""
    plan = Plan(choice, 0.0)
    if coding is not None:
        _ask(plan, plain, coding)
    plan.own = own_energy(coded, plan.chosen)
    candidates = {
        name: bits
        for name, tensor in plain.items()
        if name not in plan.chosen
        and (bits := width_of(choice, name, tensor.shape, plan.own, tensor.spec.item_bytes))
        is not None
    }
    total = sum(plain[name].spec.nbytes for name in candidates)
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="inspect", delay=_PATIENCE_S
    ) as progress:
        strong = dict.fromkeys(candidates, 0)
        for name, blocks, size in ahead(_inspections({name: plain[name] for name in candidates})):
            strong[name] += blocks
            progress.update(size)
    for name, bits in candidates.items():
        tensor = plain[name]
        rows, columns = tensor.matrix
        share = strong[name] / (rows * -(-columns // BLOCK))
        if share > MEAN_SHARE:
            plan.report.strong_means.append((name, share))
            continue
        kind = report_class(name), bits
        fidelity = plan.report.classes.setdefault(kind, Fidelity())
        plan.chosen[name] = Leftover(tensor, bits, fidelity)
    return plan


def _ask(plan: Plan, plain: Mapping[str, PlainTensor], coding: Coding) -> None:
    """Add what was asked for to a plan."""
    for name, tensor in plain.items():
        bits = coding.rule(name, tensor.shape)
        if bits is not None:
            kind = report_class(tensor.name), bits
            fidelity = plan.asked.classes.setdefault(kind, Fidelity())
            plan.chosen[name] = Asked(tensor, bits, fidelity, coding.encoder)


def _inspections(
    tensors: Mapping[str, PlainTensor],
) -> Iterator[Callable[[], tuple[str, int, int]]]:
    """Yield calls that look at some rows: whose, how many strong means they have, their bytes."""

    def inspect(name: str, start: int, stop: int) -> tuple[str, int, int]:
        rows = tensors[name].float_rows(start, stop)
        return name, count_strong_means(rows), rows.size * tensors[name].spec.item_bytes

    for name, tensor in tensors.items():
        rows, columns = tensor.matrix
        for start, stop in row_slices(rows, 4 * columns):
            yield partial(inspect, name, start, stop)


def width_of(
    choice: str, name: str, shape: tuple[int, ...], own: float, item_bytes: int = 2
) -> int | None:
    """Return the bits for one tensor, if it is of a class, and smaller with them.

    `own` is what `own_energy` returns, `item_bytes` what one of its weights takes uncoded.
    """
    kind = matrix_class(name, shape)
    if kind is None:
        return None
    if kind in TOWERS and not name.endswith(".linear.weight"):  # others are not plain products
        return None
    bits = width(choice, kind, own)
    if bits is None:
        return None
    blocks = -(-shape[-1] // BLOCK)
    is_smaller = blocks * (BLOCK * bits // 8 + 2) < shape[-1] * item_bytes
    return bits if is_smaller else None
