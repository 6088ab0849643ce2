"""Codes to bytes and back: the bit orders of published files, and our own layout P32.

It needs numpy alone: no device, no files, no meaning of codes. A code is an unsigned byte of which
`bits` bits count. 8 codes fill `bits` whole bytes (a group), so one rule serves every width.

P32 keeps exactly `bits` bits per weight and makes every load an aligned 4, 8 or 16 byte vector.

- A unit is 32 codes of one block: of its 128 columns, quarter q owns k = 16*i + 4*q + c (i < 8,
  c < 4), in the order t = 4*i + c. Its codes are an LSB-first stream of `bits` words. So the four
  lanes that own a block read 64 neighbouring bytes of x at each i.
- The words of all units, row by row, lie in up to three planes: 4*(bits//4) words a unit, then 2 if
  bits & 2, then 1 if bits & 1. A load of 3, 5, 6 or 7 words would not be aligned; these are.
- The array's shape [N, K*bits/32] only counts words; the planes say which word is whose.

N rows, K columns (a multiple of 128).
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError

BLOCK = 128
UNIT = 32

BitOrder = Literal["msb", "lsb", "half"]
BIT_ORDERS: tuple[BitOrder, ...] = get_args(BitOrder)

Codes = NDArray[np.uint8]
Words = NDArray[np.uint32]

_GROUP = 8  # codes that fill whole bytes at every width
_BLOCK_GROUPS = BLOCK // _GROUP
# As many as the caches hold, and no fewer: between calls of numpy threads wait for each other.
_CHUNK_GROUPS = 1 << 16
_CHUNK_BLOCKS = 1 << 13


def pack(codes: Codes, bits: int, order: BitOrder) -> Codes:
    """Pack codes of any shape, flattened, into one byte stream.

    `msb` and `lsb` are contiguous streams, padded with zero bits to a whole byte. `half` holds 4
    bits a code whatever `bits` is: byte i of a 128-block carries code i below, code 64 + i above.

    Shapes: codes [...] -> uint8 [ceil(count * bits / 8)], half: [count / 2].
    Raises: ShapeError for a width, order, dtype or count that the order cannot hold.
    """
    _check_order("packing.pack", bits, order)
    _check_bytes("packing.pack", "codes", codes)
    if codes.size and codes.max() >> bits:
        raise ShapeError(
            f"[packing.pack] needed codes below {1 << bits} for {bits} bits, got {codes.max()}. "
            "Pack them with more bits."
        )
    flat = codes.reshape(-1)
    if order == "half":
        _check_half("packing.pack", flat.size)
        halves = flat.reshape(-1, 2, BLOCK // 2)
        nibbles: Codes = halves[:, 0] | halves[:, 1] << np.uint8(4)
        return nibbles.reshape(-1)
    return flat if bits == 8 else _pack_stream(flat, bits, order)


def unpack(buffer: Codes, bits: int, count: int, order: BitOrder) -> Codes:
    """Read `count` codes back from a byte stream made by `pack`.

    Shapes: buffer uint8 [...], flattened -> uint8 [count].
    Raises: ShapeError for a width or order that does not exist, or a buffer of another length.
    """
    _check_order("packing.unpack", bits, order)
    _check_bytes("packing.unpack", "a buffer", buffer)
    flat = buffer.reshape(-1)
    stored_bits = 4 if order == "half" else bits
    needed = -(-count * stored_bits // 8)
    if flat.size != needed:
        raise ShapeError(
            f"[packing.unpack] needed {needed} bytes for {count} codes of {stored_bits} bits, "
            f"got {flat.size}. Check the shape of the norms against the codes."
        )
    if order == "half":
        _check_half("packing.unpack", count)
        nibbles = flat.reshape(-1, BLOCK // 2)
        return np.stack((nibbles & 15, nibbles >> 4), axis=1).reshape(-1)
    return flat if bits == 8 else _unpack_stream(flat, bits, count, order)


def p32_plane_widths(bits: int) -> tuple[int, ...]:
    """Return how many words a unit has in each plane, in plane order; they add up to `bits`."""
    if not 1 <= bits <= 8:
        raise ShapeError(
            f"[packing.p32_plane_widths] needed 1 to 8 bits, got {bits}. "
            "Check the bits of the manifest."
        )
    return tuple(width for width in (bits & 12, bits & 2, bits & 1) if width)


def p32_plane_offsets(total_rows: int, row_start: int, columns: int, bits: int) -> tuple[int, ...]:
    """Return the byte, from the start of the array, where a row slice begins in each plane.

    With `p32_planes` this writes a table too big for memory: the planes of rows row_start... go to
    these offsets, whatever the order of the slices.

    Raises: ShapeError when the columns are not a multiple of 128.
    """
    _check_columns("packing.p32_plane_offsets", columns)
    units_per_row = columns // UNIT
    offsets, plane_start = [], 0
    for width in p32_plane_widths(bits):
        row_words = units_per_row * width
        offsets.append(4 * (plane_start + row_start * row_words))
        plane_start += total_rows * row_words
    return tuple(offsets)


def p32_planes(codes: Codes, bits: int) -> tuple[Words, ...]:
    """Pack a row slice of codes into its part of each plane.

    Shapes: codes uint8 [N, K] -> little-endian uint32 [N * K/32 * width] for each plane.
    Raises: ShapeError for codes that are not uint8 [N, K], K not a multiple of 128, or a code that
    does not fit `bits`.
    """
    _check_bytes("packing.p32_planes", "codes", codes)
    if codes.ndim != 2:
        raise ShapeError(
            f"[packing.p32_planes] needed codes [N, K], got shape {codes.shape}. "
            "Reshape them to rows."
        )
    _check_columns("packing.p32_planes", codes.shape[1])
    return stream_planes(pack(codes, bits, "lsb"), bits, "lsb")


def stream_planes(stream: Codes, bits: int, order: BitOrder) -> tuple[Words, ...]:
    """Lay whole blocks of a stream that `pack` made out in P32; no code is taken out of it.

    Of 128 columns k = 16*i + 8*h + 4*p + c, quarter 2*h + p owns k. Quads of four codes (c) move as
    they are; the two of a group (p) part, and meet those of the next group of their half (h).

    Shapes: stream uint8 [blocks * 16 * bits] -> planes as `p32_planes` returns them.
    Raises: ShapeError for order `half`, or a stream that ends within a block.
    """
    blocks, block_bytes = check_stream(stream, bits, order), BLOCK * bits // 8
    order = "lsb" if bits == 8 else order  # whole bytes have none
    flat = stream.reshape(-1)
    planes = [np.empty((blocks, 4, width), dtype="<u4") for width in p32_plane_widths(bits)]
    count = min(blocks, _CHUNK_BLOCKS)
    groups, other = np.empty((2, _BLOCK_GROUPS, count), dtype=_group_type(bits))
    for start in range(0, blocks, _CHUNK_BLOCKS):
        part = slice(start, min(start + _CHUNK_BLOCKS, blocks))
        n = part.stop - start
        chunk, spare = groups[:, :n], other[:, :n]
        _read_groups(flat[start * block_bytes : part.stop * block_bytes], bits, order, chunk)
        if order == "msb":
            _reverse_quads(chunk, spare, bits)
        elif bits < chunk.itemsize:  # what was read beyond the groups
            chunk &= chunk.dtype.type((1 << 8 * bits) - 1)
        halves = chunk.reshape(4, 2, 2, n)  # i // 2, i % 2, h
        _exchange_quads(halves[:, 0], halves[:, 1], spare.reshape(4, 2, 2, n)[:, 0], bits)
        # In order msb the first quad of a group is its upper one.
        quarters = halves[:, ::-1] if order == "msb" else halves
        _store_units(quarters, bits, [plane[part] for plane in planes])
    return tuple(plane.reshape(-1) for plane in planes)


def check_stream(stream: Codes, bits: int, order: BitOrder) -> int:
    """Return how many blocks a stream has.

    Raises: ShapeError as `stream_planes` does.
    """
    _check_order("packing.stream_planes", bits, order)
    _check_bytes("packing.stream_planes", "a stream", stream)
    block_bytes = BLOCK * bits // 8
    if order == "half" or stream.size % block_bytes:
        raise ShapeError(
            f"[packing.stream_planes] needed blocks of {block_bytes} bytes in order msb or lsb, "
            f"got {stream.size} bytes in {order}. Unpack the codes, and use p32_planes."
        )
    return stream.size // block_bytes


def pack_p32(codes: Codes, bits: int) -> Words:
    """Pack a whole coded matrix into P32.

    Shapes: codes uint8 [N, K] -> uint32 [N, K*bits/32].
    Raises: ShapeError as `p32_planes` does.
    """
    planes = p32_planes(codes, bits)
    rows, columns = codes.shape
    return np.concatenate(planes).reshape(rows, columns * bits // UNIT)


def unpack_p32(words: Words, bits: int, row_start: int = 0, row_count: int | None = None) -> Codes:
    """Read a coded matrix, or some of its rows, back from P32.

    Shapes: words uint32 [N, K*bits/32] -> uint8 [row_count, K].
    Raises: ShapeError when the words cannot be P32 of that width, or the rows lie outside.
    """
    widths = p32_plane_widths(bits)
    if words.dtype != np.uint32 or words.ndim != 2 or words.shape[1] % (4 * bits):
        raise ShapeError(
            f"[packing.unpack_p32] needed uint32 words [N, K*{bits}/32] with K a multiple of "
            f"{BLOCK}, got {words.dtype} {words.shape}. Check the bits against the array."
        )
    total_rows = words.shape[0]
    row_count = total_rows - row_start if row_count is None else row_count
    if row_start < 0 or row_count < 0 or row_start + row_count > total_rows:
        raise ShapeError(
            f"[packing.unpack_p32] needed rows inside 0..{total_rows}, got {row_start}.."
            f"{row_start + row_count}. Ask for rows that exist."
        )
    columns = words.shape[1] * UNIT // bits
    units = row_count * columns // UNIT
    flat = np.ascontiguousarray(words).reshape(-1)
    gathered = np.empty((units, bits), dtype="<u4")
    column = 0
    offsets = p32_plane_offsets(total_rows, row_start, columns, bits)
    for width, offset in zip(widths, offsets, strict=True):
        plane = flat[offset // 4 : offset // 4 + units * width]
        gathered[:, column : column + width] = plane.reshape(units, width)
        column += width
    stream = unpack(gathered.view(np.uint8), bits, units * UNIT, "lsb")
    quads = stream.view(np.uint32).reshape(-1, 4, 8).swapaxes(1, 2)
    return np.ascontiguousarray(quads).view(np.uint8).reshape(row_count, columns)


def _pack_stream(flat: Codes, bits: int, order: BitOrder) -> Codes:
    groups = -(-flat.size // _GROUP)
    whole = flat if flat.size == groups * _GROUP else np.pad(flat, (0, groups * _GROUP - flat.size))
    source = np.ascontiguousarray(whole).view("<u8")
    packed = np.empty((groups, bits), dtype=np.uint8)
    for start in range(0, groups, _CHUNK_GROUPS):
        chunk = source[start : start + _CHUNK_GROUPS]
        # The first code is the lowest byte of a word; in order msb it has to be the highest.
        fields = _squeeze(chunk.byteswap() if order == "msb" else chunk, bits)
        if order == "msb":
            fields <<= np.uint64(64 - 8 * bits)
            fields.byteswap(inplace=True)
        parts = fields.view(np.uint8).reshape(-1, 8)
        for byte in range(bits):  # twice as fast as all of them at once
            packed[start : start + _CHUNK_GROUPS, byte] = parts[:, byte]
    return packed.reshape(-1)[: -(-flat.size * bits // 8)]


def _unpack_stream(flat: Codes, bits: int, count: int, order: BitOrder) -> Codes:
    groups = -(-count // _GROUP)
    codes = np.empty(groups, dtype="<u8")
    # A group is read as a whole word, which reaches past its own bytes.
    chunk = np.zeros(min(_CHUNK_GROUPS, groups) * bits + 8, dtype=np.uint8)
    for start in range(0, groups, _CHUNK_GROUPS):
        raw = flat[start * bits : (start + _CHUNK_GROUPS) * bits]
        chunk[: raw.size] = raw
        size = min(_CHUNK_GROUPS, groups - start)
        kind = ">u8" if order == "msb" else "<u8"
        fields = np.ndarray((size,), kind, chunk.data, 0, (bits,)).astype(np.uint64)
        if order == "msb":
            fields >>= np.uint64(64 - 8 * bits)
        spread = _spread(fields, bits)
        codes[start : start + size] = spread.byteswap() if order == "msb" else spread
    return codes.view(np.uint8)[:count]


def _squeeze(words: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """Return the 8 bytes of each word as 8 neighbouring fields of `bits` bits, the lowest first."""
    fields = words
    for low, gap, taken in reversed(_steps(bits)):
        upper = fields >> gap
        upper &= low << taken
        fields = fields & low
        fields |= upper
    return fields


def _spread(fields: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """Undo `_squeeze`; bits above those of the 8 fields do not matter."""
    for low, gap, taken in _steps(bits):
        upper = fields << gap
        upper &= low << (gap + taken)
        fields = fields & low
        fields |= upper
    return fields


@cache
def _steps(bits: int) -> tuple[tuple[np.uint64, np.uint64, np.uint64], ...]:
    """Return how 2, 4 and 8 parts of a word move apart.

    Each step has a mask of the lower part of every pair, how far the upper part moves, and how many
    bits a part takes.
    """
    steps = []
    for count in (4, 2, 1):
        taken = count * bits
        low = sum(((1 << taken) - 1) << at for at in range(0, 64, 16 * count))
        steps.append((np.uint64(low), np.uint64(8 * count - taken), np.uint64(taken)))
    return tuple(steps)


@cache
def _group_type(bits: int) -> np.dtype[Any]:
    """Return the smallest unsigned integers that hold a group."""
    return np.dtype(f"<u{1 << (bits - 1).bit_length()}")


def _read_groups(raw: Codes, bits: int, order: BitOrder, groups: NDArray[Any]) -> None:
    """Read each group of some blocks as a number: -> [16, n]; above its bits there may be others.

    A number reaches past its group's own bytes: in order msb, whose first byte is the highest, to
    those before it.
    """
    size = groups.itemsize
    padded = np.zeros(raw.size + 2 * size, dtype=np.uint8)
    padded[size : size + raw.size] = raw
    kind, at = (f">u{size}", bits) if order == "msb" else (f"<u{size}", size)
    strides = (bits, BLOCK * bits // 8)
    np.copyto(groups, np.ndarray(groups.shape, kind, padded.data, at, strides))


def _reverse_quads(groups: NDArray[Any], spare: NDArray[Any], bits: int) -> None:
    """Turn the four codes of each half of a group round, and clear what lies above them."""
    kind = groups.dtype.type
    for taken in (2 * bits, bits):
        low = kind(sum(((1 << taken) - 1) << at for at in range(0, 8 * bits, 2 * taken)))
        np.right_shift(groups, kind(taken), out=spare)
        spare &= low
        groups &= low
        groups <<= kind(taken)
        groups |= spare


def _exchange_quads(
    first: NDArray[Any], second: NDArray[Any], spare: NDArray[Any], bits: int
) -> None:
    """Exchange the upper quads of some groups with the lower quads of others."""
    kind = first.dtype.type
    quad = 4 * bits
    np.right_shift(first, kind(quad), out=spare)
    spare ^= second
    spare &= kind((1 << quad) - 1)
    second ^= spare
    spare <<= kind(quad)
    first ^= spare


def _store_units(groups: NDArray[Any], bits: int, planes: list[Words]) -> None:
    """Write the units of some blocks, each of 4 groups, into the planes.

    Shapes: groups [4, 2 p, 2 h, n] -> each plane [n, 4 units, width].
    """
    units = [(2 * h + p, p, h) for p, h in np.ndindex(2, 2)]
    if groups.itemsize == bits:  # no word holds parts of two groups
        targets = planes[0].view(groups.dtype)
        for at in range(4):
            for unit, p, h in units:
                targets[:, unit, at] = groups[at, p, h]
        return
    words, done = groups.astype(np.uint64, copy=False), 0
    total, part = np.empty((2, *words.shape[1:]), dtype=np.uint64)
    for plane in planes:
        size = min(64, 32 * plane.shape[2])  # two words at once where a load has two
        targets = plane.view(f"<u{size // 8}")
        for column in range(targets.shape[2]):
            first, *others = _parts_within(words, 8 * bits, done, size)
            _shift(*first, total)
            for other in others:
                total |= _shift(*other, part)
            found = total.view(targets.dtype)[..., :: 64 // size]
            for unit, p, h in units:  # all at once would go through memory the wrong way
                targets[:, unit, column] = found[p, h]
            done += size


def _parts_within(
    groups: Iterable[NDArray[np.uint64]], group_bits: int, start: int, size: int
) -> list[tuple[NDArray[np.uint64], int]]:
    """Return the groups of a stream of which `size` bits from `start` on hold a part, and where."""
    placed = [(group, number * group_bits - start) for number, group in enumerate(groups)]
    return [(group, at) for group, at in placed if -group_bits < at < size]


def _shift(values: NDArray[np.uint64], places: int, out: NDArray[np.uint64]) -> NDArray[np.uint64]:
    shift = np.left_shift if places > 0 else np.right_shift
    shift(values, np.uint64(abs(places)), out=out)
    return out


def _check_order(where: str, bits: int, order: str) -> None:
    if order not in BIT_ORDERS:
        raise ShapeError(
            f"[{where}] needed a bit order of {', '.join(BIT_ORDERS)}, got {order!r}. "
            "Name one of these."
        )
    widest = 4 if order == "half" else 8
    if not 1 <= bits <= widest:
        raise ShapeError(
            f"[{where}] needed 1 to {widest} bits for order {order}, got {bits}. "
            "Check the width, or name another order."
        )


def _check_bytes(where: str, what: str, array: NDArray[np.generic]) -> None:
    if array.dtype != np.uint8:
        raise ShapeError(
            f"[{where}] needed {what} of uint8, got {array.dtype}. "
            "View int8 as uint8: codes are unsigned."
        )


def _check_half(where: str, count: int) -> None:
    if count % BLOCK:
        raise ShapeError(
            f"[{where}] needed whole blocks of {BLOCK} codes for order half, got {count} codes. "
            "Pad the rows first."
        )


def _check_columns(where: str, columns: int) -> None:
    if columns % BLOCK:
        raise ShapeError(
            f"[{where}] needed K a multiple of {BLOCK}, got {columns}. "
            "Pad the rows with zero weights before coding them."
        )
