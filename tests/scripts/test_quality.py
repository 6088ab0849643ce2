"""The table of formats at equal bytes: what each takes, and what is read off the lines."""

import math

import numpy as np
import pytest

from scripts.benchmarks import formats, quality
from scripts.benchmarks.formats import BEST, PUBLISHED, Place

ALL = {each.name: each for each in formats.formats()}
PLACE = Place("q", 0, 6)


@pytest.fixture(scope="module")
def weight():
    return np.random.default_rng(0).standard_normal((16, 384)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("PQ4, as published", 4.125),
        ("PQ5, converged, refit", 5.125),
        ("MLX affine 4, groups of 64", 4.5),
        ("MLX mxfp4", 4.25),
        ("MLX nvfp4", 4.5),
        ("Q4_K", 4.5),
        ("Q6_K", 6.5625),
        ("IQ4_XS", 4.25),
        ("Q5_K_M", 5.5),
    ],
)
def test_every_byte_is_counted(name, bits, weight):
    if name not in ALL:
        pytest.skip("llama-cpp-python and gguf are not installed")
    coded = ALL[name].code(PLACE, weight)
    assert 8 * coded.nbytes / weight.size == bits
    assert coded.weight.shape == weight.shape
    error = np.linalg.norm(coded.weight - weight) / np.linalg.norm(weight)
    assert 0.2 * 2**-bits < error < 3 * 2**-bits


def test_padding_is_counted():
    coded = ALL["PQ4, as published"].code(PLACE, np.ones((2, 130), np.float32))
    assert coded.nbytes == 2 * 2 * (64 + 2)
    assert coded.weight.shape == (2, 130)


def test_a_strong_mean_costs_nothing_beside_the_codes(weight):
    lost = []
    for mean in (0, 4):
        for each in formats.with_means(5):
            coded = each.code(PLACE, weight + mean)
            assert 8 * coded.nbytes / weight.size == 5.25
            lost.append(np.square(coded.weight - weight - mean).sum())
    np.testing.assert_allclose(lost[2:], lost[:2], rtol=0.02)
    assert lost[1] < lost[0]


def test_mixtures_give_more_bits_where_llama_cpp_does():
    def types(name, kind, layers):
        return [formats.mixed_type(name, Place(kind, layer, layers)) for layer in range(layers)]

    assert types("Q5_K_M", "v", 6) == ["Q5_K", "Q5_K", "Q6_K", "Q5_K", "Q5_K", "Q6_K"]
    assert types("Q4_K_M", "q", 6) == ["Q4_K"] * 6
    assert types("Q3_K_M", "v", 3) == ["Q5_K", "Q5_K", "Q4_K"]
    assert types("Q3_K_M", "down", 32)[:3] == ["Q5_K", "Q5_K", "Q4_K"]
    assert types("Q3_K_M", "o", 1) == ["Q4_K"] and types("Q3_K_M", "up", 1) == ["Q3_K"]


def row(name, bits, noise, loss, curve=None):
    return quality.Row(formats.Format(name, None, curve), bits, noise, loss, [])


ROWS = [
    row("PQ3", 3.0, 12, 1e-1, PUBLISHED),
    row("PQ4", 4.0, 18, 1e-2, PUBLISHED),
    row("PQ3", 3.0, 15, 1e-1, BEST),
    row("PQ4", 4.0, 21, 1e-3, BEST),
]


def test_what_is_saved_is_read_off_our_lines():
    other = row("Q3_K_M", 3.5, 16.5, 1e-2)
    assert quality.savings(ROWS, other) == pytest.approx([-0.25, 0.25, -0.5, 0.0])
    assert quality.verdict(0.25) == "holds (+0.25 bits)"
    assert quality.verdict(-0.25) == "does not hold (-0.25 bits)"


def test_nothing_is_read_beyond_our_widths_or_below_rounding():
    saved = quality.savings(ROWS, row("Q8_0", 8.5, 40, 1e-9))
    assert all(math.isnan(bits) for bits in saved)
    assert quality.verdict(saved[0]) == "not told" and quality.signed(saved[0]) == "–"


def test_the_card_s_claims_are_judged(capsys):
    subject = quality.Sentences.__new__(quality.Sentences)
    rows = [*ROWS[:2], row(f"PQ3, {BEST}", 3.0, 15, 1e-1, BEST), ROWS[3]]
    quality.print_claims(subject, [*rows, row("Q3_K_M", 3.5, 16.5, 5e-3)])
    assert capsys.readouterr().out.strip() == (
        "MiniLM, PQ3 > Q3_K_M at the same size: as published: by error does not hold (-0.25 bits), "
        "by loss not told; converged, refit: by error holds (+0.25 bits), "
        "by loss does not hold (-0.15 bits)."
    )


def test_sentences_are_those_of_stories_and_the_licence():
    found = quality.sentences()
    assert len(found) == 48 and all(found)
    assert "Apache License" in found[24]
