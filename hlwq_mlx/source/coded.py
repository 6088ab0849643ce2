"""One coded tensor of a source file: where its codes lie and how to read them.

Gathers the parts of a tensor from any published key style and settles its width, block and meta
(spec: hlwq_format §7.1-7.3). Bit order and table, which one tensor alone may not show, are settled
in `detect`. Nothing here reads codes before `rows` is called.

N rows (outputs), nb blocks a row.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, raise_all
from ..quant.coding import p32_planes, stream_planes
from ..quant.packing import BLOCK, BitOrder, Codes, Words, unpack

# Longest first, so that `.ct_scaled` is not read as `.ct`.
_ROLES = (
    ("__packed", "codes"),
    ("__codes", "codes"),
    ("__norms", "norms"),
    ("__meta", "meta"),
    (".ct_scaled", "table_scaled"),
    (".codes", "codes"),
    (".norms", "norms"),
    (".ct", "table"),
)

_SETTINGS = ("bits", "block_size", "in_features")
_INFINITY = np.uint16(0x7C00)  # bits of float16
SHOWN = 60  # characters of what was found instead


@dataclass(frozen=True)
class Key:
    """A key of a source file, taken apart."""

    tensor: str
    role: str
    is_dotted: bool


Parts = dict[str, tuple[Key, NDArray[Any]]]
"""The key and the bytes of each role that a coded tensor has in its file."""


def parse_key(key: str) -> Key | None:
    """Take a key apart, or return None for a plain tensor's name."""
    for suffix, role in _ROLES:
        if key.endswith(suffix):
            prefix = key.removesuffix(suffix)
            name = prefix if "." in prefix else prefix.replace("__", ".")
            if not name.endswith(".weight"):
                name += ".weight"
            return Key(name, role, suffix.startswith("."))
    return None


@dataclass(frozen=True)
class CodedTensor:
    """Codes and norms of one matrix, as they lie in the source.

    `stored_bits` is how many bits a code takes on disk, `bits` how many of them mean something;
    they differ only in files with a whole byte or nibble a code. `own_table` is the table a file
    carries for this tensor; `implied_table` names the one its key style is read with.
    """

    name: str
    raw: Codes
    norms: NDArray[np.float16]
    bits: int
    stored_bits: int
    in_features: int
    key_order: BitOrder
    implied_table: str
    own_table: NDArray[np.float32] | None

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.norms.shape[0]), self.in_features

    @property
    def padded_columns(self) -> int:
        return int(self.norms.shape[1]) * BLOCK

    def rows(self, start: int, stop: int, order: BitOrder) -> Codes:
        """Read the codes of some rows: uint8 [stop - start, nb * 128]."""
        return self._codes(self._stored[start:stop], order)

    def rows_at(self, rows: NDArray[np.integer], order: BitOrder) -> Codes:
        """Read the codes of these rows: uint8 [n, nb * 128]."""
        return self._codes(self._stored[rows], order)

    def planes(self, start: int, stop: int, order: BitOrder) -> tuple[Words, ...]:
        """Read some rows as they lie in P32 (packing.p32_planes)."""
        if order != "half" and self.stored_bits == self.bits:
            return stream_planes(self._stored[start:stop], self.bits, order)
        return p32_planes(self.rows(start, stop, order), self.bits)

    @property
    def _stored(self) -> Codes:
        """The bytes of the codes, row by row."""
        return self.raw.reshape(self.shape[0], self.padded_columns * self.stored_bits // 8)

    def _codes(self, stored: Codes, order: BitOrder) -> Codes:
        count = len(stored) * self.padded_columns
        codes = stored if self.stored_bits == 8 else unpack(stored, self.stored_bits, count, order)
        if codes.size and int(codes.max()) >> self.bits:
            raise CheckpointError(
                f"[{self.name}] needed codes below {1 << self.bits}, got {codes.max()}. "
                "The file is damaged; download it again."
            )
        return codes.reshape(len(stored), self.padded_columns)


def gather(
    parts: Mapping[str, Parts],
    settings: Mapping[str, Any],
    folder_bits: int | None,
) -> dict[str, CodedTensor]:
    """Build every coded tensor from its parts, or list all that is wrong with them.

    Raises: CheckpointError naming each tensor that cannot be read.
    """
    problems: list[str] = []
    tensors: dict[str, CodedTensor] = {}
    for name, roles in parts.items():
        try:
            tensors[name] = _build(name, roles, settings, folder_bits)
        except CheckpointError as problem:
            problems.append(str(problem))
    raise_all(problems)
    return tensors


def _build(
    name: str,
    roles: Parts,
    settings: Mapping[str, Any],
    folder_bits: int | None,
) -> CodedTensor:
    missing = [role for role in ("codes", "norms") if role not in roles]
    if missing:
        raise CheckpointError(
            f"[{name}] needed codes and norms, got no {' and no '.join(missing)}. "
            "The file is incomplete; download it again."
        )
    key, codes = roles["codes"]
    told = _settings_of(name, settings)
    meta = _read_meta(name, roles)
    norms = _read_norms(name, roles["norms"][1], codes, meta)
    N, nb = norms.shape
    _check_meta(name, meta, N, nb, told.get("block_size", BLOCK))
    if codes.dtype not in (np.uint8, np.int8):
        raise CheckpointError(
            f"[{name}] needed codes of U8 or I8, got {codes.dtype}. "
            "The file is not HLWQ, or it is converted already."
        )
    raw: Codes = codes.reshape(-1).view(np.uint8)
    stored_bits, rest = divmod(8 * raw.size, N * nb * BLOCK)
    if rest or not 1 <= stored_bits <= 8:
        raise CheckpointError(
            f"[{name}] needed 1 to 8 whole bits for each of {N * nb * BLOCK} codes, got "
            f"{raw.size} bytes. The file is damaged; download it again."
        )
    half_nibbles = key.is_dotted and stored_bits == 4
    told_bits = _meta_bits(meta) or told.get("bits") or folder_bits or 0
    bits = stored_bits
    if stored_bits == 8:
        _refuse_three_levels(name, raw)
    if told_bits != stored_bits and (stored_bits == 8 or half_nibbles):
        bits = max(told_bits if told_bits < stored_bits else 0, _code_width(raw, half_nibbles))
    is_lsb = key.is_dotted and stored_bits < 8
    order: BitOrder = "half" if half_nibbles else "lsb" if is_lsb else "msb"
    in_features = meta[4] if len(meta) > 4 else told.get("in_features", nb * BLOCK)
    if not 0 <= nb * BLOCK - in_features < BLOCK:
        raise CheckpointError(
            f"[{name}] needed in_features that fill {nb} blocks of {BLOCK}, got {in_features}. "
            "The files contradict each other; download the model again."
        )
    return CodedTensor(
        name=name,
        raw=raw,
        norms=norms,
        bits=bits,
        stored_bits=stored_bits,
        in_features=in_features,
        key_order=order,
        implied_table="inf_100" if _meta_bits(meta) else "clip4_100",
        own_table=_own_table(name, roles, bits),
    )


def _settings_of(name: str, settings: Mapping[str, Any]) -> dict[str, int]:
    """Return a tensor's settings in polar_config.json: its own entry's, or those for all."""
    own = settings.get("layers", {}).get(name.removesuffix(".weight"), {})
    told = {key: part[key] for part in (settings, own) for key in _SETTINGS if part.get(key)}
    for key, value in told.items():
        if type(value) is not int:
            raise CheckpointError(
                f"[{name}] needed a whole number as {key} in polar_config.json, got {value!r}. "
                "The file is damaged; download it again."
            )
    return told


def _read_meta(name: str, roles: Parts) -> list[int]:
    if "meta" not in roles:
        return []
    meta = roles["meta"][1].reshape(-1)
    if meta.dtype.kind not in "iu":
        raise CheckpointError(
            f"[{name}] needed meta of whole numbers, got {meta.dtype}. "
            "The file is damaged; download it again."
        )
    return [int(value) for value in meta]


def _read_norms(
    name: str, norms: NDArray[Any], codes: NDArray[Any], meta: list[int]
) -> NDArray[np.float16]:
    if norms.dtype not in (np.float16, np.float32) or not norms.size:
        raise CheckpointError(
            f"[{name}] needed norms of F16 or F32, got {norms.dtype} of shape {norms.shape}. "
            "The file is not HLWQ."
        )
    norms = np.atleast_1d(norms)
    if norms.ndim == 1:  # flat: the rows are those of the codes or of the meta
        rows = codes.shape[0] if codes.ndim == 2 else meta[0] if len(meta) > 3 else norms.size
        norms = norms.reshape(rows, -1) if rows > 0 and norms.size % rows == 0 else norms[:, None]
    with np.errstate(over="ignore"):  # an infinite norm is refused here
        halves = norms.reshape(norms.shape[0], -1).astype(np.float16, copy=False)
    strange = halves[halves.view(np.uint16) >= _INFINITY]  # and what is negative, -0 too
    unfit = strange.size - int(np.count_nonzero(strange == 0))
    if unfit:
        raise CheckpointError(
            f"[{name}] needed finite norms, got {unfit} that are NaN, infinite or negative. "
            "The file is damaged; download it again."
        )
    return halves


def _meta_bits(meta: list[int]) -> int | None:
    return meta[0] if 1 <= len(meta) <= 2 and 1 <= meta[0] <= 8 else None


def _check_meta(name: str, meta: list[int], N: int, nb: int, block: int) -> None:
    if block != BLOCK:
        raise CheckpointError(
            f"[{name}] needed blocks of {BLOCK}, got {block}. Only {BLOCK} was ever published."
        )
    told = [N, nb, BLOCK, N * nb * BLOCK]
    if len(meta) > 2 and meta[:4] != told:
        raise CheckpointError(
            f"[{name}] needed meta {told} from the shape of the norms, got {meta}. "
            "The file contradicts itself; download it again."
        )
    if len(meta) in (1, 2) and (_meta_bits(meta) is None or meta[1:] not in ([], [nb * BLOCK])):
        raise CheckpointError(
            f"[{name}] needed meta [bits, {nb * BLOCK}] with 1 to 8 bits, got {meta}. "
            "The file is damaged; download it again."
        )


def _refuse_three_levels(name: str, raw: Codes) -> None:
    """Refuse codes 0 to 2 in bytes: 2-bit codes in which one of four never occurs are none."""
    if raw.min() == 0 and raw.max() == 2:
        raise CheckpointError(
            f"[{name}] needed 2, 4, 8 ... levels, got codes from 0 to 2. They are ternary, as in "
            "PQ1.58, which is not implemented; choose another variant."
        )


def _code_width(raw: Codes, half_nibbles: bool) -> int:
    """Return the bit length of the largest code, that of all codes or-ed together."""
    joined = int(np.bitwise_or.reduce(raw))
    return max(1, ((joined & 15 | joined >> 4) if half_nibbles else joined).bit_length())


def _own_table(name: str, roles: Parts, bits: int) -> NDArray[np.float32] | None:
    if "table_scaled" in roles:
        table = roles["table_scaled"][1].astype(np.float32) * np.float32(math.sqrt(BLOCK))
    elif "table" in roles:
        table = roles["table"][1].astype(np.float32)
    else:
        return None
    if table.shape != (1 << bits,) or not np.isfinite(table).all():
        raise CheckpointError(
            f"[{name}] needed a table of {1 << bits} finite centroids, got shape {table.shape}. "
            "The file is damaged; download it again."
        )
    return table
