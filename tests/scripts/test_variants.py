"""Other ways to write the kernels: their edits fit the files, and what they compute is right."""

import mlx.core as mx
import pytest
from metal_host import Checks, device, missing

from hlwq_mlx.quant import bodies, kernels, selftest
from hlwq_mlx.quant.backends import metal
from hlwq_mlx.quant.backends.base import reference
from hlwq_mlx.quant.chips import chips
from scripts.kernels import variants

M1 = chips()["M1"]
CASES = [(variant, variant.bits[len(variant.bits) // 2]) for variant in variants.variants()]


@pytest.mark.parametrize("variant", variants.variants(), ids=lambda variant: variant.name)
def test_edits_fit_the_files(variant):
    plain = bodies.BODIES["qmv"].header()
    with variants.texts_of(variant):
        assert bodies.BODIES["qmv"].header() != plain
    assert bodies.BODIES["qmv"].header() == plain


def test_an_edit_of_a_text_that_has_changed_is_refused(tmp_path):
    first = variants.variants()[0]
    edit = variants.Edit("qmv.metal", "no such line", "")
    with pytest.raises(
        ValueError, match=r"^\[variants\] needed the text that 'FMAs .*got it 0 tim"
    ):
        first._replace(edits=(edit,)).write(tmp_path)
    with pytest.raises(ValueError, match=r"got 'none'"):
        variants.named("none")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "bits"), CASES, ids=lambda value: getattr(value, "name", value)
)
def test_variants_compute_what_the_kernels_do(variant, bits):
    if reason := missing():
        pytest.skip(reason)
    matrix = selftest.random_matrix(bits)
    x = mx.random.normal((2, matrix.shape[1]), key=mx.random.key(0))
    tile = M1.tile(bits, 2, *matrix.shape)
    with device(Checks()):
        plain = metal.few_rows(x, matrix, tile)
        with variants.using(variant):
            found = metal.few_rows(x, matrix, tile)
        assert mx.array_equal(metal.few_rows(x, matrix, tile), plain)
    error = mx.linalg.norm(found - reference(x, matrix)) / mx.linalg.norm(plain)
    assert error.item() < selftest.BOUND / 10
    assert mx.array_equal(found, plain).item() == variant.is_same


def test_a_variant_s_kernel_has_a_name_of_its_own(monkeypatch):
    made = []
    monkeypatch.setattr(mx.fast, "metal_kernel", lambda **texts: made.append(texts) or len(made))
    variant = variants.named("a table of pairs")
    with variants.using(variant):
        first = kernels.built(mx.fast.metal_kernel, "qmv")
    with variants.using(variant):
        assert kernels.built(mx.fast.metal_kernel, "qmv") is first
    assert kernels.built(mx.fast.metal_kernel, "qmv") is not first
    names = [texts["name"] for texts in made]
    assert names == ["hlwq_qmv_atableofpairs", "hlwq_qmv"]
    assert "bits <= 4 ?" in made[0]["header"] and "bits <= 4 ?" not in made[1]["header"]
