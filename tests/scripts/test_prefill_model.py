"""The model of prefill counts what the attention's own code scores, and what products decode."""

import pytest

from scripts.benchmarks import prefill_model
from scripts.benchmarks.prefill_model import DECODING, PRODUCTS, SCALING, WAYS, Way, phases, scored


@pytest.mark.parametrize(
    ("held", "window", "block", "keys"),
    [
        (1023, 512, 128, 4 * 128 * (511 + 128)),  # a window before each block
        (1023, 512, 1 << 30, 512 * 1023),
        (512, None, 1 << 30, 512 * 512),
        (512, None, 128, 128 * (128 + 256 + 384 + 512)),
        (2000, None, 256, 256 * (2000 - 256 + 2000)),
    ],
)
def test_keys_that_a_chunk_of_512_scores(held, window, block, keys):
    assert scored(512, held, window, block) == keys


def test_a_weight_is_decoded_once_a_chunk_or_for_every_32_tokens():
    tiles, once = Way("", 512, qmm_rows=512), Way("", 512, qmm_rows=0)
    short, long = (phases(tiles, length) for length in (32, 512))
    assert long[DECODING] == pytest.approx(16 * short[DECODING], rel=0.01)
    assert phases(once, 512)[DECODING] == pytest.approx(phases(once, 32)[DECODING], rel=0.01)
    assert short[SCALING] == 0 < phases(once, 32)[SCALING]


def test_no_way_multiplies_more_than_the_one_before():
    """One position alone goes on from the last of 24 layers with keys, and they cost the most."""
    before, *others = (phases(way, 512) for way in WAYS)
    for now in others:
        assert 1 - 1.5 / 24 < now[PRODUCTS] / before[PRODUCTS] < 1 - 0.5 / 24
    assert prefill_model.text().first_shared == 24


def test_primitives_are_counted_on_the_graph():
    """Blocks of scores add to a chunk's graph; what its end alone runs is always the same."""
    before, server, alone = prefill_model.primitives().values()
    assert all(map(int.__lt__, before, server)) and all(map(int.__lt__, server, alone))
    ends = {last - behind for _, behind, last in (before, server, alone)}
    assert len(ends) == 1 and min(ends) > 18 * 10  # 18 layers share keys
