"""Choose codes for what is in 16 bits: which tensors, how wide, at what cost.

Of a 16-bit model it is what was asked for (quantize.Coding), whatever it loses. The rest of this
file is about what a publisher, or that, left in 16 bits.

`keep` codes nothing. Otherwise a class of tensors gets the narrowest width at which the converged
table loses no more than a share of what the variant's own codes lose: `auto` a twentieth, so that
nobody can tell, `small` as much again, for Macs with 8 GB. What a width loses is a property of its
table (tables.error_energy); what a class really lost is measured as it is written. Whatever is
coded keeps the means of its blocks beside the codes where they are strong (quant.means).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from tqdm import tqdm

from ..quant.coder import Coded as CodedRows
from ..quant.packing import BLOCK
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
def _coder(encoder: Encoder, bits: int, has_means: bool) -> Code:
    return encoder.coder(bits, has_means)


@dataclass
class Leftover:
    """A 16-bit matrix that is coded as it is written; `fidelity` grows with it."""

    tensor: PlainTensor
    bits: int
    fidelity: Fidelity
    encoder: Encoder = ENCODER
    is_asked: bool = False
    has_means: bool = False

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

    def coded_rows(self, start: int, stop: int) -> CodedRows:
        """Code some rows.

        Raises: CheckpointError for weights that are not finite or too large for the norms.
        """
        weight = self.tensor.float_rows(start, stop)
        coder = _coder(self.encoder, self.bits, self.has_means)
        coded = encode(self.tensor.name, weight, coder)
        self.fidelity.add(weight.size, coded.energies)
        return coded


@dataclass
class Plan:
    """The tensors that will be coded and, when all is written, the errors that cost.

    `report` is about leftovers, `asked` about what was asked for; `strong_means` are the shares of
    blocks with a strong mean where means are kept.
    """

    choice: str
    own: float
    chosen: dict[str, Leftover] = field(default_factory=dict)
    report: Report = field(default_factory=Report)
    asked: Report = field(default_factory=Report)
    strong_means: dict[str, float] = field(default_factory=dict)

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
        return {
            "choice": self.choice,
            "classes": classes,
            "strong_means": sorted(self.strong_means),
        }

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
        for name, share in sorted(self.strong_means.items()):
            yield f"means kept beside codes: {name}, {share:.1%} of whose blocks have a strong one"


def make_plan(
    choice: str, coded: Coded, plain: Mapping[str, PlainTensor], coding: Coding | None = None
) -> Plan:
    """Choose what of the plain tensors to code, reading that once."""
    plan = Plan(choice, 0.0)
    if coding is not None:
        _ask(plan, plain, coding)
    plan.own = own_energy(coded, plan.chosen)
    for name, tensor in plain.items():
        if name not in plan.chosen:
            bits = width_of(choice, name, tensor.shape, plan.own, tensor.spec.item_bytes)
            if bits is not None:
                fidelity = plan.report.of(name, bits)
                plan.chosen[name] = Leftover(tensor, bits, fidelity)
    for name, blocks in _strong_means({name: plain[name] for name in plan.chosen}).items():
        share = blocks / plan.chosen[name].all_blocks
        if share > MEAN_SHARE:
            plan.strong_means[name] = share
            plan.chosen[name].has_means = True
    return plan


def _ask(plan: Plan, plain: Mapping[str, PlainTensor], coding: Coding) -> None:
    """Add what was asked for to a plan."""
    for name, tensor in plain.items():
        bits = coding.rule(name, tensor.shape)
        if bits is not None:
            fidelity = plan.asked.of(name, bits)
            plan.chosen[name] = Leftover(tensor, bits, fidelity, coding.encoder, is_asked=True)


def _strong_means(tensors: Mapping[str, PlainTensor]) -> dict[str, int]:
    """Count the blocks of each tensor that have a strong mean, reading it once."""
    strong = dict.fromkeys(tensors, 0)
    total = sum(tensor.spec.nbytes for tensor in tensors.values())
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="inspect", delay=_PATIENCE_S
    ) as progress:
        for name, blocks, size in ahead(_inspections(tensors)):
            strong[name] += blocks
            progress.update(size)
    return strong


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
