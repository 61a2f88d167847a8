"""Noise power against Parseval, white noise, plane waves and plain loops."""

import math

import numpy as np
import pytest

from cddnet.metrics.noise import (
    RadialPower,
    detrended_std,
    flat_corners,
    flat_regions,
    mean_frequency_per_mm,
    noise_power_spectrum,
    radial_power,
)

PIXEL_MM = 0.7


@pytest.mark.parametrize("shape", [(16, 16), (17, 17), (15, 22)])
def test_the_integral_of_the_power_is_the_variance(shape, rng):
    regions = rng.normal(0, 12, (3, *shape))
    spectrum = noise_power_spectrum(regions, PIXEL_MM)
    area = 1 / (shape[0] * shape[1] * PIXEL_MM**2)
    variance = np.square(regions).mean(axis=(1, 2))
    assert spectrum.sum(axis=(1, 2)) * area == pytest.approx(variance, rel=1e-12)


def test_white_noise_has_its_variance_at_every_frequency(rng):
    side, count, std = 17, 4000, 14.0
    noise = rng.normal(0, std, (count, side, side))
    spectrum = noise_power_spectrum(noise, PIXEL_MM)
    expected = std**2 * PIXEL_MM**2
    # The power of one frequency of one region has its own mean as standard deviation, and that
    # times the root of two where it is real, at zero; 289 frequencies need a wider bound than 4.
    assert np.abs(spectrum.mean(axis=0) / expected - 1).max() < 6 * math.sqrt(2 / count)
    radial = radial_power(spectrum.mean(axis=0), PIXEL_MM)
    assert np.abs(radial.power[1:] / expected - 1).max() < 6 / math.sqrt(2 * count)


@pytest.mark.parametrize("side", [16, 17])
def test_rings_are_those_of_a_plain_loop(side, rng):
    spectrum = rng.random((side, side))
    radial = radial_power(spectrum, PIXEL_MM)
    cycles = [k if k < (side + 1) // 2 else k - side for k in range(side)]
    for ring, power in enumerate(radial.power):
        members = [
            spectrum[row, column]
            for row in range(side)
            for column in range(side)
            if abs(math.hypot(cycles[row], cycles[column]) - ring) < 0.5
        ]
        assert power == pytest.approx(np.mean(members), rel=1e-12)
    assert radial.frequency_per_mm == pytest.approx(np.arange(side // 2 + 1) / (side * PIXEL_MM))
    assert radial.frequency_per_mm[-1] <= 0.5 / PIXEL_MM


@pytest.mark.parametrize("cycles", [1, 4, 7])
def test_a_plane_wave_has_its_own_mean_frequency(cycles):
    side = 16
    wave = np.sin(2 * np.pi * cycles * np.arange(side) / side)[:, None] * np.ones(side)
    radial = radial_power(noise_power_spectrum(wave, PIXEL_MM), PIXEL_MM)
    expected = cycles / (side * PIXEL_MM)
    assert mean_frequency_per_mm(radial) == pytest.approx(expected, rel=1e-12)


def test_the_mean_frequency_leaves_out_zero_and_takes_many_spectra():
    radial = RadialPower(np.array([0.0, 0.1, 0.2]), np.array([[9.0, 1, 1], [5.0, 3, 1]]))
    assert mean_frequency_per_mm(radial) == pytest.approx([0.15, 0.125])


def test_a_spectrum_that_is_not_square_has_no_rings():
    with pytest.raises(ValueError, match="not square"):
        radial_power(np.ones((4, 5)), PIXEL_MM)


@pytest.mark.parametrize(("side", "step"), [(15, None), (16, 4), (9, 5)])
def test_flat_corners_are_those_of_a_plain_search(side, step, rng):
    hu = np.full((61, 75), -850.0)
    hu[5:50, 8:70] = 60
    hu[20:24, 30:34] = 900
    corners = flat_corners(hu, side, step=step)
    step = step or side // 2
    found = {tuple(corner) for corner in corners.tolist()}
    assert found
    for row in range(0, 61 - side + 1, step):
        for column in range(0, 75 - side + 1, step):
            region = hu[row : row + side, column : column + side]
            if (row, column) in found:
                assert (region == 60).all()
            # Smoothing of two pixels moves an edge by a few.
            elif (hu[max(row - 6, 0) : row + side + 6, max(column - 6, 0) :] == 60)[
                :, : side + 12
            ].all():
                pytest.fail(f"region at {row}, {column} was missed")


def test_an_image_smaller_than_a_region_has_none():
    assert flat_corners(np.full((9, 40), 60.0), 15).shape == (0, 2)


def test_regions_lose_quadratic_trends_and_nothing_else(rng):
    rows, columns = np.indices((40, 50)) / 10
    noise = rng.normal(0, 5, (40, 50))
    corners = np.array([[0, 0], [7, 20], [23, 33]])
    trend = 60 + 3 * rows - 4 * columns + rows**2 - 0.5 * rows * columns
    plain = flat_regions(noise, corners, 17)
    assert flat_regions(noise + trend, corners, 17) == pytest.approx(plain, abs=1e-9)
    assert np.abs(flat_regions(trend, corners, 17)).max() < 1e-9
    assert plain.shape == (3, 17, 17)
    # Unbiased in the variance, 4 standard errors of one region.
    assert np.abs(detrended_std(plain) / 5 - 1).max() < 4 / math.sqrt(2 * (17**2 - 6))


def test_stacks_of_stacks_of_spectra_have_the_rings_of_each(rng):
    spectra = rng.random((2, 3, 8, 8))
    radial = radial_power(spectra, PIXEL_MM)
    assert radial.power.shape == (2, 3, 5)
    assert radial.power[1, 2] == pytest.approx(radial_power(spectra[1, 2], PIXEL_MM).power)


def test_tissue_is_chosen_after_a_blur_of_two_pixels():
    """A bright pixel of height A raises its place by A / (2 pi sigma^2)."""
    for smoothed_hu, flat in ((195.0, True), (205.0, False)):
        hu = np.full((41, 41), 60.0)
        hu[20, 20] += (smoothed_hu - 60) * 2 * math.pi * 2.0**2
        assert (len(flat_corners(hu, 15, step=13)) == 9) == flat


@pytest.mark.parametrize(
    ("hu", "flat"), [(-0.5, False), (0.5, True), (199.5, True), (200.5, False)]
)
def test_soft_tissue_lies_between_water_and_200_hu(hu, flat):
    assert bool(len(flat_corners(np.full((20, 20), hu), 15))) == flat
