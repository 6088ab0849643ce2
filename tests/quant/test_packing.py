import numpy as np
import pytest
from pairwise import in_turn

from hlwq_mlx.errors import ShapeError
from hlwq_mlx.quant import packing
from hlwq_mlx.quant.backends.native.library import require_library
from hlwq_mlx.quant.packing import (
    p32_plane_offsets,
    p32_plane_widths,
    p32_planes,
    pack,
    pack_p32,
    stream_planes,
    unpack,
    unpack_p32,
)

WIDTHS = range(1, 9)


def random_codes(bits, *shape):
    return np.random.default_rng(bits).integers(0, 1 << bits, shape, dtype=np.uint8)


def slow_stream(codes, bits, order):
    """One integer for the whole stream: msb puts code 0 on top, lsb at the bottom."""
    total = 0
    if order == "msb":
        for code in codes:
            total = total << bits | int(code)
        padding = -len(codes) * bits % 8
        return (total << padding).to_bytes((len(codes) * bits + padding) // 8, "big")
    for code in reversed(codes):
        total = total << bits | int(code)
    return total.to_bytes(-(-len(codes) * bits // 8), "little")


def slow_p32(codes, bits):
    """P32 as the specification words it: one unit at a time, one word at a time."""
    rows, columns = codes.shape
    planes = {"uint4": [], "uint2": [], "uint": []}
    for row in range(rows):
        for block in range(columns // 128):
            for quarter in range(4):
                stream = 0
                for i in range(8):
                    for c in range(4):
                        code = int(codes[row, 128 * block + 16 * i + 4 * quarter + c])
                        stream |= code << bits * (4 * i + c)
                words = [stream >> 32 * word & 0xFFFFFFFF for word in range(bits)]
                for _ in range(bits // 4):
                    planes["uint4"] += [words.pop(0) for _ in range(4)]
                if bits & 2:
                    planes["uint2"] += [words.pop(0) for _ in range(2)]
                if bits & 1:
                    planes["uint"] += [words.pop(0)]
                assert not words
    flat = planes["uint4"] + planes["uint2"] + planes["uint"]
    return np.array(flat, dtype=np.uint32).reshape(rows, columns * bits // 32)


@pytest.mark.parametrize("order", ["msb", "lsb"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_streams(bits, order):
    for count in (0, 1, 7, 8, 9, 128):
        codes = random_codes(bits, count)
        packed = pack(codes, bits, order)
        assert packed.dtype == np.uint8
        assert packed.tobytes() == slow_stream(codes, bits, order)
        np.testing.assert_array_equal(unpack(packed, bits, count, order), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_long_streams_are_numpys_bit_orders(bits):
    codes = random_codes(bits, 8 * 8192 + 3)
    shifts = np.arange(bits, dtype=np.uint8)
    for order, numpys, places in (("msb", "big", shifts[::-1]), ("lsb", "little", shifts)):
        packed = pack(codes, bits, order)
        single_bits = codes[:, None] >> places & 1
        np.testing.assert_array_equal(packed, np.packbits(single_bits, bitorder=numpys))
        np.testing.assert_array_equal(unpack(packed, bits, codes.size, order), codes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_half_puts_the_second_half_of_a_block_in_the_high_nibbles(bits):
    codes = random_codes(bits, 3, 256)
    packed = pack(codes, bits, "half")
    flat = codes.reshape(-1)
    expected = [
        flat[128 * block + 64 + i] << 4 | flat[128 * block + i]
        for block in range(6)
        for i in range(64)
    ]
    np.testing.assert_array_equal(packed, expected)
    np.testing.assert_array_equal(unpack(packed, bits, codes.size, "half"), flat)


@pytest.mark.parametrize(("bits", "shape"), in_turn(WIDTHS, [(1, 128), (3, 256), (2, 640)]))
def test_pack_p32(bits, shape):
    codes = random_codes(bits, *shape)
    words = pack_p32(codes, bits)
    assert words.dtype == np.uint32
    assert words.nbytes * 8 == codes.size * bits
    np.testing.assert_array_equal(words, slow_p32(codes, bits))
    np.testing.assert_array_equal(unpack_p32(words, bits), codes)
    np.testing.assert_array_equal(pack_p32(np.asfortranarray(codes), bits), words)


@pytest.mark.parametrize("order", ["msb", "lsb"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_stream_is_laid_out_as_its_codes_are(bits, order, monkeypatch):
    monkeypatch.setattr(packing, "_CHUNK_BLOCKS", 4)
    codes = random_codes(bits, 3, 384)
    stream = pack(codes, bits, order)
    wanted = slow_p32(codes, bits).reshape(-1)
    for lay_out in (stream_planes, require_library().coding.stream_planes):
        np.testing.assert_array_equal(np.concatenate(lay_out(stream, bits, order)), wanted)


def test_what_is_no_stream_of_blocks_is_refused():
    stream = pack(random_codes(4, 2, 128), 4, "half")
    for wrong, order in ((stream, "half"), (stream[:-1], "msb")):
        for lay_out in (stream_planes, require_library().coding.stream_planes):
            with pytest.raises(ShapeError, match="needed blocks of 64 bytes in order msb or lsb"):
                lay_out(wrong, 4, order)


@pytest.mark.parametrize("bits", WIDTHS)
def test_planes_of_row_slices_assemble_to_the_whole(bits):
    codes = random_codes(bits, 11, 384)
    whole = pack_p32(codes, bits)
    assembled = bytearray(b"\xa5" * whole.nbytes)
    for start, stop in [(7, 11), (0, 1), (1, 7)]:
        offsets = p32_plane_offsets(11, start, 384, bits)
        planes = p32_planes(codes[start:stop], bits)
        assert [plane.size for plane in planes] == [
            (stop - start) * 12 * width for width in p32_plane_widths(bits)
        ]
        for offset, plane in zip(offsets, planes, strict=True):
            assembled[offset : offset + plane.nbytes] = plane.tobytes()
    assert bytes(assembled) == whole.tobytes()


@pytest.mark.parametrize("bits", WIDTHS)
def test_unpack_p32_of_some_rows(bits):
    codes = random_codes(bits, 9, 256)
    words = pack_p32(codes, bits)
    for start, count in [(0, 1), (4, 3), (8, 1), (9, 0)]:
        rows = unpack_p32(words, bits, start, count)
        np.testing.assert_array_equal(rows, codes[start : start + count])
    np.testing.assert_array_equal(unpack_p32(words, bits, 5), codes[5:])


def test_plane_widths_keep_every_load_aligned():
    assert [p32_plane_widths(bits) for bits in WIDTHS] == [
        (1,),
        (2,),
        (2, 1),
        (4,),
        (4, 1),
        (4, 2),
        (4, 2, 1),
        (8,),
    ]
    for bits in WIDTHS:
        for width, offset in zip(
            p32_plane_widths(bits), p32_plane_offsets(5, 3, 384, bits), strict=True
        ):
            assert offset % (4 * min(width, 4)) == 0


BYTES = np.zeros(128, dtype=np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: pack(BYTES, 4, "bsm"),
            "[packing.pack] needed a bit order of msb, lsb, half, got 'bsm'. Name one of these.",
        ),
        (
            lambda: pack(BYTES, 9, "msb"),
            "[packing.pack] needed 1 to 8 bits for order msb, got 9. "
            "Check the width, or name another order.",
        ),
        (
            lambda: unpack(BYTES, 5, 128, "half"),
            "[packing.unpack] needed 1 to 4 bits for order half, got 5. "
            "Check the width, or name another order.",
        ),
        (
            lambda: pack(BYTES.view(np.int8), 4, "msb"),
            "[packing.pack] needed codes of uint8, got int8. "
            "View int8 as uint8: codes are unsigned.",
        ),
        (
            lambda: unpack(BYTES.view(np.int8), 8, 128, "msb"),
            "[packing.unpack] needed a buffer of uint8, got int8. "
            "View int8 as uint8: codes are unsigned.",
        ),
        (
            lambda: pack(BYTES + 4, 2, "lsb"),
            "[packing.pack] needed codes below 4 for 2 bits, got 4. Pack them with more bits.",
        ),
        (
            lambda: pack(BYTES[:100], 4, "half"),
            "[packing.pack] needed whole blocks of 128 codes for order half, got 100 codes. "
            "Pad the rows first.",
        ),
        (
            lambda: unpack(BYTES, 5, 128, "msb"),
            "[packing.unpack] needed 80 bytes for 128 codes of 5 bits, got 128. "
            "Check the shape of the norms against the codes.",
        ),
        (
            lambda: unpack(BYTES[:32], 3, 64, "half"),
            "[packing.unpack] needed whole blocks of 128 codes for order half, got 64 codes. "
            "Pad the rows first.",
        ),
        (
            lambda: p32_plane_widths(0),
            "[packing.p32_plane_widths] needed 1 to 8 bits, got 0. Check the bits of the manifest.",
        ),
        (
            lambda: p32_plane_offsets(8, 0, 200, 5),
            "[packing.p32_plane_offsets] needed K a multiple of 128, got 200. "
            "Pad the rows with zero weights before coding them.",
        ),
        (
            lambda: p32_planes(BYTES, 5),
            "[packing.p32_planes] needed codes [N, K], got shape (128,). Reshape them to rows.",
        ),
        (
            lambda: pack_p32(BYTES.reshape(2, 64), 5),
            "[packing.p32_planes] needed K a multiple of 128, got 64. "
            "Pad the rows with zero weights before coding them.",
        ),
        (
            lambda: unpack_p32(np.zeros((2, 18), np.uint32), 5),
            "[packing.unpack_p32] needed uint32 words [N, K*5/32] with K a multiple of 128, "
            "got uint32 (2, 18). Check the bits against the array.",
        ),
        (
            lambda: unpack_p32(np.zeros((2, 20), np.uint32), 5, 1, 2),
            "[packing.unpack_p32] needed rows inside 0..2, got 1..3. Ask for rows that exist.",
        ),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ShapeError) as caught:
        call()
    assert str(caught.value) == message
