"""Task transfer of rods against Gaussian blur in closed form and against our own kernels."""

import math

import numpy as np
import pytest
from scipy import ndimage, stats

from cddnet.metrics.resolution import Rod, centred, f50_error_per_mm, task_transfer
from cddnet.physics import phantom
from cddnet.physics.kernel import SHARP_KERNEL, SOFT_KERNEL, seen_through

PIXEL_MM = 0.49
SHAPE = (121, 133)
ROD = Rod(59.37, 66.81, 12.5)


def blurred_rod(sigma_mm, rod=ROD, contrast_hu=120.0, background_hu=40.0):
    """A disc under a Gaussian, exact: the distance of a normal point from an offset centre."""
    rows, columns = np.indices(SHAPE)
    radius_mm = PIXEL_MM * np.hypot(rows - rod.row, columns - rod.column)
    inside = stats.ncx2.cdf((rod.radius_mm / sigma_mm) ** 2, 2, (radius_mm / sigma_mm) ** 2)
    return background_hu + contrast_hu * inside


def gaussian_f50(sigma_mm):
    return math.sqrt(math.log(2) / 2) / (math.pi * sigma_mm)


@pytest.mark.parametrize("sigma_mm", [0.4, 0.6, 1.0, 1.5])
@pytest.mark.parametrize("rod", [ROD, Rod(60, 66, 10.0), Rod(58.5, 67.25, 13.3)])
def test_a_gaussian_has_its_transfer(sigma_mm, rod):
    found = task_transfer(blurred_rod(sigma_mm, rod), PIXEL_MM, rod)
    expected = np.exp(-2 * (np.pi * sigma_mm * found.frequency_per_mm) ** 2)
    # Few radii differ around a centre on the grid, and bins are filled less evenly.
    assert np.abs(found.transfer - expected).max() < 0.0022
    assert found.f50_per_mm == pytest.approx(gaussian_f50(sigma_mm), rel=0.01)
    tenth = math.sqrt(math.log(10) / 2) / (math.pi * sigma_mm)
    assert found.f10_per_mm == pytest.approx(tenth, rel=0.01) or tenth > 0.5 / PIXEL_MM
    # At 0.6 and 1.4 radii the blurred rim still counts that much, and less elsewhere.
    left = 2 * stats.norm.sf(0.4 * rod.radius_mm / sigma_mm)
    assert 120 * (1 - left) - 1e-6 < found.contrast_hu < 120 + 1e-6


def test_neither_the_sign_nor_the_level_matters():
    bright = task_transfer(blurred_rod(0.6), PIXEL_MM, ROD)
    dark = task_transfer(blurred_rod(0.6, contrast_hu=-35.0), PIXEL_MM, ROD)
    assert dark.transfer == pytest.approx(bright.transfer, abs=1e-9)
    assert dark.contrast_hu == pytest.approx(-35, rel=1e-3)


def test_a_wider_blur_transfers_less():
    sharp, soft = (task_transfer(blurred_rod(s), PIXEL_MM, ROD) for s in (0.6, 1.2))
    assert soft.f50_per_mm == pytest.approx(sharp.f50_per_mm / 2, rel=0.01)


def test_noise_of_known_size_moves_f50_little_and_not_to_one_side(rng):
    clean, slices, repeats = blurred_rod(0.6), 4, 12
    ratios = []
    for _ in range(repeats):
        noisy = clean + rng.normal(0, 120 / 30, (slices, *SHAPE))
        found = task_transfer(noisy, PIXEL_MM, ROD)
        ratios.append(found.f50_per_mm / gaussian_f50(0.6))
        # Standard deviation over the pixels of the ring, of four slices.
        ring = np.pi * (1.8**2 - 1.4**2) * (12.5 / PIXEL_MM) ** 2
        assert found.noise_hu == pytest.approx(4.0, rel=4 / math.sqrt(2 * slices * ring))
        assert found.cnr == pytest.approx(30, rel=0.05)
        assert found.total_cnr == pytest.approx(60, rel=0.05)
    assert abs(np.mean(ratios) - 1) < 4 * np.std(ratios, ddof=1) / math.sqrt(repeats) + 0.002
    assert np.std(ratios, ddof=1) < 0.015


def test_the_error_of_f50_is_the_spread_of_repeats(rng):
    clean, repeats = blurred_rod(0.6), 24
    f50, errors = [], []
    for _ in range(repeats):
        # Correlated, as noise of a soft kernel is.
        noise = ndimage.gaussian_filter(rng.normal(0, 30, (8, *SHAPE)), (0, 0.8, 0.8))
        f50.append(task_transfer(clean + noise, PIXEL_MM, ROD).f50_per_mm)
        errors.append(f50_error_per_mm(clean + noise, PIXEL_MM, ROD))
    spread = np.std(f50, ddof=1)
    # A standard deviation of 24 values is known to 15 %, and errors of 8 slices to 27 % each.
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=4 * 0.15)
    many = np.repeat(clean[None], 19, axis=0)
    assert f50_error_per_mm(many, PIXEL_MM, ROD) == pytest.approx(0, abs=1e-9)
    assert f50_error_per_mm(many[:3], PIXEL_MM, ROD) is None


def test_slices_are_averaged_until_the_noise_is_low_enough(rng):
    noisy = blurred_rod(0.6) + rng.normal(0, 20, (9, *SHAPE))
    one, four, nine = (task_transfer(noisy[:count], PIXEL_MM, ROD) for count in (1, 4, 9))
    assert [found.is_sufficient for found in (one, four, nine)] == [False, False, True]
    assert nine.cnr == pytest.approx(6, rel=0.05)
    assert nine.total_cnr == pytest.approx(18, rel=0.05)
    expected = np.exp(-2 * (np.pi * 0.6 * one.frequency_per_mm) ** 2)
    wrong_by = [np.abs(found.transfer - expected).mean() for found in (one, nine)]
    assert wrong_by[1] < wrong_by[0] / 1.5
    assert task_transfer(noisy[0], PIXEL_MM, ROD).transfer == pytest.approx(one.transfer)


@pytest.mark.parametrize("kernel", [SOFT_KERNEL, SHARP_KERNEL])
@pytest.mark.parametrize(("size", "pixel_mm"), [(257, 0.8), (401, 0.49)])
def test_our_kernels_are_found_on_our_phantom(kernel, size, pixel_mm):
    rods = phantom.rods()
    sharp = phantom.render(rods, size, pixel_mm)
    shown = seen_through(sharp, pixel_mm, kernel)
    angles = np.linspace(0, np.pi / 2, 91)[:, None]
    for rod in rods.ellipses[1:]:
        column, row = (place / pixel_mm + (size - 1) / 2 for place in rod.centre_mm)
        found = task_transfer(shown, pixel_mm, Rod(row, column, 12.5))
        frequency = found.frequency_per_mm
        aperture = np.sinc(frequency * pixel_mm * np.cos(angles)) * np.sinc(
            frequency * pixel_mm * np.sin(angles)
        )
        expected = kernel.response(frequency) * aperture.mean(axis=0)
        assert np.abs(found.transfer - expected).max() < 0.008
        assert found.contrast_hu == pytest.approx(rod.hu, rel=0.01)
        before = task_transfer(sharp, pixel_mm, Rod(row, column, 12.5))
        assert np.abs(before.transfer - expected).max() > 0.1


@pytest.mark.parametrize("off", [(0, 0), (2.5, -1.7), (-3.1, 4.0)])
def test_the_centre_is_found_to_a_fraction_of_a_pixel(off, rng):
    guess = Rod(ROD.row + off[0], ROD.column + off[1], ROD.radius_mm)
    found = centred(blurred_rod(0.8, contrast_hu=-60.0), PIXEL_MM, guess)
    assert found == pytest.approx(ROD, abs=0.005)
    # Noise of a tenth of the contrast: a centre of mass over the pixels within 1.4 radii.
    noisy = blurred_rod(0.8, contrast_hu=-60.0) + rng.normal(0, 6, SHAPE)
    radius = ROD.radius_mm / PIXEL_MM
    error = 0.1 * math.sqrt(math.pi * (1.4 * radius) ** 4 / 4) / (math.pi * radius**2)
    assert centred(noisy, PIXEL_MM, guess) == pytest.approx(ROD, abs=4 * error)


def test_a_wrong_centre_blurs():
    shown = blurred_rod(0.6)
    right = task_transfer(shown, PIXEL_MM, ROD)
    wrong = task_transfer(shown, PIXEL_MM, Rod(ROD.row + 2, ROD.column, ROD.radius_mm))
    assert wrong.f50_per_mm < 0.9 * right.f50_per_mm


def test_what_never_falls_has_no_f50():
    found = task_transfer(blurred_rod(0.1), PIXEL_MM, ROD)
    assert found.f50_per_mm is None
    assert found.f10_per_mm is None


@pytest.mark.parametrize(
    ("rod", "message"),
    [
        (Rod(60, 66, 2.0), "fewer than 5 pixels"),
        (Rod(30, 66, 12.5), "leaves the image"),
        (Rod(60, 100, 12.5), "leaves the image"),
    ],
)
def test_rods_that_cannot_be_measured_are_refused(rod, message):
    for measure in (task_transfer, centred):
        with pytest.raises(ValueError, match=message):
            measure(blurred_rod(0.6), PIXEL_MM, rod)


def test_no_contrast_is_refused():
    for measure in (task_transfer, centred):
        with pytest.raises(ValueError, match="as bright as its background"):
            measure(np.full(SHAPE, 40.0), PIXEL_MM, ROD)


def test_contrast_and_noise_are_those_of_the_whole_ring(rng):
    stack = blurred_rod(0.6) + rng.normal(0, 25, (3, *SHAPE))
    for rod in (ROD, Rod(47.0, 66.0, 12.5), Rod(59.0, 85.99, 12.5)):
        found = task_transfer(stack, PIXEL_MM, rod)
        rows, columns = np.indices(SHAPE)
        radius = PIXEL_MM * np.hypot(rows - rod.row, columns - rod.column) / rod.radius_mm
        ring, inside = (radius > 1.4) & (radius < 1.8), radius < 0.6
        mean = stack.mean(axis=0)
        assert found.contrast_hu == pytest.approx(mean[inside].mean() - mean[ring].mean())
        variance = [image[ring].var(ddof=1) for image in stack]
        assert found.noise_hu == pytest.approx(math.sqrt(np.mean(variance)))


def test_a_total_cnr_of_15_is_enough():
    found = task_transfer(blurred_rod(0.6), PIXEL_MM, ROD)
    exact = found._replace(contrast_hu=-150.0, noise_hu=20.0, slices=4)
    assert exact.is_sufficient
    assert not exact._replace(noise_hu=20.01).is_sufficient
