"""The writer of the published layout against the files that the published writer made."""

import shutil

import mlx.core as mx
import numpy as np
import pytest
import tiny
from golden import GOLDEN, MULTI
from safetensors.numpy import load_file

from hlwq_mlx.errors import RequestError, SourceError
from hlwq_mlx.source.repository import Source
from hlwq_mlx.source.rules import variant_rule
from hlwq_mlx.write.quantize import Encoder, count_strong_means, write_published


@pytest.fixture
def original(tmp_path):
    """The 16-bit tensors that the golden variants were made from."""
    (tmp_path / "original").mkdir()
    path = tmp_path / "original" / "model.safetensors"
    shutil.copy(GOLDEN / "source_bf16.safetensors", path)
    return Source(path.parent)


@pytest.mark.parametrize("variant", MULTI)
def test_published_files_are_reproduced(variant, original, tmp_path):
    name, rule = variant_rule(variant.lower())
    assert name == variant
    write_published(original, rule, tmp_path / variant, Encoder("clip4_100"))
    codes = load_file(tmp_path / variant / "codes.safetensors")
    wanted = load_file(GOLDEN / "multi" / variant / "codes.safetensors")
    assert codes.keys() == wanted.keys()
    for key, array in wanted.items():
        assert codes[key].dtype == array.dtype
        np.testing.assert_array_equal(codes[key], array)
    plain = mx.load(str(tmp_path / variant / "bf16.safetensors"))
    wanted = mx.load(str(GOLDEN / "multi" / variant / "bf16.safetensors"))
    assert plain.keys() == wanted.keys()
    for key, array in wanted.items():
        assert (plain[key].dtype, plain[key].shape) == (mx.bfloat16, array.shape)
        assert mx.array_equal(plain[key], array)


def test_slices_do_not_change_a_byte(original, tmp_path, monkeypatch):
    rule = variant_rule("PQ5")[1]
    write_published(original, rule, tmp_path / "whole", Encoder("clip4_100"))
    monkeypatch.setattr("hlwq_mlx.write.quantize._SLICE_WEIGHTS", 300)  # of plain tensors
    monkeypatch.setattr("hlwq_mlx.write.output._SLICE_BYTES", 16 * 300)
    write_published(original, rule, tmp_path / "sliced", Encoder("clip4_100"))
    for name in ("codes.safetensors", "bf16.safetensors"):
        sliced = (tmp_path / "sliced" / name).read_bytes()
        assert (tmp_path / "whole" / name).read_bytes() == sliced


def test_float32_and_float16_tensors_are_rounded_to_bfloat16(tmp_path):
    tensors = {
        "model.up.weight": mx.random.normal((2, 128)),
        "model.norm.weight": mx.array([1.00390625, 1.01171875], mx.float32),  # two ties
        "model.input_max": mx.array(3.1415927, mx.float16),
    }
    (tmp_path / "original").mkdir()
    mx.save_safetensors(str(tmp_path / "original" / "model.safetensors"), tensors)
    source = Source(tmp_path / "original")
    write_published(source, variant_rule("PQ5")[1], tmp_path / "PQ5", Encoder("clip4_100"))
    plain = mx.load(str(tmp_path / "PQ5" / "bf16.safetensors"))
    assert plain["model.norm.weight"].tolist() == [1.0, 1.015625]  # to even
    assert plain["model.input_max"].tolist() == 3.140625
    assert plain["model.input_max"].shape == ()


def test_who_codes_says_by_which_table():
    """`quantize` codes by one, a published variant by another: neither goes without saying."""
    with pytest.raises(TypeError, match="'table'"):
        Encoder()


def test_the_table_that_was_used_is_read_back(tmp_path):
    tiny.write_root(tmp_path, tiny.config())
    tiny.save_plain(tmp_path / "model.safetensors", tiny.make_weights(tiny.config()))
    rule = variant_rule("PQ2-Mixed")[1]
    write_published(Source(tmp_path), rule, tmp_path / "PQ2-Mixed", Encoder("converged"))
    source = Source(tmp_path / "PQ2-Mixed")
    assert {reading.table for reading in source.readings.values()} == {"converged"}
    assert {line.split(", ")[2] for line in source.evidence()} == {
        "table converged as the file says"
    }


@pytest.mark.parametrize("table", ["clip4_100", "inf_100"])
def test_our_reader_decodes_what_our_writer_wrote(table, tmp_path):
    """The same files as the tests' own writer makes from the codec."""
    weights = tiny.make_weights(tiny.config(even=False))
    tiny.write_root(tmp_path, tiny.config(even=False))
    tiny.save_plain(tmp_path / "model.safetensors", weights)
    write_published(Source(tmp_path), tiny.all_coded, tmp_path / "ours", Encoder(table))
    tiny.publish(tmp_path / "theirs", weights, tiny.all_coded, table)
    ours = load_file(tmp_path / "ours" / "codes.safetensors")
    theirs = load_file(tmp_path / "theirs" / "codes.safetensors")
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        np.testing.assert_array_equal(ours[key], array)


def test_what_cannot_be_written_is_refused(original, tmp_path):
    rule = variant_rule("PQ5")[1]
    with pytest.raises(RequestError, match=r"got 0 that are coded and 0 to be coded"):
        write_published(original, lambda name, shape: None, tmp_path / "PQ5", Encoder("clip4_100"))
    write_published(original, rule, tmp_path / "PQ5", Encoder("clip4_100"))
    with pytest.raises(SourceError, match=r"\[output\] needed a new folder"):
        write_published(original, rule, tmp_path / "PQ5", Encoder("clip4_100"))
    with pytest.raises(RequestError, match=r"got 5 that are coded and 0 to be coded"):
        write_published(Source(tmp_path / "PQ5"), rule, tmp_path / "again", Encoder("clip4_100"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["PQ5", "original"]


@pytest.mark.parametrize("scale", [1, 1e-25, 1e25, 1e-44])
def test_strong_means_are_told_apart_whatever_the_magnitude(scale):
    """16 equal weights are at the limit exactly, where float32 alone might go either way."""
    weight = np.zeros((8, 128), np.float32)
    for row in range(8):
        weight[row, : 13 + row] = scale
    assert count_strong_means(weight) == 4
    assert count_strong_means(-weight[:, :120]) == 4
