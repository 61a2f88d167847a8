"""Kernels by MTF, by name and by fit; the calibrated ones on an abdomen."""

import math

import numpy as np
import pytest

from cddnet.metrics.noise import (
    flat_corners,
    flat_regions,
    mean_frequency_per_mm,
    noise_power_spectrum,
    radial_power,
)
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.dose import add_noise
from cddnet.physics.kernel import (
    SHARP_KERNEL,
    SOFT_KERNEL,
    Kernel,
    fit_kernel,
    kernel_named,
    kernel_with_mtf,
    seen_through,
)

FREQUENCY = np.arange(1, 17) / (32 * 0.65)


def noise_power(kernel, frequency=FREQUENCY):
    """Of ramp-filtered white noise: f A(f)^2 (Kak and Slaney 1988, chapter 5)."""
    return frequency * kernel.response(frequency) ** 2


def texture_per_mm(kernel):
    frequency = np.linspace(0, 0.7, 500)
    power = noise_power(kernel, frequency)
    return (frequency * power).sum() / power.sum()


def test_response_is_hann_times_boost_times_aperture():
    kernel = Kernel(cutoff_per_mm=0.9, boost=0.4, aperture_mm=0.5)
    for frequency in (0.0, 0.31, 0.77, 0.9, 1.3):
        hann = math.cos(math.pi * min(frequency / 0.9, 1) / 2) ** 2
        blur = math.sin(math.pi * 0.5 * frequency) / (math.pi * 0.5 * frequency) if frequency else 1
        expected = hann * (1 + 1.6 * frequency**2) * blur**2
        assert kernel.response(np.array(frequency)) == pytest.approx(expected, abs=1e-12)


# What a kernel shows.


@pytest.mark.parametrize("kernel", [SOFT_KERNEL, SHARP_KERNEL], ids=["soft", "sharp"])
def test_a_wave_keeps_its_place_and_gets_the_height_of_the_mtf(kernel):
    """A cosine that its mirror image goes on with: half a period fits whole into each side."""
    pixel_mm, rows, columns = 0.8, 97, 120
    down = np.cos(np.pi * 31 * (np.arange(rows) + 0.5) / rows)
    across = np.cos(np.pi * 22 * (np.arange(columns) + 0.5) / columns)
    wave = 100 * np.multiply.outer(down, across)
    radius = math.hypot(31 / (2 * rows), 22 / (2 * columns)) / pixel_mm
    height = float(kernel.response(np.array(radius)))
    shown = seen_through(wave, pixel_mm, kernel)[20:-20, 20:-20]
    # The rim is 64 pixels, so the wave does not close on itself; its ends ring by little inside.
    assert np.abs(shown - height * wave[20:-20, 20:-20]).max() <= 0.5
    assert abs(height - 1) > 0.05


def test_flat_stays_flat_and_means_stay():
    hu = np.full((33, 47), -300.0, np.float32)
    assert seen_through(hu, 0.7) == pytest.approx(hu, abs=1e-3)


# By MTF.


@pytest.mark.parametrize(
    ("mtf50", "mtf10"),
    [(0.25, 0.42), (0.35, 0.56), (0.35, 0.60), (0.42, 0.67), (0.6, 0.9), (0.95, 1.25), (1.1, 1.3)],
)
def test_a_kernel_has_the_mtf_it_was_asked_for(mtf50, mtf10):
    response = kernel_with_mtf(mtf50, mtf10).response(np.array([0.0, mtf50, mtf10]))
    assert response == pytest.approx([1.0, 0.5, 0.1], abs=1e-9)
    finer = kernel_with_mtf(mtf50, mtf10).response(np.linspace(mtf10, 3 * mtf10, 50))
    assert finer.max() <= 0.1 + 1e-9


def test_a_plain_hann_window_comes_back():
    kernel = kernel_with_mtf(0.4, 0.8 * math.acos(-0.8) / math.pi)
    assert kernel.cutoff_per_mm == pytest.approx(0.8, rel=1e-6)
    assert kernel.boost == pytest.approx(0, abs=1e-6)
    assert kernel.aperture_mm == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize(
    ("mtf50", "mtf10"), [(0.5, 0.5), (0.5, 0.4), (0.0, 0.4), (-1, 1), (0.3, 0.6)]
)
def test_an_mtf_out_of_reach_is_refused(mtf50, mtf10):
    with pytest.raises(ValueError, match="give"):
        kernel_with_mtf(mtf50, mtf10)


# By name.


def test_sharper_names_have_finer_noise():
    families = [
        [kernel_named(f"B{number}f", "SIEMENS") for number in range(10, 81, 10)],
        [kernel_named(name, "GE MEDICAL SYSTEMS") for name in ("SOFT", "STANDARD", "LUNG", "EDGE")],
        [kernel_named(name, "Philips") for name in ("A", "B", "C", "D", "E")],
        [kernel_named(f"FC{number:02}", "TOSHIBA") for number in (1, 4, 10, 50, 59)],
    ]
    for family in families:
        textures = [texture_per_mm(kernel) for kernel in family]
        assert textures == sorted(textures)
        assert textures[-1] > 1.2 * textures[0]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("B40s", "B40f"),
        ("b40f ", "B40f"),
        ("Br40d\\3", "B40f"),
        ("I40f", "B40f"),
        ("H60s", "B60f"),
        ("59 .10.AB50", "B40f"),
        ("59 .21.B50s", "B50f"),
    ],
)
def test_spellings_of_one_sharpness(text, same):
    assert kernel_named(text, "SIEMENS") == kernel_named(same) is not None


@pytest.mark.parametrize(
    ("text", "manufacturer"),
    [
        ("", ""),
        ("mystery", ""),
        ("FC99", "TOSHIBA"),
        ("B40f", "GE MEDICAL SYSTEMS"),
        ("L", "SIEMENS"),
        ("STANDARD", "Philips"),
        ("XB400f", "SIEMENS"),
    ],
)
def test_what_is_no_known_name_gives_no_kernel(text, manufacturer):
    assert kernel_named(text, manufacturer) is None


def test_every_number_has_a_kernel():
    for number in range(10, 81, 5):
        assert kernel_named(f"B{number}f") is not None
    for number in range(1, 87, 5):
        assert kernel_named(f"FC{number:02}") is not None


def test_fc_numbers_run_from_1_to_86_and_start_anew_where_said():
    """Body kernels below 30, lung from 30, body again from 40, head from 60, bone from 80."""
    assert all(kernel_named(f"FC{number:02}", "CANON") is None for number in (0, 87, 99))
    tens = [(1, 10), (11, 19), (20, 29), (30, 39), (40, 49), (50, 59), (60, 79), (80, 86)]
    soft, sharp = (
        [texture_per_mm(kernel_named(f"FC{number:02}", "CANON")) for number in ends]
        for ends in zip(*tens, strict=True)
    )
    assert all(low < high for low, high in zip(soft, sharp, strict=True))
    assert soft[3] > max(sharp[:3])
    assert soft[7] > sharp[6]
    for ten in (1, 2, 4, 6):
        assert soft[ten] < sharp[ten - 1]


# By fit.

TRUTHS = [
    Kernel(cutoff_per_mm=0.5),
    Kernel(cutoff_per_mm=0.9, boost=2.0),
    Kernel(cutoff_per_mm=1.4, boost=1.5),
]


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("reference", [SOFT_KERNEL, SHARP_KERNEL])
def test_the_kernel_of_a_power_spectrum_is_found(truth, reference):
    # An estimator that loses low frequencies and leaks cancels, being the same in both.
    estimator = FREQUENCY / (0.1 + FREQUENCY)
    usable = FREQUENCY < 0.55 if reference is SOFT_KERNEL else FREQUENCY > 0
    frequency, estimator = FREQUENCY[usable], estimator[usable]
    found = fit_kernel(
        frequency,
        7.0 * estimator * noise_power(truth, frequency),
        reference_power=estimator * noise_power(reference, frequency),
        reference=reference,
    )
    shapes = [np.sqrt(noise_power(kernel, frequency)) for kernel in (found, truth, reference)]
    found_shape, true_shape, first_shape = (shape / np.linalg.norm(shape) for shape in shapes)
    # Half a step of the finest grid moves the cutoff by less than one in a hundred.
    assert np.abs(found_shape - true_shape).max() < 0.01
    assert np.abs(first_shape - true_shape).max() > 0.02


def test_anatomy_at_low_frequencies_hardly_counts():
    truth = Kernel(cutoff_per_mm=0.9)
    frequency = np.arange(1, 17) / (32 * 0.8)
    power = noise_power(truth, frequency)
    anatomy = np.where(frequency < 0.06, 4 * power.max(), 0.0)
    found = fit_kernel(
        frequency,
        power + anatomy,
        reference_power=noise_power(SHARP_KERNEL, frequency),
        reference=SHARP_KERNEL,
    )
    # Alone, the anatomy's own texture would be below 0.06 per mm.
    assert abs(texture_per_mm(found) - texture_per_mm(truth)) < 0.02


# The calibrated kernels, against real full and quarter dose slices of 3 mm.

ABDOMEN = SliceGeometry(pixel_mm=0.729, thickness_mm=3.0)
SIDE = 32


def abdomen_noise(kernel):
    """(full dose HU, quarter dose HU, mean frequency per mm) in the middle of a soft abdomen."""
    centred = (np.arange(512) - 255.5) * ABDOMEN.pixel_mm
    inside = (centred[None, :] / 170) ** 2 + (centred[:, None] / 125) ** 2 <= 1
    hu = np.where(inside, 50.0, -1000.0).astype(np.float32)
    corners = flat_corners(hu, SIDE)
    distance = np.hypot(*(corners + SIDE / 2 - 256).T) * ABDOMEN.pixel_mm
    corners = corners[distance < 60]
    levels, frequencies = [], []
    for dose_fraction in (1.0, 0.25):
        rng = np.random.default_rng(1)
        noisy = add_noise(hu, ABDOMEN, rng, dose_fraction=dose_fraction, kernel=kernel).hu
        regions = flat_regions(noisy, corners, SIDE)
        levels.append(regions.std())
        power = noise_power_spectrum(regions, ABDOMEN.pixel_mm).mean(axis=0)
        frequencies.append(mean_frequency_per_mm(radial_power(power, ABDOMEN.pixel_mm)))
    return (*levels, np.mean(frequencies))


@pytest.mark.parametrize(
    ("kernel", "full_hu", "quarter_hu", "frequency_per_mm"),
    [
        (SOFT_KERNEL, (16, 19), (35, 41), (0.21, 0.27)),
        (SHARP_KERNEL, (41, 49), (91, 105), (0.38, 0.46)),
    ],
    ids=["soft", "sharp"],
)
def test_noise_of_an_abdomen_is_that_of_real_slices(kernel, full_hu, quarter_hu, frequency_per_mm):
    full, quarter, frequency = abdomen_noise(kernel)
    assert full_hu[0] <= full <= full_hu[1]
    assert quarter_hu[0] <= quarter <= quarter_hu[1]
    assert 2.05 <= quarter / full <= 2.3
    assert frequency_per_mm[0] <= frequency <= frequency_per_mm[1]
