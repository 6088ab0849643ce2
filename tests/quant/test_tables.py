import numpy as np
import pytest
from scipy.stats import norm

from hlwq_mlx.errors import ConfigError
from hlwq_mlx.quant.tables import CENTROIDS, cell_probabilities, centroids, error_energy

WIDTHS = range(1, 9)


def hundred_rounds(count, end, dtype):
    """Lloyd-Max from even boundaries on [-4, 4], with the ends fixed, kept in `dtype`."""
    edges = np.linspace(-4.0, 4.0, count + 1).astype(dtype)
    edges[0], edges[-1] = -end, end
    for _ in range(100):
        low, high = edges[:-1].astype(np.float64), edges[1:].astype(np.float64)
        means = (norm.pdf(low) - norm.pdf(high)) / (norm.cdf(high) - norm.cdf(low))
        means = means.astype(dtype)
        edges[1:-1] = (means[:-1] + means[1:]) / dtype(2)
    return means.astype(np.float32)


def cell_means(upper):
    """Means of the cells right of zero, and how each moves with its two edges."""
    edges = np.array([0.0, *((upper[1:] + upper[:-1]) / 2), np.inf])
    density, finite = norm.pdf(edges), np.append(edges[:-1], 0.0)
    mass = norm.sf(edges[:-1]) - norm.sf(edges[1:])
    means = (density[:-1] - density[1:]) / mass
    return (
        means,
        density[:-1] * (means - finite[:-1]) / mass,
        density[1:] * (finite[1:] - means) / mass,
    )


def fixed_point(start):
    """Newton's method on centroid == mean of its cell, from a table, in float64."""
    count = len(start) // 2
    upper = start[count:].astype(np.float64)
    for _ in range(4):
        means, by_low, by_high = cell_means(upper)
        slope = np.diag(np.append(0.0, by_low[1:]) + np.append(by_high[:-1], 0.0))
        slope += np.diag(by_low[1:], -1) + np.diag(by_high[:-1], 1)
        upper += np.linalg.solve(np.eye(count) - slope / 2, means - upper)
    assert np.abs(cell_means(upper)[0] - upper).max() < 1e-12
    return np.concatenate([-upper[::-1], upper]).astype(np.float32)


@pytest.mark.parametrize("bits", WIDTHS)
def test_tables_are_their_definitions(bits):
    clipped, unbounded, converged = (
        centroids(table, bits) for table in ("clip4_100", "inf_100", "converged")
    )
    np.testing.assert_array_equal(clipped, hundred_rounds(1 << bits, 4.0, np.float32))
    np.testing.assert_array_equal(unbounded, hundred_rounds(1 << bits, np.inf, np.float64))
    np.testing.assert_array_equal(converged, fixed_point(converged))


@pytest.mark.parametrize("table", CENTROIDS)
def test_tables_are_ascending_antisymmetric_and_exact_float32(table):
    for bits in WIDTHS:
        values = centroids(table, bits)
        assert values.dtype == np.float32
        assert values.shape == (1 << bits,)
        assert (np.diff(values) > 0).all()
        np.testing.assert_array_equal(values, -values[::-1])
        shortest = tuple(float(np.format_float_positional(v, unique=True)) for v in values)
        assert CENTROIDS[table][bits] == shortest


def test_published_ends_tell_the_tables_apart():
    ends = {table: centroids(table, 5)[-1] for table in CENTROIDS}
    assert ends["clip4_100"] == np.float32(3.4231443)
    assert round(float(ends["inf_100"]), 3) == 3.552
    assert len(set(ends.values())) == 3


def test_unknown_table_and_width_are_refused():
    with pytest.raises(
        ConfigError,
        match=r"\[tables\.centroids\] needed a table of clip4_100, inf_100, converged, got 'nf4'\.",
    ):
        centroids("nf4", 4)
    with pytest.raises(ConfigError, match=r"needed 1 to 8 bits, got 9\. Choose a width"):
        centroids("converged", 9)


def test_cell_probabilities_are_a_distribution():
    cells = cell_probabilities(centroids("clip4_100", 3))
    assert cells.shape == (8,)
    np.testing.assert_allclose(cells, cells[::-1], rtol=1e-12)
    np.testing.assert_allclose(cells.sum(), 1, rtol=1e-15)
    np.testing.assert_allclose(cells[4], 0.1915, atol=0.005)  # of N(0, 1) between 0 and 0.5


@pytest.mark.parametrize("table", CENTROIDS)
def test_error_energy_is_the_integral(table):
    """By the trapezoidal rule on a fine grid, which for a Gaussian is as good as exact."""
    z = np.linspace(-9, 9, 300_001)
    density = norm.pdf(z)
    for bits in WIDTHS:
        levels = centroids(table, bits).astype(np.float64)
        nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, z)]
        wanted = np.trapezoid((z - nearest) ** 2 * density, z)
        np.testing.assert_allclose(error_energy(centroids(table, bits)), wanted, rtol=1e-5)
