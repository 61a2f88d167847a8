"""What slices show by themselves: values counted by hand, noise of known level and colour."""

import numpy as np
import pytest
from scipy import ndimage

from cddnet.intensity.background import background
from cddnet.intensity.plausible import USUAL_OFFSETS, value_signs
from cddnet.metrics.noise import detrended_std, flat_regions, noise_power_spectrum, radial_power
from cddnet.metrics.plausibility import (
    fitting_offsets,
    measured_values,
    metal_mm2,
    noise_texture,
    not_hu_of_a_body,
    value_levels,
)
from trunk import trunk

PIXEL_MM = 0.7


def test_every_second_value_is_taken_in_both_directions():
    hu = np.arange(7 * 9.0).reshape(1, 7, 9)
    empty = np.zeros(hu.shape, bool)
    empty[0, 2, 4] = True
    expected = [9.0 * r + c for r in range(0, 7, 2) for c in range(0, 9, 2) if (r, c) != (2, 4)]
    assert measured_values(hu, empty).tolist() == expected


@pytest.mark.parametrize(
    ("lowest_hu", "count", "kept"),
    [(-1024.0, 4, False), (-1024.0, 3, True), (-1020.0, 4, True), (-1021.0, 400, False)],
)
def test_a_constant_in_a_hundredth_of_the_values_is_padding(lowest_hu, count, kept):
    hu = np.full((1, 40, 40), 30.0)
    rows, columns = np.divmod(np.arange(400), 20)
    hu[0, 2 * rows[:count], 2 * columns[:count]] = lowest_hu
    found = measured_values(hu, np.zeros(hu.shape, bool))
    assert (lowest_hu in found) == kept
    assert found.size == (400 if kept else 400 - count)


def test_values_are_counted_on_either_side_of_every_limit():
    values = np.array([-1000, -501, -499, -201, -199, -1, 1, 199, 201, 699, 701.0])
    signs = value_signs(values)
    assert signs.airy == pytest.approx(2 / 11)
    assert signs.negative == pytest.approx(6 / 11)
    assert signs.tissue == pytest.approx(4 / 11)
    assert signs.tissue_of_dense == pytest.approx(4 / 9)
    assert signs.between == pytest.approx(2 / 9)
    assert signs.dense == pytest.approx(1 / 9)
    assert value_signs(np.array([])) == (0,) * 6


def test_levels_are_counted_and_no_values_have_none():
    # Four gaps, of which two are above one HU.
    levels = value_levels(np.array([0.0, 1, 2, 4, 4, 7]))
    assert levels == (5, 0.5, pytest.approx(1 / 6))
    assert value_levels(np.array([3.0])) == (1, 0.0, 1.0)
    with pytest.raises(ValueError, match="no values"):
        value_levels(np.array([]))


def test_metal_is_an_area():
    hu = np.array([[2999.0, 3001.0], [4000.0, 0.0]])
    assert metal_mm2(hu, 0.25) == 0.5


def quiet_and_loud(rng):
    """Water with noise of 8 HU on the left and 30 on the right, no region on the seam."""
    hu = np.full((160, 320), -1000.0)
    hu[:, :150] = 40 + 8 * rng.standard_normal((160, 150))
    hu[:, 170:] = 40 + 30 * rng.standard_normal((160, 150))
    return hu


def test_the_quietest_quarter_counts(rng):
    hu = quiet_and_loud(rng)
    found = noise_texture([hu], PIXEL_MM)
    assert found.level_hu < 8
    louder = noise_texture([40 + 2 * (hu - 40)], PIXEL_MM)
    assert louder.level_hu == pytest.approx(2 * found.level_hu, rel=0.05)


def test_texture_is_that_of_the_regions_worked_out_one_by_one(rng):
    """Regions every eight pixels of water, two pixels inside; a quarter of them."""
    hu = 40 + 10 * rng.standard_normal((100, 84))
    corners = [(r + 2, c + 2) for r in range(0, 81, 8) for c in range(0, 65, 8)]
    regions = flat_regions(hu, np.array(corners), 16)
    order = np.argsort(detrended_std(regions), kind="stable")
    quiet = regions[order[: len(corners) // 4]]
    found = noise_texture([hu], PIXEL_MM)
    assert found.regions == len(corners) // 4 == 24
    assert found.level_hu == pytest.approx(np.sqrt(np.mean(detrended_std(quiet) ** 2)))
    radial = radial_power(noise_power_spectrum(quiet, PIXEL_MM).mean(axis=0), PIXEL_MM)
    power, frequency = radial.power, radial.frequency_per_mm
    mean_per_mm = np.average(frequency[1:], weights=power[1:])
    assert found.mean_frequency_per_mm == pytest.approx(mean_per_mm)
    # Of the rings 0 to 8: above 0.6 of Nyquist 5 to 8, from 0.15 to 0.45 2 and 3.
    assert found.high_share == pytest.approx(power[5:].mean() / power[2:4].mean())


def test_many_regions_are_thinned_and_few_are_none(rng):
    hu = 40 + 10 * rng.standard_normal((320, 320))
    # 38 x 38 places, every tenth of which makes 145.
    assert noise_texture([hu], PIXEL_MM).regions == 145 // 4
    assert noise_texture([hu, hu], PIXEL_MM).regions == 290 // 4
    assert noise_texture([hu[:28, :28]], PIXEL_MM).regions == 4
    assert noise_texture([hu[:28, :20]], PIXEL_MM) is None
    assert noise_texture([hu[:15]], PIXEL_MM) is None


def test_no_noise_has_no_level():
    found = noise_texture([np.full((64, 64), 40.0)], PIXEL_MM)
    assert found.level_hu == pytest.approx(0, abs=1e-9)


def nowhere(stack):
    return np.zeros(np.shape(stack), bool)


def reason_of(stack):
    return not_hu_of_a_body(stack, nowhere(stack))


@pytest.mark.parametrize("size", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("noise_hu", [12.0, 60.0])
def test_a_small_body_in_a_large_field_is_a_body(size, noise_hu):
    wide = trunk((2, 400, 420), size=size, noise_hu=noise_hu)
    assert np.mean(np.abs(wide) < 200) < 0.03 or size > 0.2
    assert reason_of(wide) == ""
    assert reason_of(np.maximum(wide, -1024)) == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda hu: hu + 1024,
        lambda hu: hu + 1000,
        lambda hu: hu - 1000,
        lambda hu: hu + 32768,
        lambda hu: (hu + 1024) / 4096,
        # Bright fat, grey muscle, dark lung and bone, as MR shows them, and noise that has no sign.
        lambda hu: np.interp(hu, (-1000, -850, -100, 50, 500), (15, 60, 900, 350, 90)),
        lambda hu: np.interp(hu, (-1000, -850, -100, 50, 500), (15, 60, 900, 350, 90)) - 1024,
    ],
)
def test_a_small_body_that_is_no_hu_is_none(change):
    assert reason_of(change(trunk((2, 400, 420), size=0.2)))


@pytest.mark.parametrize("bone_hu", [400, 1000, 1500])
def test_a_field_of_view_inside_the_head_is_hu(bone_hu, rng):
    """Brain about 25 HU, no air, and a part of the skull in a corner."""
    y, x = np.mgrid[:128, :128]
    head = np.where(y + x < 40, bone_hu, 25) + 12 * rng.standard_normal((2, 128, 128))
    assert reason_of(head) == ""


@pytest.mark.parametrize("noise_hu", [0.0, 10.0, 60.0])
@pytest.mark.parametrize("lowest", [-1024, -3000])
def test_air_alone_is_no_body(noise_hu, lowest, rng):
    air = np.maximum(-1000 + noise_hu * rng.standard_normal((2, 256, 256)), lowest)
    assert reason_of(air)
    # Nor is the table: two shells and foam.
    air[:, 200:203, 30:226] = air[:, 217:220, 30:226] = -150
    air[:, 203:217, 30:226] += 80
    assert reason_of(air)


@pytest.mark.parametrize(
    "disturb",
    [
        lambda hu, rng: hu + 30 * rng.standard_normal(hu.shape),
        lambda hu, rng: ndimage.gaussian_filter(hu, (0, 1.5, 1.5)),
        lambda hu, rng: np.maximum(hu + 30 * rng.standard_normal(hu.shape), -3024),
        lambda hu, rng: hu + 3 * rng.integers(-2, 3, hu.shape) * (rng.random(hu.shape) < 0.3),
    ],
    ids=["noise", "a filter", "noise that is cut", "loss"],
)
def test_padding_that_was_worked_on_is_still_none(disturb, rng):
    hu = trunk((2, 200, 200))
    y, x = np.mgrid[-1:1:200j, -1:1:200j]
    outside = y**2 + x**2 > 1
    found = disturb(np.where(outside, -3024, hu), rng)
    assert reason_of(found) == ""
    # Nor where a part of it is known.
    known = np.array([background(one) for one in found])
    assert not_hu_of_a_body(np.where(known, -1000, found), known) == ""
    # A decoder that runs away to both sides leaves other values there.
    away = np.where(outside, -3024 - 200 * rng.uniform(0, 99, hu.shape), hu)
    assert "below" in reason_of(away)


@pytest.mark.parametrize("offset", USUAL_OFFSETS)
@pytest.mark.parametrize("size", [1.0, 0.2])
def test_an_offset_is_named(offset, size):
    moved = trunk((2, 300, 310), size=size) + offset
    assert offset in fitting_offsets(moved, nowhere(moved))
    assert fitting_offsets(moved - offset, nowhere(moved)) == ()


def test_air_has_no_offset(rng):
    air = -1000 + 10 * rng.standard_normal((2, 128, 128))
    assert fitting_offsets(air, nowhere(air)) == ()
