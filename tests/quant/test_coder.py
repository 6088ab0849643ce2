"""The fast coders against the codec that defines them: the same codes and norms, bit for bit."""

import numpy as np
import pytest

from hlwq_mlx.errors import ShapeError
from hlwq_mlx.quant import codec
from hlwq_mlx.quant.backends.native.library import require_library
from hlwq_mlx.quant.coder import Coder, energies_of
from hlwq_mlx.quant.tables import CENTROIDS, centroids

RNG = np.random.default_rng(14)
DRAWN = RNG.standard_normal((96, 256), dtype=np.float32)

WEIGHTS = {
    "float32": DRAWN,
    "bfloat16": (DRAWN.view(np.uint32) & 0xFFFF0000).view(np.float32),
    "whole numbers, with many ties": np.round(DRAWN),
    "signs and zeros": RNG.choice(np.array([-1, 0, 1], np.float32), DRAWN.shape),
    "sparse": DRAWN * (RNG.random(DRAWN.shape) < 0.03),
    "below the least norm": DRAWN * np.float32(1e-14),
    "empty, faint and others": DRAWN * np.resize(np.float32([0, 1e-30, 1]), (96, 1)),
    "nearly too large": DRAWN * np.float32(3000),
    "of many magnitudes": np.exp(4 * DRAWN) / np.float32(1e6),
    "padded": DRAWN[:, :200],
}


def native_coder(values):
    return require_library().coding.make_coder(values)


EVERY_CODER = pytest.mark.parametrize("make", [Coder, native_coder], ids=["numpy", "native"])


@EVERY_CODER
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("table", CENTROIDS)
def test_codes_and_norms_are_those_of_the_definition(table, kind, make):
    weight = np.ascontiguousarray(WEIGHTS[kind], dtype=np.float32)
    for bits in range(1, 9):
        values = centroids(table, bits)
        coded = make(values)(weight)
        codes, norms = codec.encode(weight, values)
        np.testing.assert_array_equal(coded.codes, codes)
        np.testing.assert_array_equal(coded.norms, norms)


@EVERY_CODER
def test_values_at_midpoints_and_around_them(make):
    """Coordinates of 0 lie on a midpoint; in every other block they are a few ulps from there."""
    values = np.array([-3, -1, 1, 3], np.float32)  # midpoints -2, 0, 2
    hadamard = codec._signs()
    wanted = RNG.choice(np.array([-2.0, 0, 2]), (4096, 128))
    weight = (wanted @ hadamard / 128).astype(np.float32)
    weight[::2] *= np.float32(1 + 2**-23) ** RNG.integers(-1, 2, weight[::2].shape)
    coded = make(values)(weight)
    np.testing.assert_array_equal(coded.codes, codec.encode(weight, values)[0])


@EVERY_CODER
def test_a_table_with_entries_closer_than_a_cell(make):
    values = np.array([-1, -1 + 1e-5, -1 + 2e-5, 0.5, 0.5 + 1e-4, 1], np.float32)
    np.testing.assert_array_equal(make(values)(DRAWN).codes, codec.encode(DRAWN, values)[0])


@EVERY_CODER
@pytest.mark.parametrize("kind", ["float32", "padded"])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_the_energies_are_those_of_what_is_decoded(kind, bits, make):
    weight, values = np.ascontiguousarray(WEIGHTS[kind]), centroids("converged", bits)
    coded = make(values)(weight)
    decoded = codec.decode(coded.codes, coded.norms, values)[:, : weight.shape[1]]
    np.testing.assert_allclose(coded.energies, energies_of(weight, decoded), rtol=1e-6)


@EVERY_CODER
@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e5])
def test_what_cannot_be_coded_is_refused(wrong, make):
    weight = DRAWN.copy()
    weight[3, 5] = wrong
    with pytest.raises(ShapeError, match=r"\[coder\] needed finite weights with block norms up to"):
        make(centroids("converged", 4))(weight)
