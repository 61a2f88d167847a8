"""Coverage of intervals and ranks of blocks, on errors whose standard deviation is known."""

import numpy as np
import pytest
from scipy import special, stats

from cddnet.metrics.coverage import (
    INTERVALS,
    TISSUES_HU,
    Blocks,
    blocks,
    coverage,
    rank_correlation,
    tissues,
)

SIZE = (331, 277)


@pytest.fixture
def sigma(rng):
    return np.exp(rng.normal(2, 0.5, SIZE))


@pytest.fixture
def error(rng, sigma):
    return rng.normal(0, sigma)


def within(share, half_width, count):
    """Whether a share of so many draws is the normal one, by four binomial standard errors."""
    expected = special.erf(half_width / np.sqrt(2))
    return abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize("half_width", [*INTERVALS.values(), 2.0])
def test_the_right_sigma_covers_as_a_normal_error_does(error, sigma, half_width):
    assert within(coverage(error, sigma, half_width), half_width, error.size)


@pytest.mark.parametrize("scale", [0.95, 1.05])
@pytest.mark.parametrize("half_width", INTERVALS.values())
def test_a_sigma_that_is_five_percent_off_does_not(error, sigma, half_width, scale):
    assert not within(coverage(error, scale * sigma, half_width), half_width, error.size)


def test_the_stated_shares_are_those_of_the_half_widths():
    shares = {name: special.erf(k / np.sqrt(2)) for name, k in INTERVALS.items()}
    assert shares == pytest.approx({"68 %": 0.6827, "95 %": 0.95}, abs=1e-4)


def test_bounds_are_inside_and_zero_covers_no_error():
    one = np.ones((3, 5))
    assert coverage(one, one, 1.0) == 1
    assert coverage(one, np.zeros((3, 5)), 2.0) == 0


@pytest.mark.parametrize("sigma", [np.ones((5, 3)), -np.ones((3, 5))])
def test_what_is_no_prediction_is_refused(sigma):
    with pytest.raises(ValueError, match=r"fit|below zero"):
        coverage(np.ones((3, 5)), sigma, 1.0)


def test_nothing_has_no_coverage():
    with pytest.raises(ValueError, match="fit"):
        coverage(np.empty(0), np.empty(0), 1.0)


def test_blocks_are_root_mean_squares_of_whole_blocks_inside(rng):
    error, sigma = rng.normal(size=(2, 37, 53))
    inside = np.ones((37, 53), bool)
    inside[3, 20] = False
    found = blocks(error, sigma, inside)
    corners = [(r, c) for r in (0, 16) for c in (0, 16, 32) if (r, c) != (0, 16)]
    for values, squares in zip(found, (error, sigma), strict=True):
        expected = [np.sqrt(np.mean(squares[r : r + 16, c : c + 16] ** 2)) for r, c in corners]
        np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_ranks_know_order_alone():
    rising = np.arange(9.0)
    assert rank_correlation(Blocks(rising, np.exp(rising))) == pytest.approx(1)
    assert rank_correlation(Blocks(rising, -rising)) == pytest.approx(-1)


def test_blocks_rank_a_sigma_that_knows_where_and_not_one_that_was_shuffled(rng):
    sigma = np.repeat(np.repeat(np.exp(rng.normal(2, 0.5, (20, 17))), 16, 0), 16, 1)
    error, inside = rng.normal(0, sigma), np.ones(sigma.shape, bool)
    assert rank_correlation(blocks(error, sigma, inside)) > 0.9
    # A rank correlation of unrelated blocks has a standard deviation of 1 / sqrt(n - 1).
    other = blocks(error, np.flip(sigma), inside)
    assert abs(rank_correlation(other)) < 4 / np.sqrt(20 * 17 - 1)
    assert rank_correlation(other) == pytest.approx(stats.spearmanr(*other).statistic)


@pytest.mark.parametrize("found", [Blocks(np.ones(2), np.ones(2)), Blocks(np.ones(9), np.ones(9))])
def test_ranks_need_blocks_that_differ(found):
    with pytest.raises(ValueError, match=r"3 or more|same"):
        rank_correlation(found)


def test_tissues_are_where_they_were_put_and_air_is_outside_the_body():
    rows, columns = np.indices((161, 157))
    radius = np.hypot(rows - 80, columns - 78)
    hu = np.full(radius.shape, -1000.0, np.float32)
    rings = {"fat": (60, -100), "soft tissue": (48, 50), "bone": (36, 700), "lung": (24, -850)}
    for outer, value in rings.values():
        hu[radius < outer] = value
    found = tissues(hu)
    assert found.keys() == TISSUES_HU.keys()
    for name, (outer, _) in rings.items():
        inner = max([0, *(other for other, _ in rings.values() if other < outer)])
        # Smoothing moves an edge by some pixels, on both sides.
        middle = (radius < outer - 5) & (radius > inner + 5)
        assert found[name][middle].all(), name
        assert not found[name][(radius > outer + 1) | (radius < inner - 1)].any(), name
    assert found["air"][(radius > 66) & (radius < 74)].all()
    assert not found["air"][radius > 79].any()
    assert not found["air"][radius < 60].any()
