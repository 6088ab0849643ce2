"""Coded tensors from their parts: every key style's width, and every contradiction refused."""

import math
import re

import numpy as np
import pytest

from hlwq_mlx.errors import CheckpointError, raise_all
from hlwq_mlx.quant.packing import BLOCK, pack
from hlwq_mlx.quant.tables import centroids
from hlwq_mlx.source.coded import gather, parse_key
from hlwq_mlx.source.layout import polar_settings

NAME = "model.layers.0.mlp.up_proj.weight"
DUNDER = NAME.replace(".", "__")
MODULE = NAME.removesuffix(".weight")
N, NB = 6, 2
RNG = np.random.default_rng(3)
NORMS = RNG.uniform(0.5, 2, (N, NB)).astype(np.float16)


def draw(bits):
    codes = RNG.integers(0, 1 << bits, (N, NB * BLOCK), dtype=np.uint8)
    codes[0, 0] = (1 << bits) - 1
    return codes


def build(tensors, settings=None, folder_bits=None):
    parts = {}
    for key, array in tensors.items():
        parsed = parse_key(key)
        parts.setdefault(parsed.tensor, {})[parsed.role] = parsed, np.asarray(array)
    return gather(parts, settings or {}, folder_bits)


def published(bits, codes=None, **changes):
    """The parts of the published layout, some of them exchanged or left out (None)."""
    packed = pack(draw(bits) if codes is None else codes, bits, "msb")
    parts = {"packed": packed, "norms": NORMS, "meta": np.array([N, NB, BLOCK, N * NB * BLOCK])}
    return {
        f"{DUNDER}__{role}": array for role, array in (parts | changes).items() if array is not None
    }


def refuse(tensors, message, **options):
    with pytest.raises(CheckpointError, match=message):
        build(tensors, **options)


@pytest.mark.parametrize(
    ("key", "tensor", "role", "is_dotted"),
    [
        ("a__b__weight__packed", "a.b.weight", "codes", False),
        ("a__b__weight__norms", "a.b.weight", "norms", False),
        ("a__b__weight__meta", "a.b.weight", "meta", False),
        ("a.b.weight__packed", "a.b.weight", "codes", False),
        ("a.b__packed", "a.b.weight", "codes", False),
        ("a__b__packed", "a.b.weight", "codes", False),
        ("a__b__codes", "a.b.weight", "codes", False),
        ("a.b.codes", "a.b.weight", "codes", True),
        ("a.b.norms", "a.b.weight", "norms", True),
        ("a.b.ct_scaled", "a.b.weight", "table_scaled", True),
        ("a.b.ct", "a.b.weight", "table", True),
        ("a.under_score__packed", "a.under_score.weight", "codes", False),
    ],
)
def test_keys_come_apart(key, tensor, role, is_dotted):
    parsed = parse_key(key)
    assert (parsed.tensor, parsed.role, parsed.is_dotted) == (tensor, role, is_dotted)


@pytest.mark.parametrize("key", ["a.b.weight", "a.b_packed", "a.norm.weight", "layer_scalar"])
def test_names_of_plain_tensors_are_no_keys(key):
    assert parse_key(key) is None


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_the_width_of_packed_codes_is_their_size(bits):
    codes = draw(bits)
    tensor = build(published(bits, codes), folder_bits=3)[NAME]
    assert (tensor.bits, tensor.stored_bits) == (bits, bits)
    assert tensor.shape == (N, NB * BLOCK)
    assert (tensor.key_order, tensor.implied_table) == ("msb", "clip4_100")
    assert tensor.own_table is None
    np.testing.assert_array_equal(tensor.rows(0, N, "msb"), codes)
    np.testing.assert_array_equal(tensor.rows(2, 5, "msb"), codes[2:5])


@pytest.mark.parametrize(
    ("largest", "settings", "folder_bits", "bits"),
    [
        (30, {"bits": 5}, 8, 5),
        (30, {"layers": {MODULE: {"bits": 6}}, "bits": 5}, None, 6),
        (1, {}, 1, 1),
        (1, {}, None, 1),
        (0, {}, None, 1),
        (2, {}, None, 2),
        (30, {}, 3, 5),  # the codes need more than the folder's name says
        (255, {"bits": 5}, None, 8),
        (30, {}, 8, 8),
    ],
)
def test_the_width_of_a_byte_a_code(largest, settings, folder_bits, bits):
    codes = np.full((N, NB * BLOCK), largest, dtype=np.uint8)
    tensors = {f"{DUNDER}__codes": codes.view(np.int8), f"{DUNDER}__norms": NORMS}
    tensor = build(tensors, settings, folder_bits)[NAME]
    assert (tensor.bits, tensor.stored_bits) == (bits, 8)
    np.testing.assert_array_equal(tensor.rows(0, N, "msb"), codes)


@pytest.mark.parametrize("folder_bits", [None, 1, 2])
def test_ternary_bytes_are_refused(folder_bits):
    """Two bits could hold the codes of PQ1.58, but two bits' table is not theirs."""
    codes = np.tile(np.array([0, 1, 2, 1], dtype=np.uint8), (N, NB * BLOCK // 4))
    tensors = {f"{DUNDER}__packed": codes.reshape(-1), f"{DUNDER}__norms": NORMS}
    message = rf"^\[{NAME}\] needed 2, 4, 8 \.\.\. levels, got codes from 0 to 2\. .* PQ1\.58"
    refuse(tensors, message, folder_bits=folder_bits)


def half(bits, codes, **more):
    packed = pack(codes, bits, "half").reshape(N, -1)
    return {f"{MODULE}.codes": packed, f"{MODULE}.norms": NORMS, **more}


@pytest.mark.parametrize(("told", "bits"), [(3, 3), (2, 3), (None, 3), (4, 4)])
def test_nibbles_of_dotted_keys_are_half_blocks(told, bits):
    codes = draw(3)
    settings = {"layers": {MODULE: {"bits": told}}} if told else {}
    tensor = build(half(3, codes), settings)[NAME]
    assert (tensor.bits, tensor.stored_bits, tensor.key_order) == (bits, 4, "half")
    np.testing.assert_array_equal(tensor.rows(0, N, "half"), codes)


def test_five_bits_of_dotted_keys_are_lsb_first():
    codes = draw(5)
    tensors = {f"{MODULE}.codes": pack(codes, 5, "lsb"), f"{MODULE}.norms": NORMS}
    tensor = build(tensors)[NAME]
    assert (tensor.bits, tensor.key_order) == (5, "lsb")
    np.testing.assert_array_equal(tensor.rows(0, N, "lsb"), codes)


@pytest.mark.parametrize("key", ["ct", "ct_scaled"])
def test_a_table_in_the_file_is_used(key):
    table = centroids("inf_100", 4)
    stored = table / np.float32(math.sqrt(BLOCK)) if key == "ct_scaled" else table
    tensor = build(half(4, draw(4), **{f"{MODULE}.{key}": stored}))[NAME]
    np.testing.assert_allclose(tensor.own_table, table, rtol=2e-7)


@pytest.mark.parametrize("table", [np.zeros(15), np.zeros((2, 8)), np.full(16, np.nan)])
def test_a_table_that_does_not_fit_is_refused(table):
    refuse(half(4, draw(4), **{f"{MODULE}.ct": table}), r"needed a table of 16 finite centroids")


@pytest.mark.parametrize(
    ("meta", "settings", "columns"),
    [
        ([N, NB, BLOCK, N * NB * BLOCK], {}, 256),
        ([N, NB, BLOCK, N * NB * BLOCK, 200], {}, 200),
        ([5, 256], {}, 256),
        ([5], {}, 256),
        (None, {"layers": {MODULE: {"in_features": 129}}}, 129),
        ([N, NB, BLOCK, N * NB * BLOCK], {"layers": {MODULE: {"in_features": 200}}}, 200),
    ],
)
def test_columns_come_from_meta_or_settings(meta, settings, columns):
    meta = None if meta is None else np.array(meta)
    assert build(published(5, meta=meta), settings)[NAME].shape == (N, columns)


def test_a_meta_of_bits_and_columns_implies_the_older_table():
    assert build(published(5, meta=np.array([5, 256])))[NAME].implied_table == "inf_100"


@pytest.mark.parametrize(
    "meta",
    [
        [N, NB, BLOCK, N * NB * BLOCK - 1],
        [NB, N, BLOCK, N * NB * BLOCK],
        [N, NB, 64, N * NB * 64],
        [N, NB, BLOCK],
    ],
)
def test_a_meta_that_contradicts_the_norms_is_refused(meta):
    refuse(published(5, meta=np.array(meta)), rf"\[{NAME}\] needed meta \[6, 2, 128, 1536\] from")


@pytest.mark.parametrize("meta", [[0], [9, 256], [5, 255]])
def test_a_meta_of_impossible_bits_or_columns_is_refused(meta):
    refuse(published(5, meta=np.array(meta)), r"needed meta \[bits, 256\] with 1 to 8 bits, got")


def test_a_meta_of_fractions_is_refused():
    meta = np.array([N, NB, BLOCK, np.nan], dtype=np.float32)
    refuse(published(5, meta=meta), rf"\[{NAME}\] needed meta of whole numbers, got float32\.")


def test_a_meta_of_negative_rows_is_refused():
    meta = np.array([-N, NB, BLOCK, N * NB * BLOCK])
    refuse(
        published(5, meta=meta, norms=NORMS.reshape(-1)), r"needed meta \[12, 1, 128, 1536\] from"
    )


@pytest.mark.parametrize("key", ["bits", "block_size", "in_features"])
@pytest.mark.parametrize("value", ["5", [5], 5.5, True])
def test_settings_that_are_no_whole_numbers_are_refused(key, value):
    got = re.escape(repr(value))
    message = rf"\[{NAME}\] needed a whole number as {key} in polar_config\.json, got {got}\."
    refuse(published(5), message, settings={"layers": {MODULE: {key: value}}})
    refuse(published(5), message, settings={key: value})


def test_a_tensors_own_settings_go_before_those_of_all():
    settings = {"bits": 7, "layers": {MODULE: {"bits": 6}}}
    codes = np.full((N, NB * BLOCK), 30, dtype=np.uint8)
    tensors = {f"{DUNDER}__codes": codes, f"{DUNDER}__norms": NORMS}
    assert build(tensors, settings)[NAME].bits == 6


@pytest.mark.parametrize("columns", [128, 257])
def test_columns_that_do_not_fill_the_blocks_are_refused(columns):
    meta = np.array([N, NB, BLOCK, N * NB * BLOCK, columns])
    refuse(published(5, meta=meta), rf"needed in_features that fill 2 blocks of 128, got {columns}")


@pytest.mark.parametrize("settings", [{"block_size": 64}, {"layers": {MODULE: {"block_size": 64}}}])
def test_another_block_size_is_refused(settings):
    refuse(published(5), r"needed blocks of 128, got 64", settings=settings)


@pytest.mark.parametrize(
    ("role", "message"), [("norms", "got no norms"), ("packed", "got no codes")]
)
def test_a_missing_part_is_named(role, message):
    refuse(published(5, **{role: None}), rf"\[{NAME}\] needed codes and norms, {message}\. The")


def test_a_table_without_codes_is_no_tensor():
    refuse({f"{MODULE}.ct": np.zeros(4)}, r"needed codes and norms, got no codes and no norms")


@pytest.mark.parametrize("norms", [NORMS.reshape(-1), NORMS[..., None], NORMS.astype(np.float32)])
@pytest.mark.parametrize("codes", ["flat", "matrix"])
def test_norms_of_any_published_shape(norms, codes):
    packed = pack(draw(5), 5, "msb")
    tensors = published(5, packed=packed if codes == "flat" else packed.reshape(N, -1))
    tensors[f"{DUNDER}__norms"] = norms
    tensor = build(tensors)[NAME]
    assert tensor.norms.dtype == np.float16
    np.testing.assert_array_equal(tensor.norms, NORMS)


def test_flat_norms_take_their_rows_from_the_codes_where_meta_is_missing():
    packed = pack(draw(5), 5, "msb").reshape(N, -1)
    tensors = published(5, packed=packed, norms=NORMS.reshape(-1), meta=None)
    np.testing.assert_array_equal(build(tensors)[NAME].norms, NORMS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_norms_that_are_no_lengths_are_refused(value, dtype):
    norms = NORMS.astype(dtype)
    norms[2, 1] = norms[4, 0] = value
    refuse(published(5, norms=norms), rf"\[{NAME}\] needed finite norms, got 2 that are NaN")


def test_norms_too_large_for_float16_are_refused():
    norms = NORMS.astype(np.float32) * np.array([1e6, 1], dtype=np.float32)
    refuse(published(5, norms=norms), r"needed finite norms, got 6 that")


@pytest.mark.parametrize("norms", [NORMS.view(np.uint16), np.zeros((0, 2), np.float16)])
def test_norms_of_another_dtype_or_none_are_refused(norms):
    refuse(published(5, norms=norms), r"needed norms of F16 or F32, got")


@pytest.mark.parametrize("dtype", [np.uint32, np.float32])
def test_codes_of_another_dtype_are_refused(dtype):
    packed = np.zeros((N, 40), dtype=dtype)
    refuse(
        published(5, packed=packed), rf"needed codes of U8 or I8, got {np.dtype(dtype)}\. .*conv"
    )


@pytest.mark.parametrize("size", [0, N * NB * BLOCK * 5 // 8 - 1, N * NB * BLOCK * 9 // 8])
def test_codes_of_no_whole_width_are_refused(size):
    packed = np.zeros(size, dtype=np.uint8)
    refuse(
        published(5, packed=packed), rf"needed 1 to 8 whole bits .* 1536 codes, got {size} bytes"
    )


def test_a_code_without_a_centroid_is_refused():
    """Bits are those of the largest code, so only a damaged nibble can be too large."""
    tensor = build(half(3, draw(3)), {"layers": {MODULE: {"bits": 3}}})[NAME]
    with pytest.raises(
        CheckpointError, match=r"needed codes below 8, got \d+\. The file is damaged"
    ):
        broken = type(tensor)(**{**vars(tensor), "raw": tensor.raw | 8})
        broken.rows(0, N, "half")


def test_all_problems_are_listed_at_once():
    tensors = published(5, norms=None) | {"b__weight__norms": NORMS}
    with pytest.raises(CheckpointError) as caught:
        build(tensors)
    assert re.findall(r"\[\S+\]", str(caught.value)) == [f"[{NAME}]", "[b.weight]"]


def test_a_long_list_of_problems_is_cut():
    with pytest.raises(CheckpointError) as caught:
        raise_all(f"{i}." for i in range(23))
    assert str(caught.value) == "0. 1. 2. And 20 more."
    raise_all([])


def test_torchao_settings_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"got weight_format 'torchao_int4' in polar_config"):
        polar_settings(tmp_path, {"weight_format": "torchao_int4"})
    assert polar_settings(tmp_path, {"bits": 5}) == {"bits": 5}


@pytest.mark.parametrize("layers", [None, ["a"], {"a": 5}])
def test_settings_whose_layers_are_no_objects_are_refused(tmp_path, layers):
    got = re.escape(str(layers))
    message = rf"needed an object for each of the layers in polar_config\.json, got {got}\."
    with pytest.raises(CheckpointError, match=message):
        polar_settings(tmp_path, {"layers": layers})
