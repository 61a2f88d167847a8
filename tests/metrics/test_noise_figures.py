"""Noise maps, levels, ensembles and figures of spectra against closed forms and plain loops."""

import math

import numpy as np
import pytest

from cddnet.metrics.noise import (
    RadialPower,
    band_ratios,
    corners_inside,
    cut_regions,
    ensemble_noise,
    global_noise_level_hu,
    mean_frequency_per_mm,
    noise_map_hu,
    noise_power_spectrum,
    peak_frequency_per_mm,
    radial_power,
    soft_tissue,
    window_pixels,
)

PIXEL_MM = 0.7
SIDE = window_pixels(PIXEL_MM)


def tissue(rng, noise_hu, shape=(173, 219)):
    """Soft tissue of 60 HU in lung, with white noise."""
    base = np.full(shape, -850.0)
    base[10:-10, 10:-10] = 60
    return base + rng.normal(0, noise_hu, shape)


def level_of(hu):
    return global_noise_level_hu(noise_map_hu(hu, PIXEL_MM)[soft_tissue(hu, SIDE)])


def shaped_noise(rng, amplitude, side, count):
    """Periodic noise (count, side, side) whose power is amplitude(f) squared times the pixel."""
    frequency = np.fft.fftfreq(side, PIXEL_MM)
    response = amplitude(np.hypot(frequency[:, None], frequency))
    white = rng.normal(0, 1, (count, side, side))
    return np.fft.ifft2(np.fft.fft2(white) * response).real


def figures(noise):
    spectrum = noise_power_spectrum(noise, PIXEL_MM).mean(axis=0)
    return radial_power(spectrum, PIXEL_MM)


def error_of_mean_frequency(radial, count):
    """Standard error: ring k holds about pi k independent waves in each of `count` images."""
    waves = count * np.pi * np.arange(1, len(radial.power))
    power, frequency = radial.power[1:], radial.frequency_per_mm[1:]
    mean = power @ frequency / power.sum()
    share = (frequency - mean) * power / power.sum()
    return math.sqrt(float((share**2 / waves).sum()))


@pytest.mark.parametrize("shape", [(31, 44), (40, 33)])
def test_the_map_is_the_standard_deviation_of_each_window(shape, rng):
    hu = rng.normal(-700, 25, shape)
    deviation = noise_map_hu(hu, PIXEL_MM)
    half = SIDE // 2
    for row, column in ((half, half), (15, 20), (shape[0] - half - 1, shape[1] - half - 1)):
        window = hu[row - half : row + half + 1, column - half : column + half + 1]
        assert window.shape == (SIDE, SIDE)
        assert deviation[row, column] == pytest.approx(window.std(ddof=1), rel=1e-9)


@pytest.mark.parametrize("noise_hu", [4.0, 11.0, 27.0])
def test_the_level_is_that_of_the_noise_whatever_lies_beside_it(noise_hu, rng):
    hu = tissue(rng, noise_hu)
    hu[60:110:12, 40:180] += 90
    # A standard deviation of one window is that uncertain; the mode of hundreds is less so.
    one_window = 1 / math.sqrt(2 * (SIDE**2 - 1))
    assert level_of(hu) == pytest.approx(noise_hu, rel=one_window)
    mean = noise_map_hu(hu, PIXEL_MM)[soft_tissue(hu, SIDE)].mean()
    assert mean > noise_hu * (1 + one_window)


def test_the_level_scales_with_the_noise(rng):
    deviations = noise_map_hu(tissue(rng, 10.0), PIXEL_MM)
    assert global_noise_level_hu(3 * deviations) == pytest.approx(
        3 * global_noise_level_hu(deviations), rel=1e-6
    )


def test_many_edges_do_not_move_the_mode(rng):
    flat, edges = rng.normal(10, 1, 3000), 10 + rng.exponential(50, 1200)
    found = global_noise_level_hu(np.concatenate([flat, edges]))
    # The top of a density whose kernel is as wide as the edges make it lies 0.3 higher.
    assert found == pytest.approx(10, abs=0.2)


def test_no_noise_is_none_and_no_tissue_is_refused():
    assert level_of(np.full((60, 60), 60.0)) == 0
    with pytest.raises(ValueError, match="no soft tissue"):
        level_of(np.full((60, 60), -850.0))


def test_soft_tissue_is_where_a_region_around_a_pixel_is_whole(rng):
    hu = tissue(rng, 3.0, (64, 71))
    hu[30:34, 40:44] = 900
    whole = soft_tissue(hu, SIDE)
    from_corners = np.zeros_like(whole)
    flat = soft_tissue(hu, 1)
    rows, columns = (corners_inside(flat, SIDE, step=1) + SIDE // 2).T
    from_corners[rows, columns] = True
    assert np.array_equal(whole, from_corners)
    assert whole.any()
    assert not whole.all()


@pytest.mark.parametrize("repeats", [2, 3, 7])
def test_an_ensemble_has_the_variance_of_one_image(repeats, rng):
    std, shape = 14.0, (61, 67)
    pattern = 500 * rng.random(shape)
    noise = ensemble_noise(pattern + rng.normal(0, std, (repeats, *shape)))
    freedom = (repeats - 1) * noise[0].size
    variance = np.square(noise).mean()
    assert variance == pytest.approx(std**2, rel=4 * math.sqrt(2 / freedom))
    assert np.abs(ensemble_noise(np.stack([pattern] * repeats))).max() < 1e-9


def test_the_power_of_an_ensemble_integrates_to_the_variance(rng):
    std, side = 9.0, 21
    noise = ensemble_noise(rng.normal(0, std, (4, 90, 90)) + np.arange(90) * 3.0)
    corners = corners_inside(np.ones((90, 90), np.bool_), side, step=side)
    regions = np.concatenate([cut_regions(image, corners, side) for image in noise])
    power = noise_power_spectrum(regions, PIXEL_MM).mean(axis=0)
    integral = power.sum() / (side * PIXEL_MM) ** 2
    freedom = regions.size * 3 / 4
    assert integral == pytest.approx(std**2, rel=4 * math.sqrt(2 / freedom))


def test_one_image_has_no_ensemble():
    with pytest.raises(ValueError, match="at least 2"):
        ensemble_noise(np.zeros((1, 5, 5)))


@pytest.mark.parametrize("sigma_mm", [0.8, 1.3])
def test_blurred_white_noise_has_the_power_and_mean_frequency_of_its_blur(sigma_mm, rng):
    side, count = 95, 40
    noise = shaped_noise(rng, lambda f: np.exp(-2 * (np.pi * sigma_mm * f) ** 2), side, count)
    radial = figures(noise)
    expected = PIXEL_MM**2 * np.exp(-4 * (np.pi * sigma_mm * radial.frequency_per_mm) ** 2)
    seen = slice(3, 25)
    waves = count * np.pi * np.arange(side)[seen]
    # The step of the rings bends the mean over one of them by far less than its error.
    assert (np.abs(radial.power[seen] / expected[seen] - 1) < 5 / np.sqrt(waves) + 0.01).all()
    # Integral of f exp(-a f^2) over that of exp(-a f^2), a = (2 pi sigma)^2; the sum over rings
    # leaves out half a ring around zero.
    half_step = 0.5 / (side * PIXEL_MM)
    plain = 1 / (2 * math.pi**1.5 * sigma_mm)
    error = 4 * error_of_mean_frequency(radial, count)
    assert plain - error < mean_frequency_per_mm(radial) < plain + half_step + error


@pytest.mark.parametrize("sigma_mm", [0.8, 1.3])
def test_apodised_ramp_noise_has_its_mean_and_peak_frequency(sigma_mm, rng):
    side, count = 95, 40

    def amplitude(frequency):
        return np.sqrt(frequency) * np.exp(-2 * (np.pi * sigma_mm * frequency) ** 2)

    radial = figures(shaped_noise(rng, amplitude, side, count))
    # f exp(-a f^2) with a = (2 pi sigma)^2: mean sqrt(pi / a) / 2, peak 1 / sqrt(2 a).
    expected = 1 / (4 * math.sqrt(math.pi) * sigma_mm)
    error = 4 * error_of_mean_frequency(radial, count)
    assert mean_frequency_per_mm(radial) == pytest.approx(expected, abs=error + 0.002 * expected)
    peak = 1 / (2 * math.sqrt(2) * math.pi * sigma_mm)
    # The top is flat: 5 % less power at 0.83 and 1.18 of the peak's frequency.
    assert peak_frequency_per_mm(radial) == pytest.approx(peak, rel=0.18)


@pytest.mark.parametrize("place", [0.2, 0.213, 0.2241])
def test_the_peak_lies_between_steps(place):
    frequency = np.arange(0, 0.5, 0.02)
    radial = RadialPower(frequency, 5 - 30 * (frequency - place) ** 2)
    assert peak_frequency_per_mm(radial) == pytest.approx(place, abs=1e-9)


def test_one_high_value_is_no_peak():
    frequency = np.arange(0, 0.5, 0.02)
    power = np.exp(-(((frequency - 0.2) / 0.06) ** 2))
    power[20] = 1.2
    assert peak_frequency_per_mm(RadialPower(frequency, power)) == pytest.approx(0.2, abs=0.01)


def test_a_falling_spectrum_peaks_at_its_first_frequency_above_zero():
    frequency = np.arange(0, 0.5, 0.02)
    assert peak_frequency_per_mm(RadialPower(frequency, np.exp(-9 * frequency))) == 0.02
    assert peak_frequency_per_mm(RadialPower(frequency, frequency**2)) == frequency[-1]


def test_ratios_of_bands_are_those_of_the_bands():
    frequency = np.arange(0, 0.7, 0.03)
    reference = RadialPower(frequency, 3 + frequency)
    factor = np.select([frequency < 0.1, frequency < 0.3, frequency < 0.5], [0.9, 0.4, 0.2], 0.7)
    scaled = RadialPower(frequency, reference.power * factor)
    assert band_ratios(scaled, reference) == pytest.approx((0.9, 0.4, 0.2, 0.7), rel=1e-12)
    assert band_ratios(reference, reference) == pytest.approx((1.0,) * 4)


def test_a_band_counts_as_it_does_in_two_dimensions(rng):
    side = 41
    cycles = np.fft.fftfreq(side, 1 / side)
    ring = np.rint(np.hypot(cycles[:, None], cycles))
    # Rising against falling: a mean over rings would give another ratio.
    first, second = rng.random((2, side, side)) * np.stack([ring**2, 1 / (1 + ring**2)])
    inside = (ring >= 5) & (ring <= 12)
    low, high = 4.9 / (side * PIXEL_MM), 12.1 / (side * PIXEL_MM)
    radials = [radial_power(spectrum, PIXEL_MM) for spectrum in (first, second)]
    (ratio,) = band_ratios(*radials, [(low, high)])
    # Rings hold 2 pi k frequencies only nearly.
    assert ratio == pytest.approx(first[inside].sum() / second[inside].sum(), rel=0.01)


def test_bands_without_frequencies_have_no_ratio_and_other_frequencies_are_refused():
    radial = RadialPower(np.arange(0, 0.45, 0.02), np.ones(23))
    assert band_ratios(radial, radial)[-1] is None
    with pytest.raises(ValueError, match="different frequencies"):
        band_ratios(radial, RadialPower(radial.frequency_per_mm * 1.1, radial.power))


@pytest.mark.parametrize("at", [1, 2, 7, 8])
def test_a_peak_beside_the_end_is_placed_between_steps_too(at):
    """By the vertex of a parabola through three smoothed values, fitted by least squares."""
    power = np.zeros(11)
    power[at : at + 4] = (2, 6, 3, 1)[: 11 - at]
    padded = np.concatenate([power[1:2], power[1:], power[-1:]])
    smooth = np.convolve(padded, [0.25, 0.5, 0.25], mode="valid")
    top = int(np.argmax(smooth))
    second, first, _ = np.polyfit([-1, 0, 1], smooth[top - 1 : top + 2], 2)
    expected = 0.1 * (1 + top - first / (2 * second))
    found = peak_frequency_per_mm(RadialPower(0.1 * np.arange(11), power))
    assert found == pytest.approx(expected, abs=1e-9)
    assert abs(found - 0.1 * (1 + top)) > 1e-3


@pytest.mark.parametrize(
    ("pixel_mm", "window_mm", "side"),
    [(0.7, 9.0, 13), (1.0, 9.0, 9), (1.0, 3.0, 5), (3.0, 9.0, 5), (10.0, 9.0, 3), (1.0, 0.1, 3)],
)
def test_a_window_is_odd_and_never_a_single_pixel(pixel_mm, window_mm, side):
    assert window_pixels(pixel_mm, window_mm) == side


@pytest.mark.parametrize(("frequency_per_mm", "band"), [(0.1, 1), (0.3, 2), (0.5, 3)])
def test_a_limit_of_bands_belongs_to_the_one_above(frequency_per_mm, band):
    frequency = np.array([0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    even = RadialPower(frequency, np.ones(8))
    louder = RadialPower(frequency, 1.0 + (frequency == frequency_per_mm))
    assert [ratio > 1 for ratio in band_ratios(louder, even)] == [n == band for n in range(4)]
