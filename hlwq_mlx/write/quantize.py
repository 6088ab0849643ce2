"""Code a 16-bit Gemma 4 and write it in the published layout, a slice of rows at a time.

What is coded is a rule's to say (rules); the reader that understands the result is `source`. Each
class of tensors is decoded again as it is written, and its error reported.

N rows, K columns padded to blocks.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..disk.atomic import building, require_room
from ..disk.tensorfile import TensorSpec, TensorWriter
from ..errors import CheckpointError, RequestError, ShapeError
from ..quant import codec, means
from ..quant.coder import Coded, Energies, energies_of
from ..quant.coding import make_coder
from ..quant.packing import BLOCK, Codes, pack
from ..quant.tables import centroids
from ..source.repository import TABLE_KEY, PlainTensor, Source
from ..source.rules import Rule
from .output import ahead, row_slices

_SLICE_WEIGHTS = 1 << 21
_CACHED_BLOCKS = 1 << 12
_ORDERED_TOKENS = "masked_embedding."  # of a drafter: centroids, and whose tokens are whose
_MEAN_SIGMA = 4.0  # where the published tables end
MEAN_SHARE = 0.01  # of a Gaussian's blocks 0.006 % go beyond

Code = Callable[[NDArray[np.float32]], Coded]
"""Codes rows of weights."""


@dataclass(frozen=True)
class Encoder:
    """How matrices are coded: the table, and how block norms are found."""

    table: str
    fit: codec.Fit = codec.OWN_NORM

    def coder(self, bits: int, has_means: bool = False) -> Code:
        """Return what codes rows at a width, without the means of blocks or with them in the codes.

        Threads may share it.
        """
        values = centroids(self.table, bits)
        coder: Code = partial(_fitted, values, self.fit)
        if self.fit == codec.OWN_NORM:
            coder = make_coder(values)
        return partial(_beside_means, coder) if has_means else coder


@dataclass(frozen=True)
class Coding:
    """What was asked for: a name for it, which matrices are coded at how many bits, and how."""

    name: str
    rule: Rule
    encoder: Encoder


@dataclass
class Fidelity:
    """How close decoded weights are to the original ones.

    Sums are rounded once, so that the order in which threads add to them does not matter.
    """

    _parts: list[tuple[int, Energies]] = field(default_factory=list)

    def add(self, weights: int, energies: Energies) -> None:
        """Add the energies of so many weights."""
        self._parts.append((weights, energies))

    def __add__(self, other: "Fidelity") -> "Fidelity":
        """Pool two sets of weights."""
        return Fidelity(self._parts + other._parts)

    @property
    def weights(self) -> int:
        return sum(weights for weights, _ in self._parts)

    @property
    def cos_sim(self) -> float:
        squares, decoded, errors = self.sums()
        norms = math.sqrt(squares * decoded)
        return (squares + decoded - errors) / (2 * norms) if norms else 1.0

    @property
    def relative_error(self) -> float:
        """Root of the error energy over the energy of the weights."""
        squares, _, errors = self.sums()
        return math.sqrt(max(0.0, errors) / squares) if squares else 0.0

    def sums(self) -> Energies:
        """Return all energies together."""
        energies = [Energies(0.0, 0.0, 0.0), *(each for _, each in self._parts)]
        return Energies(*map(math.fsum, zip(*energies, strict=True)))


@dataclass
class Report:
    """The errors that a quantization made, for each class of tensors."""

    classes: dict[tuple[str, int], Fidelity] = field(default_factory=dict)
    strong_means: list[tuple[str, float]] = field(default_factory=list)

    def of(self, name: str, bits: int) -> Fidelity:
        """Return the errors of a tensor's class, to add to."""
        return self.classes.setdefault((report_class(name), bits), Fidelity())

    def lines(self) -> Iterator[str]:
        """Return the report as lines for a person."""
        yield from self.class_lines()
        for name, share in self.strong_means:
            yield (
                f"warning: {share:.1%} of the blocks of {name} have a mean beyond "
                f"{_MEAN_SIGMA:.0f} sigma, which the table cuts off; --layout mlx would keep it"
            )

    def class_lines(self) -> Iterator[str]:
        """Return a table as text, with a line for each class."""
        yield f"{'tensors':<28}{'bits':>5}{'weights':>15}{'cos_sim':>10}{'rel. error':>12}"
        for (name, bits), fidelity in sorted(self.classes.items()):
            yield (
                f"{name:<28}{bits:>5}{fidelity.weights:>15,}"
                f"{fidelity.cos_sim:>10.5f}{fidelity.relative_error:>12.5f}"
            )


class Slice(NamedTuple):
    """A slice of rows, coded and packed."""

    start: int
    weights: int
    packed: Codes
    norms: NDArray[np.float16]
    energies: Energies
    far_blocks: int


def write_published(source: Source, rule: Rule, output: Path, encoder: Encoder) -> Report:
    """Write `codes.safetensors` and `bf16.safetensors` into the new folder `output`.

    Raises: RequestError when the source is coded already or the rule codes nothing; DeviceError
    when the disk cannot hold the files, before work begins; SourceError when `output` exists.
    """
    chosen = {tensor.name: rule(tensor.name, tensor.shape) for tensor in source.plain.values()}
    coded = {name: bits for name, bits in chosen.items() if bits is not None}
    require_uncoded(source.folder, len(source.coded), len(coded))
    report = Report()
    tensors = [(source.plain[name], bits) for name, bits in sorted(coded.items())]
    codes_specs: dict[str, TensorSpec] = {}
    for tensor, bits in tensors:
        codes_specs |= _published_specs(tensor, bits)
    plain = [tensor for tensor in source.plain.values() if tensor.name not in coded]
    plain_specs = {tensor.name: _plain_spec(tensor) for tensor in plain}
    total = sum(tensor.spec.nbytes for tensor in source.plain.values())
    with (
        building(output) as folder,
        tqdm(total=total, unit="B", unit_scale=True, desc="quantize", mininterval=0.5) as progress,
    ):
        specs = (*codes_specs.values(), *plain_specs.values())
        require_room(folder, sum(spec.nbytes for spec in specs))
        table = {TABLE_KEY: encoder.table}
        with TensorWriter(folder / "codes.safetensors", codes_specs, table) as writer:
            for tensor, bits in tensors:
                _write_coded(writer, tensor, bits, encoder, report, progress)
        with TensorWriter(folder / "bf16.safetensors", plain_specs) as writer:
            for tensor in plain:
                _write_plain(writer, tensor, progress)
    return report


def require_uncoded(model: Path | str, coded: int, chosen: int) -> None:
    """Refuse a model that is coded already, or of which nothing is to be.

    Raises: RequestError.
    """
    if coded or not chosen:
        raise RequestError(
            f"[{model}] needed uncoded matrices, got {coded} that are coded and {chosen} to be "
            "coded. Name a 16-bit model's folder."
        )


def _write_coded(
    writer: TensorWriter,
    tensor: PlainTensor,
    bits: int,
    encoder: Encoder,
    report: Report,
    progress: "tqdm[Any]",
) -> None:
    """Code one matrix, write its parts and add its errors to the report."""
    key = tensor.name.replace(".", "__")
    N, blocks = _blocks(tensor)
    writer.write(f"{key}__meta", np.array([N, blocks, BLOCK, N * blocks * BLOCK]))
    far_blocks = 0
    fidelity = report.of(tensor.name, bits)
    for part in ahead(_coded_slices(tensor, bits, encoder)):
        writer.write(f"{key}__norms", part.norms, part.start * blocks * 2)
        writer.write(f"{key}__packed", part.packed, part.start * blocks * BLOCK * bits // 8)
        fidelity.add(part.weights, part.energies)
        far_blocks += part.far_blocks
        progress.update(part.weights * tensor.spec.item_bytes)
    share = far_blocks / (N * blocks)
    if share > MEAN_SHARE:
        report.strong_means.append((tensor.name, share))


def _published_specs(tensor: PlainTensor, bits: int) -> dict[str, TensorSpec]:
    key = tensor.name.replace(".", "__")
    N, blocks = _blocks(tensor)
    return {
        f"{key}__packed": TensorSpec("U8", (N * blocks * BLOCK * bits // 8,)),
        f"{key}__norms": TensorSpec("F16", (N, blocks)),
        f"{key}__meta": TensorSpec("I64", (4,)),
    }


def _blocks(tensor: PlainTensor) -> tuple[int, int]:
    """Return how many rows there are, and how many blocks each has."""
    N, columns = tensor.matrix
    return N, -(-columns // BLOCK)


def _coded_slices(
    tensor: PlainTensor, bits: int, encoder: Encoder
) -> Iterator[Callable[[], Slice]]:
    """Yield calls that code some rows of a matrix.

    They raise what `encode` does.
    """
    coder = encoder.coder(bits)

    def code(start: int, stop: int) -> Slice:
        weight = tensor.float_rows(start, stop)
        coded = encode(tensor.name, weight, coder)
        packed, far_blocks = pack(coded.codes, bits, "msb"), count_strong_means(weight)
        return Slice(start, weight.size, packed, coded.norms, coded.energies, far_blocks)

    N, columns = tensor.matrix
    for start, stop in row_slices(N, 16 * columns):  # floats, codes and what packs them
        yield partial(code, start, stop)


def encode(name: str, weight: NDArray[np.float32], coder: Code) -> Coded:
    """Code some rows of a tensor.

    Raises: CheckpointError for weights that are not finite or too large for the norms.
    """
    try:
        return coder(weight)
    except ShapeError as problem:
        raise CheckpointError(
            f"[{name}] needed weights that can be coded, got these: {problem}"
        ) from problem


def _fitted(values: NDArray[np.float32], fit: codec.Fit, weight: NDArray[np.float32]) -> Coded:
    codes, norms = codec.encode(weight, values, fit)
    decoded = codec.decode(codes, norms, values)[:, : weight.shape[1]]
    return Coded(codes, norms, energies_of(weight, decoded))


def _beside_means(coder: Code, weight: NDArray[np.float32]) -> Coded:
    taken, deviations = means.part(weight)
    coded = coder(deviations)
    spread = means.spread(taken, weight.shape[1])
    # Deviations sum to nothing in a block, so the means' energy is one more summand.
    extra = float(np.vdot(spread, spread))
    weights, decoded, errors = coded.energies
    energies = Energies(weights + extra, decoded + extra, errors)
    return coded._replace(energies=energies, means=taken)


def has_strong_means(weight: NDArray[np.float32]) -> bool:
    """Return whether so many blocks have a strong mean that their means are to be kept."""
    N, blocks = len(weight), -(-weight.shape[1] // BLOCK)
    return bool(count_strong_means(weight) > MEAN_SHARE * N * blocks)


def count_strong_means(weight: NDArray[np.float32]) -> int:
    """Count blocks whose first Hadamard coordinate, their mean, lies beyond the tables.

    That coordinate of a block is its sum over its norm, where others are about N(0, 1).
    """
    columns = weight.shape[1]
    if columns % BLOCK:
        weight = np.pad(weight, ((0, 0), (0, -columns % BLOCK)))
    blocks = weight.reshape(-1, BLOCK)
    count = 0
    for start in range(0, len(blocks), _CACHED_BLOCKS):
        chunk = blocks[start : start + _CACHED_BLOCKS]
        # Sums of float32 are off by 128 * 2**-24 of all magnitudes at most, 1e-4 norms, if squares
        # are far from what float32 can hold.
        sums, squares = np.einsum("bk->b", chunk), np.einsum("bk,bk->b", chunk, chunk)
        is_open = np.abs(sums) > (_MEAN_SIGMA - 0.01) * np.sqrt(squares)
        is_open |= ~((squares > 1e-30) & (squares < 1e30))
        wide = chunk[is_open].astype(np.float64)
        norms = np.sqrt(np.einsum("bk,bk->b", wide, wide))
        count += int(np.count_nonzero(np.abs(wide.sum(axis=1)) > _MEAN_SIGMA * norms))
    return count


def report_class(name: str) -> str:
    """Return a tensor's class: its name without the number of its layer."""
    tower = re.search(r"\.(audio|vision)_tower\.", name)
    if tower:
        return f"{tower[1]}_tower"
    parts = name.removesuffix(".weight").split(".")
    return ".".join(part for part in parts[-2:] if not part.isdigit())


def _plain_spec(tensor: PlainTensor) -> TensorSpec:
    """Return how an uncoded tensor is written: in bfloat16, but for what orders tokens."""
    return tensor.spec if _is_order(tensor) else TensorSpec("BF16", tensor.shape)


def _is_order(tensor: PlainTensor) -> bool:
    return tensor.name.startswith(_ORDERED_TOKENS)


def _write_plain(writer: TensorWriter, tensor: PlainTensor, progress: "tqdm[Any]") -> None:
    if _is_order(tensor):
        raw = tensor.file.view(tensor.name)
        writer.write(tensor.name, raw)
        progress.update(raw.nbytes)
        return
    for at, piece in bfloat16_pieces(tensor):
        writer.write(tensor.name, piece, at)
        progress.update(piece.size * tensor.spec.item_bytes)


def bfloat16_pieces(tensor: PlainTensor) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Yield a tensor's bfloat16 bits as (byte offset, piece)."""
    flat = tensor.file.view(tensor.name).reshape(-1)
    for start in range(0, flat.size, _SLICE_WEIGHTS):
        piece = flat[start : start + _SLICE_WEIGHTS]
        yield 2 * start, piece if tensor.spec.dtype == "BF16" else bfloat16_bits(piece)


def bfloat16_bits(values: NDArray[Any] | mx.array) -> NDArray[np.uint16]:
    """Round floats to bfloat16, to nearest, and return its bits; on any thread."""
    floats = np.asarray(values, dtype=np.float32)
    bits = floats.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1)))) >> 16
    return np.where(np.isnan(floats), np.uint32(0x7FC0), rounded).astype(np.uint16)


@dataclass(frozen=True)
class _Rounded(PlainTensor):
    """A tensor of another dtype as bfloat16."""

    def rows(self, start: int, stop: int) -> NDArray[np.uint16]:
        return bfloat16_bits(super().rows(start, stop))


def as_bfloat16(tensor: PlainTensor) -> PlainTensor:
    """Return a tensor as what a quantized model keeps of it: in bfloat16, but for what orders."""
    if tensor.spec.dtype == "BF16" or _is_order(tensor):
        return tensor
    return _Rounded(tensor.name, tensor.file, _plain_spec(tensor))
