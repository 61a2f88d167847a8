"""Inserted lesions: their volume, their place, their blur."""

import numpy as np
import pytest

from cddnet.physics.kernel import SHARP_KERNEL, SOFT_KERNEL, Kernel
from cddnet.physics.lesion import Lesion, lesion_image

# Passes everything a slice can hold, so that the shape itself is seen.
OPEN = Kernel(cutoff_per_mm=1e6, aperture_mm=0.0)
SHAPE, PIXEL_MM = (81, 97), 0.73


@pytest.mark.parametrize("kernel", [OPEN, SOFT_KERNEL, SHARP_KERNEL])
@pytest.mark.parametrize("shape", ["disc", "gaussian"])
@pytest.mark.parametrize(("diameter_mm", "contrast_hu"), [(3.0, 30.0), (5.0, -12.0), (10.0, 3.0)])
def test_blur_and_pixels_keep_the_content(kernel, shape, diameter_mm, contrast_hu):
    lesion = Lesion(diameter_mm=diameter_mm, contrast_hu=contrast_hu, shape=shape)
    image = lesion_image(SHAPE, np.array([[40, 48]]), lesion, pixel_mm=PIXEL_MM, kernel=kernel)
    area = np.pi * diameter_mm**2 / (4 if shape == "disc" else 4 * np.log(2))
    # Points on a grid: a circle of 33 steps holds its area to 33^(2/3) points in 3400.
    assert image.sum(dtype=np.float64) * PIXEL_MM**2 == pytest.approx(contrast_hu * area, rel=0.01)


def test_a_disc_is_flat_inside_and_ends_at_its_radius():
    lesion = Lesion(diameter_mm=10.0, contrast_hu=12.0)
    image = lesion_image(SHAPE, np.array([[40, 48]]), lesion, pixel_mm=PIXEL_MM, kernel=OPEN)
    rows, columns = np.indices(SHAPE)
    radius_mm = np.hypot(rows - 40, columns - 48) * PIXEL_MM
    rim = PIXEL_MM * np.sqrt(0.5)
    np.testing.assert_allclose(image[radius_mm < 5 - rim], 12.0, atol=1e-4)
    np.testing.assert_allclose(image[radius_mm > 5 + rim], 0.0, atol=1e-4)
    edge = image[np.abs(radius_mm - 5) < 0.2]
    assert np.all((edge > 0.5) & (edge < 11.5))


def test_a_gaussian_has_half_its_height_at_half_its_width():
    lesion = Lesion(diameter_mm=10.0, contrast_hu=20.0, shape="gaussian")
    image = lesion_image((201, 201), np.array([[100, 100]]), lesion, pixel_mm=0.25, kernel=OPEN)
    assert image[100, 100] == pytest.approx(20.0, rel=1e-3)
    assert image[100, 120] == pytest.approx(10.0, rel=1e-3)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5])
def test_the_centre_of_mass_is_the_centre_asked_for(fraction):
    centre = np.array([[40 + fraction, 48 - fraction]])
    lesion = Lesion(diameter_mm=7.0, contrast_hu=30.0)
    image = lesion_image(SHAPE, centre, lesion, pixel_mm=PIXEL_MM, kernel=OPEN).astype(float)
    for axis, wanted in enumerate(centre[0]):
        found = np.average(np.arange(SHAPE[axis]), weights=image.sum(axis=1 - axis))
        # One point in sixteen, twice.
        assert found == pytest.approx(wanted, abs=1 / 8)


def test_the_kernel_s_response_is_in_the_spectrum():
    lesion = Lesion(diameter_mm=6.0, contrast_hu=30.0)
    centre = np.array([[64, 64]])
    sharp, soft = (
        np.fft.fft2(lesion_image((129, 129), centre, lesion, pixel_mm=PIXEL_MM, kernel=kernel))
        for kernel in (OPEN, SOFT_KERNEL)
    )
    axis = np.fft.fftfreq(129, PIXEL_MM)
    frequency = np.hypot(axis[:, None], axis)
    low = (frequency < 0.35) & (np.abs(sharp) > 0.05 * np.abs(sharp[0, 0]))
    ratio = (soft[low] / sharp[low]).real
    # The kernel is applied on a padded slice; its tails are cut, to a percent of the top.
    np.testing.assert_allclose(ratio, SOFT_KERNEL.response(frequency[low]), atol=0.01)


def test_several_lesions_add_up_and_none_add_nothing():
    centres = np.array([[20, 20], [20, 60], [60, 44]])
    lesion = Lesion(diameter_mm=5.0, contrast_hu=30.0)
    together = lesion_image(SHAPE, centres, lesion, pixel_mm=PIXEL_MM)
    one_by_one = sum(lesion_image(SHAPE, c[None], lesion, pixel_mm=PIXEL_MM) for c in centres)
    np.testing.assert_allclose(together, one_by_one, atol=1e-4)
    assert not lesion_image(SHAPE, np.empty((0, 2)), lesion, pixel_mm=PIXEL_MM).any()


@pytest.mark.parametrize("values", [(2.9, 10), (15.1, 10), (5, 2.9), (5, -31), (float("nan"), 10)])
def test_lesions_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match="expected"):
        Lesion(diameter_mm=values[0], contrast_hu=values[1])


@pytest.mark.parametrize("centre", [(1, 40), (40, 1), (79, 40), (40, 95)])
def test_a_lesion_over_the_edge_is_refused(centre):
    lesion = Lesion(diameter_mm=5.0, contrast_hu=30.0)
    with pytest.raises(ValueError, match="leaves the slice"):
        lesion_image(SHAPE, np.array([centre]), lesion, pixel_mm=PIXEL_MM)


@pytest.mark.parametrize("shape", ["disc", "gaussian"])
def test_a_lesion_on_a_pixel_is_symmetric(shape):
    lesion = Lesion(diameter_mm=6.3, contrast_hu=30.0, shape=shape)
    image = lesion_image((61, 61), np.array([[30, 30]]), lesion, pixel_mm=PIXEL_MM, kernel=OPEN)
    for mirrored in (image[::-1], image[:, ::-1], image.T):
        np.testing.assert_allclose(image, mirrored, atol=1e-4)


def test_a_lesion_may_come_as_near_the_edge_as_it_reaches():
    """A disc to its radius, a Gaussian to 2.05 widths, and a pixel more; farther in is allowed."""
    for shape, reach_mm in (("disc", 5.0), ("gaussian", 20.5)):
        lesion = Lesion(diameter_mm=10.0, contrast_hu=30.0, shape=shape)
        near = reach_mm / 0.5 + 1
        for centre in ([near, 50.0], [50.0, near], [100 - near, 50.0], [50.0, 100 - near]):
            assert lesion_image((101, 101), np.array([centre]), lesion, pixel_mm=0.5).any()
            out = np.array([centre]) + 0.05 * np.sign(np.array([centre]) - 50.0)
            with pytest.raises(ValueError, match="leaves the slice"):
                lesion_image((101, 101), out, lesion, pixel_mm=0.5)


def test_a_lesion_says_what_it_is():
    assert Lesion(diameter_mm=5, contrast_hu=-12.5).described == "5 mm, -12.5 HU disc"
    gaussian = Lesion(diameter_mm=7.5, contrast_hu=20, shape="gaussian")
    assert gaussian.described == "7.5 mm, +20 HU gaussian"
