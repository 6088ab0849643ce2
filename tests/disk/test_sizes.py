"""Sizes in units that a person can compare."""

import pytest

from hlwq_mlx.disk.sizes import format_bytes


@pytest.mark.parametrize(
    ("size", "spelled"),
    [
        (11_453_250_000, "11.45 GB"),
        (1_000_000_000, "1.00 GB"),
        (999_000_000, "999.00 MB"),
        (1_234_567, "1.23 MB"),
        (12_345, "12.35 kB"),
        (0, "0.00 kB"),
    ],
)
def test_the_largest_unit_that_a_size_fills(size, spelled):
    assert format_bytes(size) == spelled
