"""The reference chain: counting statistics, image noise, bias, and the insertion against it.

Above 300 lines: the links of one chain are checked where they join.
"""

# Shapes: K realisation, H row, W column, V view, J channel.

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import gammaln, j0

from cddnet.errors import GeometryError
from cddnet.metrics.noise import mean_frequency_per_mm, noise_power_spectrum, radial_power
from cddnet.physics.beam import MU_WATER_PER_MM, READINGS, Scanner, SliceGeometry
from cddnet.physics.depth import predicted_noise_hu, radiological_depth
from cddnet.physics.dose import insert_noise
from cddnet.physics.fan_beam import FanBeam
from cddnet.physics.kernel import CHANNEL_MM, SOFT_KERNEL, seen_through
from cddnet.physics.scan import Exposure, expose, measure, reconstruct, scan

GEOMETRY = SliceGeometry(pixel_mm=0.729)
SIZE, DISC_MM = 129, 44.0


def radius_mm(size=SIZE, pixel_mm=GEOMETRY.pixel_mm):
    centred = (np.arange(size) - (size - 1) / 2) * pixel_mm
    return np.hypot(centred[None, :], centred[:, None])


def ellipse(size, pixel_mm, half_axes_mm, hu, finer=8):
    """Uniform ellipse in air, half axes across and down, each pixel its mean."""
    across, down = half_axes_mm
    fine = ((np.arange(size * finer) + 0.5) / finer - size / 2) * pixel_mm
    inside = (fine[None, :] / across) ** 2 + (fine[:, None] / down) ** 2 <= 1
    share = inside.reshape(size, finer, size, finer).mean(axis=(1, 3))
    return (share * (hu + 1000.0) - 1000.0).astype(np.float32)


WATER = ellipse(SIZE, GEOMETRY.pixel_mm, (DISC_MM, DISC_MM), 0.0)


def readings(photons, electronic_std, count):
    """Readings (1, count) of one line integral of 2."""
    beam = FanBeam(size=1, pixel_mm=1.0, views=1, channels=1)
    seen = np.full((1, count), photons, np.float32)
    return Exposure(beam, np.full_like(seen, 2.0), seen, electronic_std)


def noises(exposure, dose_fraction, seeds):
    """Noise alone, (K, N, N)."""
    clean = reconstruct(exposure.integrals, exposure.beam)
    return np.stack(
        [
            reconstruct(
                measure(exposure, dose_fraction, np.random.default_rng(seed)), exposure.beam
            )
            - clean
            for seed in seeds
        ]
    ).astype(np.float64)


def mean_and_error(values):
    """Mean over realisations and its standard error."""
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


# Edges.


def test_edges_are_those_that_the_kernel_shows():
    """The fan chain without noise against the kernel's MTF on the object itself."""
    size, pixel_mm = 201, 0.4
    fine = ellipse(size, pixel_mm, (20.0, 20.0), 120.0) - ellipse(size, pixel_mm, (30.0, 30.0), 0.0)
    hu = ellipse(size, pixel_mm, (30.0, 30.0), 0.0) + np.where(fine > 100, 120.0, 0.0)
    hu = hu.astype(np.float32)
    exposure = expose(hu, SliceGeometry(pixel_mm))
    shown = reconstruct(exposure.integrals, exposure.beam)
    expected = seen_through(hu, pixel_mm, SOFT_KERNEL)
    near_axis = radius_mm(size, pixel_mm) < 25
    # Joseph's rays and the back projection read pixels by linear interpolation, a sinc squared of
    # the pixel at most each: 0.95 at 0.4 per mm.
    assert np.abs(shown - expected)[near_axis].max() <= 0.05 * 120
    assert np.abs(hu - expected)[near_axis].max() > 40


# The readings.


@pytest.mark.parametrize("dose_fraction", [0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(
    ("low_photons", "electronic_std"), [(100, 0.0), (100, 3.0), (400, 10.0), (10_000, 30.0)]
)
def test_line_integrals_have_the_variance_of_their_counts(
    dose_fraction, low_photons, electronic_std, rng
):
    draws = 200_000
    exposure = readings(low_photons / dose_fraction, electronic_std, draws)
    found = measure(exposure, dose_fraction, rng).astype(np.float64)
    expected = 1 / low_photons + electronic_std**2 / low_photons**2
    tolerance = (4 * math.sqrt(2 / draws) + 2 / low_photons) * expected
    assert abs(found.var() - expected) <= tolerance
    # The logarithm is concave: half the relative variance, and its square beyond that.
    standard_error = math.sqrt(expected / draws)
    assert abs(found.mean() - 2 - expected / 2) <= 4 * standard_error + expected**2
    assert expected / 2 > 4 * standard_error or low_photons > 1000


def logarithm_bias(photons):
    """Mean error of the logarithm of Poisson counts, zero read as one, by direct sum."""
    counts = np.arange(1000)
    log_chance = np.multiply.outer(np.log(photons), counts) - gammaln(counts + 1)
    chance = np.exp(log_chance - np.asarray(photons)[..., None])
    return np.log(photons) - chance @ np.log(np.maximum(counts, 1))


@pytest.mark.parametrize("low_photons", [0.5, 2.0, 6.0, 20.0])
def test_bias_of_starved_readings_is_that_of_the_logarithm(low_photons, rng):
    draws = 200_000
    found = measure(readings(4 * low_photons, 0.0, draws), 0.25, rng).astype(np.float64) - 2
    expected = float(logarithm_bias(low_photons))
    error = found.std() / math.sqrt(draws)
    assert abs(found.mean() - expected) <= 4 * error
    assert abs(expected) > 10 * error


def test_photons_follow_the_law_of_attenuation():
    radius, scanner = 150.0, Scanner(bowtie_floor=0.0)
    geometry = SliceGeometry(pixel_mm=2.5, thickness_mm=1.5)
    exposure = expose(ellipse(SIZE, 2.5, (radius, radius), 0.0), geometry, scanner)
    distance = exposure.beam.distances_mm
    inside, outside = np.abs(distance) < 0.8 * radius, np.abs(distance) > radius + 5
    water_mm = 2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    sent = scanner.photons / READINGS / 2 * 0.1 ** ((distance / 250) ** 2)
    found = exposure.photons / (sent * np.exp(-MU_WATER_PER_MM * water_mm))
    # The pitch at the axis is that of the calibration to 1e-4.
    assert np.abs(found[:, outside] - 1).max() <= 1e-4
    # A rim is met by steps of a pixel and a half at most, at both ends.
    assert np.abs(np.log(found[:, inside])).max() <= MU_WATER_PER_MM * 2.5 * math.sqrt(2) / 2
    assert abs(np.log(found[:, inside]).mean()) <= 1e-3 * MU_WATER_PER_MM * 2 * radius
    assert exposure.electronic_std == pytest.approx(scanner.electronic_std, rel=1e-4)


# The image.


@pytest.fixture(scope="module")
def water():
    return expose(WATER, GEOMETRY)


@pytest.fixture(scope="module")
def water_noise(water):
    return noises(water, 0.25, range(40))


def test_water_keeps_its_mean(water, water_noise):
    inside = radius_mm() < 0.8 * DISC_MM
    clean = reconstruct(water.integrals, water.beam)
    assert abs(clean[inside].mean()) < 0.5
    assert np.abs(clean[inside]).max() < 5
    assert abs(clean[radius_mm() > 1.1 * DISC_MM].mean() + 1000) < 0.5
    # The logarithm is concave: half the relative variance of some 30,000 photons.
    low = water.photons * np.float32(0.25)
    shifted = reconstruct(water.integrals + 0.5 / low, water.beam)
    expected = (shifted - clean)[inside].mean()
    bias, error = mean_and_error(water_noise[:, inside].mean(axis=1))
    assert abs(bias - expected) <= 4 * error
    assert 0 < 4 * error < 0.5


def noise_over_parallel(distance_mm):
    """Noise level of the fan chain over that of the parallel route, from closed forms.

    Photons of a line are equal. Interpolation between channels keeps 2/3 + 1/3 cos of the noise
    power where the aperture, its base band alone, keeps sinc^4; the fan's filter narrows towards
    the source, (R / L)^4 cos^2 of a view's weight, and the channels' lines are R cos apart.
    """
    frequency = (np.arange(4000) + 0.5) / 4000 / 2 / CHANNEL_MM
    phase = frequency * CHANNEL_MM
    ramp = np.square(frequency * SOFT_KERNEL.response(frequency))
    mixed = 2 / 3 + np.cos(2 * np.pi * phase) / 3
    interpolation = (ramp * mixed / np.sinc(phase) ** 4).sum() / ramp.sum()
    view = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    across, along = distance_mm * np.sin(view), 595 + distance_mm * np.cos(view)
    squared = across**2 + along**2
    fan = np.mean(595**4 / squared**2 * along**2 / squared)
    return math.sqrt(interpolation * fan)


@pytest.mark.parametrize("distance_mm", [8.0, 30.0])
def test_image_noise_is_that_predicted_from_the_depth(distance_mm, water_noise):
    depth = radiological_depth(WATER, GEOMETRY, dose_fraction=0.25)
    predicted = predicted_noise_hu(depth, GEOMETRY, dose_fraction=0.25)
    ring = np.abs(radius_mm() - distance_mm) < 7
    expected = np.mean(np.square(predicted[ring])) * noise_over_parallel(distance_mm) ** 2
    variance, error = mean_and_error(np.square(water_noise[:, ring]).mean(axis=1))
    # The depth's grid blurs the rim: a pixel of chord is exp(mu pixel) - 1 below 1.5 %.
    assert abs(variance - expected) <= 4 * error + 0.015 * expected
    assert 1 <= noise_over_parallel(distance_mm) <= 1.03


def test_noise_of_the_soft_kernel_has_its_texture(water_noise):
    middle = slice(SIZE // 2 - 29, SIZE // 2 + 30)
    spectrum = noise_power_spectrum(water_noise[:, middle, middle], GEOMETRY.pixel_mm)
    mean = mean_frequency_per_mm(radial_power(spectrum, GEOMETRY.pixel_mm))
    # Of a B30f-like kernel on real slices.
    assert float(np.mean(mean)) == pytest.approx(0.24, abs=0.03)


def test_starvation_is_reported_and_its_bias_left():
    shoulder = ellipse(SIZE, 3.8, (230.0, 120.0), 0.0)
    inside = ellipse(SIZE, 3.8, (160.0, 60.0), 0.0) == 0
    geometry, scanner = SliceGeometry(pixel_mm=3.8), Scanner(photons=6e4 * READINGS)
    weak = replace(scanner, electronic_std=0.0)
    exposure = expose(shoulder, geometry, weak)
    low = exposure.photons * np.float32(0.25)
    seen = scan(shoulder, geometry, np.random.default_rng(1), dose_fraction=0.25, scanner=weak)
    assert seen.fewest_photons == pytest.approx(float(low.min()))
    assert seen.fewest_photons < 25
    assert seen.starved == pytest.approx(float(np.mean(low < 25)))
    assert 0 < seen.starved < 0.5

    photons = np.geomspace(1.0, 500.0, 400)
    shift = np.interp(low, photons, logarithm_bias(photons), right=0.0)
    clean = reconstruct(exposure.integrals, exposure.beam)
    expected = (reconstruct(exposure.integrals + shift, exposure.beam) - clean)[inside].mean()
    shifts = noises(exposure, 0.25, range(12))[:, inside].mean(axis=1)
    bias, error = mean_and_error(shifts)
    # Beyond 500 photons the shift is below a thousandth, that is half an HU in 100 mm of water.
    assert abs(bias - expected) <= 4 * error + 0.5
    assert abs(expected) > 4 * error + 0.5

    bright = Scanner(photons=100 * Scanner().photons)
    assert scan(shoulder, geometry, np.random.default_rng(1), scanner=bright).starved == 0


@pytest.mark.parametrize(
    "dose_fraction",
    [pytest.param(0.1, marks=pytest.mark.slow), 0.25, pytest.param(0.5, marks=pytest.mark.slow)],
)
def test_inserted_noise_makes_the_scan_at_the_lower_dose(dose_fraction, water):
    count, middle = 24, radius_mm() < 30
    low = noises(water, dose_fraction, range(count))[:, middle]
    full = noises(water, 1.0, range(count, 2 * count))
    clean = reconstruct(water.integrals, water.beam)
    inserted = np.stack(
        [
            insert_noise(
                clean + noise, GEOMETRY, np.random.default_rng(seed), dose_fraction=dose_fraction
            ).hu
            - clean
            for seed, noise in enumerate(full.astype(np.float32))
        ]
    )[:, middle]
    variances = [np.square(noise).mean(axis=1) for noise in (low, inserted, full[:, middle])]
    (direct, direct_error), (total, total_error), (existing, _) = map(mean_and_error, variances)
    # The insertion is parallel: its noise lacks what interpolation and the fan add.
    systematic = (noise_over_parallel(20.0) ** 2 - 1) * (direct - existing)
    tolerance = 4 * math.hypot(direct_error, total_error) + 0.015 * direct
    assert abs(total + systematic - direct) <= tolerance
    assert abs(existing - direct) > 4 * tolerance


# What goes in and what comes out.


def test_a_slice_of_any_shape_comes_back_in_place(water):
    cut = WATER[20:, 7:122]
    seen = scan(cut, GEOMETRY, np.random.default_rng(0))
    assert seen.hu.shape == cut.shape
    assert seen.hu.dtype == np.float32
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in cut.shape)
    # The rest of the disc is off the axis now; its centre of mass stays where it was.
    solid = seen.hu > -500
    assert solid.any(axis=1).sum() == pytest.approx((cut > -500).any(axis=1).sum(), abs=2)
    for axis, centred in ((1, rows), (0, columns)):
        found, given = (mask.sum(axis=axis) @ centred / mask.sum() for mask in (solid, cut > -500))
        assert found == pytest.approx(given, abs=0.1)


def test_the_same_generator_gives_the_same_scan():
    first, again, other = (
        scan(WATER, GEOMETRY, np.random.default_rng(seed)).hu for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_objects_beyond_the_field_of_view_are_refused():
    geometry = SliceGeometry(pixel_mm=4.3)
    with pytest.raises(GeometryError, match="beyond the field of view of 501 mm"):
        expose(ellipse(SIZE, 4.3, (262.0, 100.0), 0.0), geometry)
    seen = scan(ellipse(SIZE, 4.3, (240.0, 100.0), 0.0), geometry, np.random.default_rng(0))
    outside = radius_mm(SIZE, 4.3) > 252
    assert (seen.hu[outside] == -1000).all()
    air, haze = np.full((SIZE, SIZE), -1000.0, np.float32), np.where(outside, -950.0, -1000.0)
    assert np.array_equal(expose(haze, geometry).integrals, expose(air, geometry).integrals)
    with pytest.raises(ValueError, match="must lie in"):
        scan(WATER, GEOMETRY, np.random.default_rng(0), dose_fraction=0.0)


def test_the_kernel_is_the_response_of_the_whole_chain():
    beam, width_mm, (x, y) = FanBeam.calibrated(129, 0.25), 0.8, (6.3, -4.1)
    theta = beam.angles[:, None] + beam.fan_angles
    offset = beam.distances_mm - (x * np.cos(theta) + y * np.sin(theta))
    integrals = np.exp(-(offset**2) / (2 * width_mm**2)) * width_mm * math.sqrt(2 * math.pi)
    found = reconstruct(integrals * MU_WATER_PER_MM, beam) / 1000 + 1
    centred = (np.arange(129) - 64) * 0.25
    distance = np.hypot(centred[None, :] - x, centred[:, None] - y)

    def profile(aperture_mm):
        """Hankel transform of the Gaussian's spectrum times the response."""
        step = SOFT_KERNEL.cutoff_per_mm / 4000
        frequency = (np.arange(4000) + 0.5) * step
        blob = 2 * np.pi * width_mm**2 * np.exp(-2 * (np.pi * width_mm * frequency) ** 2)
        response = replace(SOFT_KERNEL, aperture_mm=aperture_mm).response(frequency)
        radius = np.linspace(0, 5, 201)
        waves = j0(2 * np.pi * np.multiply.outer(radius, frequency))
        values = 2 * np.pi * step * waves @ (frequency * blob * response)
        return np.interp(distance, radius, values)

    near = distance < 5
    # What the channels cannot hold of the blob, at their Nyquist frequency.
    aliased = math.exp(-((np.pi * width_mm / CHANNEL_MM) ** 2) / 2)
    assert np.abs(found - profile(CHANNEL_MM))[near].max() <= aliased
    for wrong in (0.0, math.sqrt(2) * CHANNEL_MM):  # interpolation forgotten, counted twice
        assert np.abs(found - profile(wrong))[near].max() > 10 * aliased


def test_a_tenth_of_water_beyond_the_field_of_view_is_an_object_and_less_is_none():
    hu = np.full((32, 32), -1000.0, np.float32)
    hu[0, 0] = -899
    with pytest.raises(GeometryError, match="1 pixels of the object"):
        expose(hu, SliceGeometry(pixel_mm=18.0))
    hu[0, 0] = -901
    assert not expose(hu, SliceGeometry(pixel_mm=18.0)).integrals.any()
