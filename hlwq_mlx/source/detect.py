"""Decide what a source file does not state: the order of its bits and the table of its centroids.

Three and five to seven bits show their order in a histogram. One, two and four do not: a wrong
order is there a sign pattern or a permutation of columns, with the same norms, histogram and
spectrum and a broken model. Such a tensor is compared with another width of itself, or with the
16-bit gate_proj that reads the same input; failing both, its key style decides. Tables differ
only in their tails and show in the energy of blocks without an end code. Whatever was settled, the
energy of all codes says whether it can be right at all.

Source: spec hlwq_format §7.4, §7.5, §7.7. N rows, K columns padded to blocks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..quant import codec
from ..quant.packing import BLOCK, BitOrder, Codes
from ..quant.tables import CENTROIDS, cell_probabilities, centroids
from .coded import CodedTensor

Matrix = NDArray[np.float32]
Rows = Callable[[int, int], Matrix]

HISTOGRAM_WIDTHS = frozenset({3, 5, 6, 7})
_HISTOGRAM_CODES = 1 << 16
_LEAST_CODES = 1 << 12
_DECISIVE_NATS = 0.02  # wrong orders are 0.065 or more apart from right ones
_GRAM_ROWS = 2048
_GRAM_LAYERS = 4  # a model whose first layers do not tell would keep us busy for minutes
_GRAM_RIGHT, _GRAM_WRONG = 0.05, 0.02
_SIBLING_ROWS = 64
_SIBLING_RIGHT = 0.5  # right is above 0.7 even between one bit and eight, wrong near 0
_ENERGY_BITS = 5
_ENERGY_BLOCKS = 1 << 14
_LEAST_BLOCKS = 1 << 11
_SAMPLE_ROWS, _LEAST_ROWS = 32, 8
_SAMPLE_CODES = 1 << 15  # their energy is off by 1 % at most, that of wrong ones by 15 %
_ENERGY_TOLERANCE = 0.15


@dataclass(frozen=True)
class Reading:
    """How one coded tensor is read, and why."""

    order: BitOrder
    table: str
    centroids: NDArray[np.float32]
    evidence: str


def candidate_orders(tensor: CodedTensor) -> tuple[BitOrder, ...]:
    """List the orders a tensor's bits could be in."""
    if tensor.stored_bits == 8:
        return (tensor.key_order,)
    return ("msb", "lsb", "half") if tensor.stored_bits == 4 else ("msb", "lsb")


def order_by_histogram(tensor: CodedTensor) -> BitOrder | None:
    """Pick the order whose codes are distributed as the centroids' cells, if one clearly is."""
    if tensor.stored_bits not in HISTOGRAM_WIDTHS:
        return None
    rows = min(tensor.norms.shape[0], -(-_HISTOGRAM_CODES // tensor.padded_columns))
    if rows * tensor.padded_columns < _LEAST_CODES:
        return None
    expected = cell_probabilities(centroids("clip4_100", tensor.bits))
    distances = {}
    for order in candidate_orders(tensor):
        codes = tensor.rows(0, rows, order)[tensor.norms[:rows].repeat(BLOCK, axis=1) > 0]
        counts = np.bincount(codes, minlength=len(expected)) / max(1, codes.size)
        seen = counts > 0
        distances[order] = float((counts[seen] * np.log(counts[seen] / expected[seen])).sum())
    best, next_best = sorted(distances, key=distances.__getitem__)
    return best if distances[next_best] - distances[best] > _DECISIVE_NATS else None


def decode_rows(tensor: CodedTensor, rows: int, order: BitOrder, table: str) -> Matrix:
    """Decode the first rows of a tensor in an order that is on trial."""
    values = tensor.own_table if tensor.own_table is not None else centroids(table, tensor.bits)
    return codec.decode(tensor.rows(0, rows, order), tensor.norms[:rows], values)


def order_by_sibling(tensor: CodedTensor, sibling: CodedTensor) -> BitOrder | None:
    """Pick the order in which a tensor agrees with another width of itself."""
    is_plain = sibling.stored_bits == 8  # whole bytes have no order
    known = sibling.key_order if is_plain else order_by_histogram(sibling)
    rows = min(_SIBLING_ROWS, tensor.norms.shape[0])
    is_same = sibling.norms.shape == tensor.norms.shape
    if (
        known is None
        or not is_same
        or not (tensor.norms[:rows].any() and sibling.norms[:rows].any())
    ):
        return None
    reference = decode_rows(sibling, rows, known, sibling.implied_table).ravel()
    scores = {
        order: float(
            np.corrcoef(decode_rows(tensor, rows, order, tensor.implied_table).ravel(), reference)[
                0, 1
            ]
        )
        for order in candidate_orders(tensor)
    }
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > _SIBLING_RIGHT else None


def order_by_gram(tensor: CodedTensor, gate: Rows) -> BitOrder | None:
    """Pick the order in which up_proj's columns correlate as those of the 16-bit gate_proj do."""
    rows = min(_GRAM_ROWS, tensor.norms.shape[0])
    reference = gate(0, rows)
    if not (reference.any() and tensor.norms[:rows].any()):
        return None
    columns = reference.shape[1]
    beside = ~np.eye(columns, dtype=bool)
    target = (reference.T @ reference)[beside]
    scores = {}
    for order in candidate_orders(tensor):
        weight = decode_rows(tensor, rows, order, tensor.implied_table)[:, :columns]
        scores[order] = float(np.corrcoef((weight.T @ weight)[beside], target)[0, 1])
    best = max(scores, key=scores.__getitem__)
    rest = max(score for order, score in scores.items() if order != best)
    return best if scores[best] > _GRAM_RIGHT and rest < _GRAM_WRONG else None


def settle_orders(
    tensors: Mapping[str, CodedTensor],
    siblings: Sequence[Mapping[str, CodedTensor]],
    gates: Mapping[str, Rows],
    forced: BitOrder | None,
) -> dict[str, tuple[BitOrder, str]]:
    """Choose an order for every tensor; tensors of one width and key style share a verdict.

    Raises: RequestError when the order that is asked for cannot be that of a tensor.
    """
    verdicts: dict[tuple[int, BitOrder], tuple[BitOrder, str]] = {}
    ambiguous = {1, 2, 4} & {tensor.stored_bits for tensor in tensors.values()}
    siblings = siblings if ambiguous else ()
    gates = dict(islice(gates.items(), _GRAM_LAYERS))
    for tensor in tensors.values():
        family = tensor.stored_bits, tensor.key_order
        if forced is not None and tensor.stored_bits < 8:
            if forced not in candidate_orders(tensor):
                raise RequestError(
                    f"[--bit-order] needed {' or '.join(candidate_orders(tensor))} for "
                    f"{tensor.stored_bits} bits a code, got {forced}. Leave the option out."
                )
            verdicts[family] = forced, "as asked"
        elif family not in verdicts:
            found = _order_by_evidence(tensor, siblings, gates)
            if found is not None:
                verdicts[family] = found
    return {
        name: verdicts.get(
            (tensor.stored_bits, tensor.key_order), (tensor.key_order, "by key style")
        )
        for name, tensor in tensors.items()
    }


def _order_by_evidence(
    tensor: CodedTensor,
    siblings: Iterable[Mapping[str, CodedTensor]],
    gates: Mapping[str, Rows],
) -> tuple[BitOrder, str] | None:
    if len(candidate_orders(tensor)) == 1:
        return tensor.key_order, "a byte a code"
    by_histogram = order_by_histogram(tensor)
    if by_histogram is not None:
        return by_histogram, "by histogram"
    for others in siblings:
        if tensor.name in others:
            by_sibling = order_by_sibling(tensor, others[tensor.name])
            if by_sibling is not None:
                return by_sibling, "by another width of the same tensor"
    gate = gates.get(tensor.name.replace(".up_proj.", ".gate_proj."))
    if gate is not None and ".up_proj." in tensor.name:
        by_gram = order_by_gram(tensor, gate)
        if by_gram is not None:
            return by_gram, "by comparison with gate_proj"
    return None


def energy_errors(codes: Codes, norms: NDArray[np.float16], bits: int) -> dict[str, float]:
    """Return how far each table's block energies are from 1; nothing without enough blocks.

    Blocks with an end code say nothing: a table's ends are where values were clipped.
    Shapes: codes uint8 [blocks, 128], norms [blocks].
    """
    inner = (codes > 0).all(1) & (codes < (1 << bits) - 1).all(1) & (norms > 0)
    if np.count_nonzero(inner) < _LEAST_BLOCKS:
        return {}
    errors = {}
    for table in CENTROIDS:
        squares = centroids(table, bits).astype(np.float64) ** 2
        energy = squares[codes[inner]].mean(axis=1)
        errors[table] = float(np.sqrt(((energy - 1) ** 2).mean()))
    return errors


def table_by_energy(
    tensors: Iterable[CodedTensor], orders: Mapping[str, tuple[BitOrder, str]], bits: int
) -> str | None:
    """Pick the table of a width from blocks of its tensors, or None when there are too few."""
    codes: list[Codes] = []
    norms: list[NDArray[np.float16]] = []
    blocks = 0
    for tensor in tensors:
        if blocks >= _ENERGY_BLOCKS:
            break
        per_row = tensor.norms.shape[1]
        rows = min(tensor.norms.shape[0], -(-(_ENERGY_BLOCKS - blocks) // per_row))
        order = orders[tensor.name][0]
        codes.append(tensor.rows(0, rows, order).reshape(-1, BLOCK))
        norms.append(tensor.norms[:rows].reshape(-1))
        blocks += rows * per_row
    errors = energy_errors(np.concatenate(codes), np.concatenate(norms), bits)
    return min(errors, key=errors.__getitem__) if errors else None


def tables_by_width(
    tensors: Iterable[CodedTensor], orders: Mapping[str, tuple[BitOrder, str]]
) -> dict[int, str]:
    """Pick a table for each width of five bits or more that has blocks enough to tell."""
    by_width: dict[int, list[CodedTensor]] = {}
    for tensor in tensors:
        if tensor.own_table is None and tensor.bits >= _ENERGY_BITS:
            by_width.setdefault(tensor.bits, []).append(tensor)
    found = {bits: table_by_energy(by_width[bits], orders, bits) for bits in sorted(by_width)}
    return {bits: table for bits, table in found.items() if table is not None}


def settle_tables(
    tensors: Mapping[str, CodedTensor],
    orders: Mapping[str, tuple[BitOrder, str]],
    siblings: Sequence[Mapping[str, CodedTensor]],
    told: tuple[str, str] | None,
) -> dict[str, tuple[str, str]]:
    """Choose a table for every tensor; below five bits wider tensors of the model decide.

    `told` is a table that needs no guess, and who told it.
    """
    is_open = {
        name: tensor.own_table is None and tensor.implied_table == "clip4_100"
        for name, tensor in tensors.items()
    }
    own = tables_by_width((tensors[name] for name in tensors if is_open[name]), orders)
    wider, evidence = own, "as the wider tensors of the file"
    if not own and told is None and any(is_open.values()):
        evidence = "as another width of the model"
        for sibling in siblings:
            wider = wider or tables_by_width(sibling.values(), settle_orders(sibling, (), {}, None))
    verdicts: dict[str, tuple[str, str]] = {}
    for name, tensor in tensors.items():
        if tensor.own_table is not None:
            verdicts[name] = "file", "stored in the file"
        elif told is not None:
            verdicts[name] = told
        elif not is_open[name]:
            verdicts[name] = tensor.implied_table, "by key style"
        elif tensor.bits in own:
            verdicts[name] = own[tensor.bits], "by block energy"
        elif wider:
            verdicts[name] = wider[max(wider)], evidence
        else:
            verdicts[name] = tensor.implied_table, "by key style"
    return verdicts


def settle(
    tensors: Mapping[str, CodedTensor],
    siblings: Sequence[Mapping[str, CodedTensor]],
    gates: Mapping[str, Rows],
    forced_order: BitOrder | None,
    forced_table: str | None,
    stated_table: str | None,
) -> dict[str, Reading]:
    """Decide how every coded tensor of a file is read.

    `siblings` are other widths of the same model, `gates` its 16-bit gate_proj matrices by name.
    A table is forced by who asks for the model, stated by who wrote the file.
    """
    orders = settle_orders(tensors, siblings, gates, forced_order)
    told = None
    if forced_table is not None:
        told = forced_table, "as asked"
    elif stated_table is not None:
        told = stated_table, "as the file says"
    tables = settle_tables(tensors, orders, siblings, told)
    readings = {}
    for name, tensor in tensors.items():
        order, order_evidence = orders[name]
        table, table_evidence = tables[name]
        own = tensor.own_table
        values = own if own is not None else centroids(table, tensor.bits)
        evidence = f"order {order} {order_evidence}, table {table} {table_evidence}"
        readings[name] = Reading(order, table, values, evidence)
    return readings


def is_odd(tensor: CodedTensor, reading: Reading) -> bool:
    """Return whether a tensor's codes, as read, lack the energy that rotated weights have.

    That of a wrong table, width or order, but also of weights whose blocks have strong means: no
    reason to refuse a file. Looks at rows from all over the tensor; too few say nothing.
    """
    count = min(_SAMPLE_ROWS, max(_LEAST_ROWS, _SAMPLE_CODES // tensor.padded_columns))
    rows = np.unique(np.linspace(0, len(tensor.norms) - 1, count).astype(int))
    codes = tensor.rows_at(rows, reading.order)
    codes = codes.reshape(-1, BLOCK)[tensor.norms[rows].reshape(-1) > 0]
    if codes.size < _LEAST_CODES:
        return False
    squares = reading.centroids.astype(np.float64) ** 2
    energy = float(squares[codes].mean())
    return abs(energy / _expected_energy(*reading.centroids.tolist()) - 1) > _ENERGY_TOLERANCE


@cache
def _expected_energy(*centroids: float) -> float:
    """Return the mean square of centroids that stand for rotated weights."""
    values = np.array(centroids, dtype=np.float32)
    return float(cell_probabilities(values) @ values.astype(np.float64) ** 2)
