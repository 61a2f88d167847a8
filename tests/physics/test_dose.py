"""Inserted noise against direct simulation, closed forms and an independent prediction.

Above 300 lines: insertion and simulation are checked against each other.
"""

# Shapes: K realisation, H row, W column, V view, J channel.

import hashlib
import math

import numpy as np
import pytest
from scipy import stats

from cddnet.physics.beam import MU_WATER_PER_MM, Scanner, SliceGeometry
from cddnet.physics.dose import (
    STARVED_PHOTONS,
    add_noise,
    insert_noise,
    inserted_noise,
    inserted_variance,
    measured_noise,
    rng_for,
)
from cddnet.physics.kernel import Kernel

SOFT, SHARP = Kernel(cutoff_per_mm=0.70), Kernel(cutoff_per_mm=1.87, boost=0.3)


def ellipse(size, pixel_mm, axes_mm, hu):
    """Uniform ellipse of the given full axes (across, down) in air."""
    across, down = (axis / 2 for axis in axes_mm)
    centred = (np.arange(size) - (size - 1) / 2) * pixel_mm
    inside = (centred[None, :] / across) ** 2 + (centred[:, None] / down) ** 2 <= 1
    return np.where(inside, hu, -1000.0).astype(np.float32)


def radius_mm(size, pixel_mm):
    centred = (np.arange(size) - (size - 1) / 2) * pixel_mm
    return np.hypot(centred[None, :], centred[:, None])


def realisations(hu, geometry, count, **options):
    """Inserted noise alone, (K, H, W)."""
    return np.stack(
        [
            insert_noise(hu, geometry, np.random.default_rng(seed), **options).hu - hu
            for seed in range(count)
        ]
    )


def mean_and_error(values):
    """Mean over realisations and its standard error."""
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


# The law of the line integrals.


@pytest.mark.parametrize("dose_fraction", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("low_photons", [100.0, 1000.0])
@pytest.mark.parametrize("electronic_std", [0.0, 10.0])
def test_existing_plus_inserted_is_the_noise_of_the_low_dose(
    dose_fraction, low_photons, electronic_std, rng
):
    """Inserted on what was measured, as in a series: its photons are noisy too."""
    draws, photons = 400_000, low_photons / dose_fraction

    def measured(fraction):
        counts = rng.poisson(fraction * photons, draws) + rng.normal(0, electronic_std, draws)
        return -np.log(counts / (fraction * photons))

    direct, full = measured(dose_fraction), measured(1.0)
    both = full + inserted_noise(photons * np.exp(-full), electronic_std, dose_fraction, rng)
    low = direct.var()
    # The log of a Poisson count, relative: two over the count.
    allowed = 4 * low * math.sqrt(2 * 2 / draws) + 2 / low_photons * low
    assert abs(both.var() - low) <= allowed
    assert abs(full.var() - low) > 10 * allowed
    # The insertion adds no mean; that of the logarithm is half its variance, to first order.
    assert abs(both.mean() - full.mean()) <= 4 * math.sqrt(low / draws)


# The image.

GEOMETRY = SliceGeometry(pixel_mm=1.5, thickness_mm=3.0)
SIZE, DISC_MM = 128, 80.0
WATER = ellipse(SIZE, GEOMETRY.pixel_mm, (2 * DISC_MM, 2 * DISC_MM), 0.0)


@pytest.fixture(scope="module")
def water_noise():
    return realisations(WATER, GEOMETRY, 40)


def predicted_std_hu(point_mm, scanner, kernel):
    """Noise of the water disc at (x, y), summed over rays from closed forms; quarter dose."""
    views, pixel_mm = 720, GEOMETRY.pixel_mm
    distance_mm = np.arange(-100, 101) * pixel_mm  # (J,)
    water_mm = 2 * np.sqrt(np.clip(DISC_MM**2 - distance_mm**2, 0, None))
    bowtie = np.maximum(scanner.bowtie_ratio ** -((distance_mm / 250.0) ** 2), scanner.bowtie_floor)
    per_ray = scanner.photons / views * pixel_mm / 0.7047 * GEOMETRY.thickness_mm / 3.0
    photons = per_ray * bowtie * np.exp(-MU_WATER_PER_MM * water_mm)
    electronic_variance = scanner.electronic_std**2 * 576 / views * pixel_mm / 0.7047
    quarter = 4 / photons + 16 * electronic_variance / photons**2
    full = 1 / photons + electronic_variance / photons**2
    frequency = (np.arange(400) + 0.5) / 800  # cycles per pixel
    transfer = frequency * kernel.response(frequency / pixel_mm)
    lag = np.linspace(0, 200, 8001)
    impulse = 2 * np.cos(2 * np.pi * np.multiply.outer(lag, frequency)) @ transfer / 800
    angles = np.arange(views) * np.pi / views
    along_mm = point_mm[0] * np.cos(angles) + point_mm[1] * np.sin(angles)  # (V,)
    reach = np.abs(along_mm[:, None] - distance_mm) / pixel_mm  # (V, J)
    weights = np.interp(reach, lag, impulse) ** 2
    variance = (np.pi / views) ** 2 * (weights @ (quarter - full)).sum()
    return math.sqrt(variance) * 1000 / (MU_WATER_PER_MM * pixel_mm)


@pytest.mark.parametrize("distance_mm", [0.0, 30.0, 60.0])
def test_image_noise_is_that_predicted_from_the_rays(distance_mm, water_noise):
    ring = np.abs(radius_mm(SIZE, GEOMETRY.pixel_mm) - distance_mm) < 4.5
    variance, error = mean_and_error(np.square(water_noise[:, ring], dtype=np.float64).mean(axis=1))
    predicted = predicted_std_hu((distance_mm * 0.8, distance_mm * 0.6), Scanner(), SOFT) ** 2
    # The pixels' rim moves a chord by a pixel at most: exp(mu pixel) - 1 is below 3 %.
    assert abs(variance - predicted) <= 4 * error + 0.03 * predicted


def test_noise_has_no_mean(water_noise):
    inside = radius_mm(SIZE, GEOMETRY.pixel_mm) < 0.8 * DISC_MM
    mean, error = mean_and_error(water_noise[:, inside].mean(axis=1))
    assert error > 0
    assert abs(mean) <= 4 * error


@pytest.mark.parametrize("axes_mm", [(310.0, 225.0), (340.0, 250.0)])
def test_noise_of_an_abdomen_is_that_of_real_scans(axes_mm):
    """Soft kernel: QD - FD of 22 to 40 HU, QD / FD of 2.05 to 2.3 (real slices: 2.2, ideal: 2)."""
    size, geometry = 512, SliceGeometry(pixel_mm=0.72, thickness_mm=3.0)
    body = ellipse(size, geometry.pixel_mm, axes_mm, 50.0)
    middle = radius_mm(size, geometry.pixel_mm) < 25
    added = realisations(body, geometry, 1)[0][middle].std()
    # A thousandth of a thousandfold dose carries the noise of the full dose, in full.
    bright = Scanner(photons=1000 * Scanner().photons)
    full = realisations(body, geometry, 1, scanner=bright, dose_fraction=1e-3)[0][middle].std()
    assert 22 <= added <= 40
    assert 2.05 <= math.hypot(added, full) / full <= 2.3


def test_variance_goes_with_one_over_thickness():
    quantum = Scanner(electronic_std=0.0)
    thin, thick = (
        realisations(WATER, GEOMETRY._replace(thickness_mm=mm), 1, scanner=quantum)[0]
        for mm in (0.75, 3.0)
    )
    geometry = GEOMETRY._replace(thickness_mm=0.75)
    fewest = insert_noise(WATER, geometry, np.random.default_rng(0), scanner=quantum).fewest_photons
    # The same draws: float32 HU of about 1000 stand between them, and the logarithm's next order.
    allowed = 4 * np.spacing(np.float32(1000)) + 1.5 / fewest * np.abs(thin).max()
    assert np.abs(thin - 2 * thick).max() <= allowed < 0.1 * thick.std()
    assert thick.std() > 1


def test_lower_doses_are_noisier():
    sds = [
        realisations(WATER, GEOMETRY, 1, dose_fraction=fraction)[0].std()
        for fraction in (0.05, 0.1, 0.25, 0.5, 0.9, 1.0)
    ]
    assert sds == sorted(sds, reverse=True)
    assert sds[-1] == 0 < sds[-2]


# Texture.

FINE = SliceGeometry(pixel_mm=0.7, thickness_mm=3.0)


def mean_frequencies_per_mm(kernel):
    """Mean frequency of the radial noise power up to Nyquist, of each realisation."""
    size, region = 161, 64
    disc = ellipse(size, FINE.pixel_mm, (100.0, 100.0), 0.0)
    first = (size - region) // 2
    noise = realisations(disc, FINE, 16, kernel=kernel)
    patch = noise[:, first : first + region, first : first + region]
    taper = np.multiply.outer(np.hanning(region), np.hanning(region))
    power = np.abs(np.fft.fft2((patch - patch.mean(axis=(1, 2), keepdims=True)) * taper)) ** 2
    frequency = np.fft.fftfreq(region, FINE.pixel_mm)
    radial = np.hypot(frequency[:, None], frequency)
    # Power per radius: each of a ring's pixels counts with one over the ring's circumference.
    weight = np.where((radial > 0) & (radial <= 0.5 / FINE.pixel_mm), 1, 0) / np.maximum(
        radial, 1e-9
    )
    return (power * weight * radial).sum(axis=(1, 2)) / (power * weight).sum(axis=(1, 2))


def expected_frequency_per_mm(kernel):
    """Of ramp-filtered white noise, whose power is f A(f)^2 (Kak and Slaney 1988, chapter 5)."""
    frequency = np.linspace(0, 0.5 / FINE.pixel_mm, 2001)
    power = frequency * kernel.response(frequency) ** 2
    return (frequency * power).sum() / power.sum()


@pytest.mark.parametrize("kernel", [SOFT, SHARP], ids=["soft", "sharp"])
def test_texture_is_that_of_the_kernel(kernel):
    mean, error = mean_and_error(mean_frequencies_per_mm(kernel))
    # The region resolves one frequency step, and its taper smears over half of it.
    resolution = 0.5 / (64 * FINE.pixel_mm)
    assert abs(mean - expected_frequency_per_mm(kernel)) <= 4 * error + resolution


def test_sharp_kernels_have_finer_and_more_noise():
    soft, sharp = (mean_frequencies_per_mm(kernel).mean() for kernel in (SOFT, SHARP))
    assert sharp > 1.3 * soft
    disc = ellipse(97, 0.7, (60.0, 60.0), 0.0)
    stds = [realisations(disc, FINE, 1, kernel=kernel).std() for kernel in (SOFT, SHARP)]
    assert stds[1] > 1.5 * stds[0]


# Shapes, seeds and refusals.


@pytest.mark.parametrize("shape", [(33, 48), (51, 40), (1, 37), (47, 47)])
def test_any_shape_comes_back_with_noise(shape):
    hu = np.zeros(shape, np.float32)
    low_dose = insert_noise(hu, GEOMETRY, np.random.default_rng(0))
    assert low_dose.hu.shape == shape
    assert low_dose.hu.dtype == np.float32
    assert np.isfinite(low_dose.hu).all()
    assert low_dose.hu.std() > 0.1


def test_a_slice_keeps_its_noise_wherever_it_lies_in_the_square():
    """A wide and a tall slice of one disc: equal noise levels, whatever is padded."""
    wide, tall = WATER[24:104], WATER[:, 24:104]
    stds = [realisations(part, GEOMETRY, 4).std() for part in (wide, tall)]
    assert stds[0] == pytest.approx(stds[1], rel=0.1)


def test_the_full_dose_is_left_as_it_is():
    low_dose = insert_noise(WATER, GEOMETRY, np.random.default_rng(0), dose_fraction=1.0)
    assert np.array_equal(low_dose.hu, WATER)


def test_the_input_is_not_changed():
    before = WATER.copy()
    assert not np.array_equal(insert_noise(WATER, GEOMETRY, rng_for("1.2.3", 0, 0)).hu, before)
    assert np.array_equal(WATER, before)


@pytest.mark.parametrize("dose_fraction", [0.0, -0.25, 1.01, math.nan, math.inf])
def test_a_dose_that_is_no_fraction_is_refused(dose_fraction):
    with pytest.raises(ValueError, match="must lie in"):
        insert_noise(WATER, GEOMETRY, np.random.default_rng(0), dose_fraction=dose_fraction)


def test_the_noise_of_a_slice_is_its_own():
    def noisy(*subject):
        return insert_noise(WATER, GEOMETRY, rng_for(*subject)).hu

    first = noisy("1.2.3", 4, 0)
    assert np.array_equal(noisy("1.2.3", 4, 0), first)
    for other in (("1.2.3", 5, 0), ("1.2.4", 4, 0), ("1.2.3", 4, 1)):
        correlation = np.corrcoef((noisy(*other) - WATER).ravel(), (first - WATER).ravel())[0, 1]
        # Neighbouring pixels share noise: about 9 of them make one independent one.
        assert abs(correlation) <= 4 / math.sqrt(SIZE**2 / 9)


def test_series_and_slice_numbers_do_not_run_together():
    assert rng_for("1.2.3", 45, 0).random() != rng_for("1.2.34", 5, 0).random()
    assert rng_for("1.2.3", 4, 51).random() != rng_for("11.2.3", 4, 5).random()


# Photons.


def test_fewest_photons_are_those_behind_the_diameter():
    scanner = Scanner()
    expected = 0.25 * scanner.photons / 720 * GEOMETRY.pixel_mm / 0.7047
    expected *= math.exp(-MU_WATER_PER_MM * 2 * DISC_MM)
    found = insert_noise(WATER, GEOMETRY, np.random.default_rng(0)).fewest_photons
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("photons", [4.0, 12.0, 50.0])
def test_starved_rays_follow_the_law_of_a_direct_measurement(photons, rng):
    """Thinning a full-dose count is exact: mean and variance of the low-dose logarithm."""
    # Electronic noise well below the count: below nothing there is no photon left to thin.
    draws, fraction, electronic_std = 400_000, 0.25, photons / 16
    assert photons * fraction < STARVED_PHOTONS
    full = rng.poisson(photons, draws) + rng.normal(0, electronic_std, draws)
    low = rng.poisson(photons * fraction, draws) + rng.normal(0, electronic_std, draws)
    direct = -np.log(np.maximum(low, 1.0) / (photons * fraction))
    measured = np.maximum(full, 1e-3)
    ours = -np.log(measured / photons) + inserted_noise(measured, electronic_std, fraction, rng)
    mean_error = direct.std() * math.sqrt(2 / draws)
    assert abs(ours.mean() - direct.mean()) <= 4 * mean_error
    fourth = np.mean((direct - direct.mean()) ** 4)
    variance_error = math.sqrt(2 * (fourth - direct.var() ** 2) / draws)
    assert abs(ours.var() - direct.var()) <= 4 * variance_error


def test_rays_without_photons_saturate_instead_of_failing(rng):
    noise = inserted_noise(np.full(1000, 1e-8), 0.0, 0.25, rng)
    # No photon counts as one: the line integral stops at the log of the photons sent.
    assert noise == pytest.approx(np.log(1e-8 * 0.25), rel=1e-6)


def test_starved_rays_are_reported():
    wide = ellipse(129, 4.0, (480.0, 240.0), 100.0)
    geometry = SliceGeometry(pixel_mm=4.0)
    fed = insert_noise(wide, geometry, np.random.default_rng(0), dose_fraction=0.5)
    dark = Scanner(photons=Scanner().photons / 300)
    starved = insert_noise(wide, geometry, np.random.default_rng(0), scanner=dark)
    assert fed.starved == 0 < fed.fewest_photons
    assert starved.starved > 0.005
    assert starved.fewest_photons < STARVED_PHOTONS
    assert np.isfinite(starved.hu).all()


# Objects without noise.


@pytest.mark.parametrize("electronic_std", [0.0, 15.0])
@pytest.mark.parametrize("photons", [200.0, 1000.0])
def test_a_direct_measurement_has_the_variance_of_its_photons(photons, electronic_std, rng):
    draws = 400_000
    noise = measured_noise(np.full(draws, photons), electronic_std, rng)
    expected = 1 / photons + electronic_std**2 / photons**2
    standard_error = expected * math.sqrt(2 / draws)
    # The next term of the variance of a logarithm is at most 5/2 of the variance squared.
    assert abs(noise.var() - expected) <= 4 * standard_error + 2.5 * expected**2


def test_full_dose_plus_insertion_is_a_direct_scan_at_the_lower_dose():
    inside = radius_mm(SIZE, GEOMETRY.pixel_mm) < 0.8 * DISC_MM
    twice, direct = [], []
    for seed in range(24):
        full = add_noise(WATER, GEOMETRY, np.random.default_rng(seed)).hu
        low = insert_noise(full, GEOMETRY, np.random.default_rng(1000 + seed)).hu
        twice.append(np.var((low - WATER)[inside], dtype=np.float64))
        scan = add_noise(WATER, GEOMETRY, np.random.default_rng(2000 + seed), dose_fraction=0.25)
        direct.append(np.var((scan.hu - WATER)[inside], dtype=np.float64))
    error = math.sqrt((np.var(twice, ddof=1) + np.var(direct, ddof=1)) / 24)
    # Beyond the random part only the logarithm: 2.5 over the photons of the darkest ray.
    dark = add_noise(WATER, GEOMETRY, np.random.default_rng(0), dose_fraction=0.25).fewest_photons
    assert abs(np.mean(twice) - np.mean(direct)) <= 4 * error + 2.5 / dark * np.mean(direct)
    assert np.mean(direct) > 1


@pytest.mark.parametrize("electronic_std", [0.0, 20.0, 40.0])
def test_the_variance_of_a_logarithm_is_right_to_second_order(electronic_std):
    """Against sums over every count and electronic noise, at 2000 and 500 photons."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    found = inserted_variance(np.float64(2000.0), 0.25, electronic_std)
    exact, first = [], []
    for photons in (500.0, 2000.0):
        counts = np.arange(1, int(3 * photons))
        law = stats.poisson.pmf(counts, photons)[:, None] * weights / weights.sum()
        logarithm = np.log(np.maximum(counts[:, None] + electronic_std * nodes, 1.0))
        mean = np.sum(law * logarithm)
        exact.append(np.sum(law * (logarithm - mean) ** 2))
        first.append((1 + electronic_std**2 / photons) / photons)
    second = (exact[0] - exact[1]) - (first[0] - first[1])
    assert second > 0.002 * (exact[0] - exact[1])
    # The third order goes with the cube: some 10 first^3.
    assert found - (first[0] - first[1]) == pytest.approx(second, abs=12 * first[0] ** 3)
    assert 12 * first[0] ** 3 < 0.06 * second


def test_the_seed_of_a_slice_never_changes():
    """First eight bytes of a SHA-256, so that a series gets the same noise in every version."""
    whole = int(hashlib.sha256(b"7/1.2.3/45").hexdigest(), 16)
    expected = np.random.default_rng(whole >> 192)
    assert rng_for("1.2.3", 45, 7).integers(2**62) == expected.integers(2**62)


def test_the_full_dose_gets_no_noise_however_few_its_photons(rng):
    photons = np.array([0.3, 2.7, 24.9, 1e4])
    assert not inserted_noise(photons, 12.0, 1.0, rng).any()


@pytest.mark.parametrize("dose_fraction", [0.25, 0.5, 0.8])
def test_a_starved_ray_gets_the_electronic_noise_that_is_missing(dose_fraction, rng):
    """Thinned, the full dose's own leaves a fraction of itself: f^2 of the variance is there."""
    draws, electronic_std = 400_000, 40.0
    noise = inserted_noise(np.full(draws, 1e-3), electronic_std, dose_fraction, rng)
    counts = 1e-3 * dose_fraction / np.exp(noise.astype(np.float64))
    high = np.quantile(counts, 0.9) / electronic_std
    expected = stats.norm.ppf(0.9) * math.sqrt(1 - dose_fraction**2)
    # Of a quantile: sqrt(q (1 - q) / n) over the density there.
    error = math.sqrt(0.09 / draws) / stats.norm.pdf(stats.norm.ppf(0.9))
    assert high == pytest.approx(expected, abs=4 * error)
