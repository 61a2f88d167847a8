"""Observers against closed forms, on white noise.

Above 300 lines: the observers are checked on the same noise.
"""

import numpy as np
import pytest
from scipy import stats

from cddnet.errors import CddnetError
from cddnet.metrics.detectability import (
    CHANNELS,
    Trials,
    change,
    channelised_hotelling,
    d_prime_npw,
    d_prime_npwe,
    disc_task,
    eye_filter,
    gaussian_task,
    laguerre_gauss,
    resampling,
)

SIDE, SIGMA_HU = 33, 20.0


def grid(side, pixel_mm):
    axis = np.fft.fftfreq(side, pixel_mm)
    return np.hypot(axis[:, None], axis)


def spot(side=SIDE, height_hu=6.0, radius_px=5.0):
    centred = np.arange(side) - (side - 1) / 2
    return height_hu * (np.hypot(centred[:, None], centred) <= radius_px)


def white(count, rng, signal=None, sigma_hu=SIGMA_HU):
    """Trials in white noise, all of different places."""
    signal = spot() if signal is None else signal
    absent, noise = sigma_hu * rng.standard_normal((2, count, *signal.shape))
    return Trials(noise + signal, absent, np.arange(count))


def ideal_d_prime(signal, width_px, sigma_hu=SIGMA_HU):
    """Closed form from the channel matrix: mean removal projects signal and noise alike."""
    channels = laguerre_gauss(signal.shape[0], width_px).reshape(CHANNELS, -1)
    channels = channels - channels.mean(axis=1, keepdims=True)
    covariance = sigma_hu**2 * channels @ channels.T
    seen = channels @ signal.reshape(-1)
    return np.sqrt(seen @ np.linalg.solve(covariance, seen))


def standard_error(d_prime, count):
    """Of d' from so many images of each class (Hedges and Olkin 1985, two equal groups)."""
    return np.sqrt(2 / count + d_prime**2 / (4 * count))


@pytest.mark.parametrize("diameter_mm", [5.0, 10.0])
def test_a_disc_in_white_noise_has_the_d_prime_of_its_energy(diameter_mm):
    pixel_mm, side, contrast_hu = 0.2, 255, 12.0
    centred = (np.arange(side) - side // 2) * pixel_mm
    inside = np.hypot(centred[:, None], centred) <= diameter_mm / 2
    found = d_prime_npw(
        disc_task(grid(side, pixel_mm), diameter_mm, contrast_hu),
        np.ones((side, side)),
        np.full((side, side), SIGMA_HU**2 * pixel_mm**2),
        1 / (side * pixel_mm),
    )
    assert found == pytest.approx(contrast_hu * np.sqrt(inside.sum()) / SIGMA_HU, rel=0.01)


def test_a_gaussian_in_white_noise_seen_through_a_gaussian_system():
    pixel_mm, side, sigma_mm, blur_mm, contrast_hu = 0.5, 129, 2.0, 1.0, 10.0
    frequency = grid(side, pixel_mm)
    ttf = np.exp(-2 * np.pi**2 * blur_mm**2 * frequency**2)
    power = SIGMA_HU**2 * pixel_mm**2
    found = d_prime_npw(
        gaussian_task(frequency, sigma_mm * np.sqrt(8 * np.log(2)), contrast_hu),
        ttf,
        np.full((side, side), power),
        1 / (side * pixel_mm),
    )
    # The blurred Gaussian's energy: C^2 pi s^4 / (s^2 + b^2).
    energy = contrast_hu**2 * np.pi * sigma_mm**4 / (sigma_mm**2 + blur_mm**2)
    assert found == pytest.approx(np.sqrt(energy / power), rel=1e-3)


def test_d_prime_follows_contrast_and_noise():
    frequency = grid(65, 0.7)
    task, power = disc_task(frequency, 6.0, 10.0), 50 * frequency + 1
    base = d_prime_npw(task, np.ones_like(power), power, 0.02)
    assert d_prime_npw(3 * task, np.ones_like(power), power, 0.02) == pytest.approx(3 * base)
    assert d_prime_npw(task, np.ones_like(power), 4 * power, 0.02) == pytest.approx(base / 2)


def test_the_eye_that_passes_everything_equally_changes_nothing_and_a_real_one_does():
    frequency = grid(65, 0.7)
    task, power = disc_task(frequency, 6.0, 10.0), 50 * frequency + 1
    npw = d_prime_npw(task, np.ones_like(power), power, 0.02)
    flat = d_prime_npwe(task, np.ones_like(power), power, 0.02, eye=np.full_like(power, 0.3))
    assert flat == pytest.approx(npw)
    eye = eye_filter(frequency)
    weight = task**2 * eye**2
    by_hand = weight.sum() * 0.02 / np.sqrt((weight * eye**2 * power).sum())
    assert d_prime_npwe(task, np.ones_like(power), power, 0.02, eye=eye) == pytest.approx(by_hand)
    assert by_hand != pytest.approx(npw, rel=0.01)


def test_the_eye_peaks_at_four_cycles_per_degree():
    per_mm = np.linspace(0.01, 2, 4000)
    degree_mm = 500 * np.pi / 180
    assert per_mm[np.argmax(eye_filter(per_mm))] * degree_mm == pytest.approx(4, abs=0.01)
    wide = eye_filter(per_mm, magnification=2.0)
    assert per_mm[np.argmax(wide)] * degree_mm == pytest.approx(8, abs=0.01)


def test_no_noise_is_refused():
    with pytest.raises(CddnetError, match="more than zero"):
        d_prime_npw(np.ones((8, 8)), np.ones((8, 8)), np.zeros((8, 8)), 0.1)


def test_channels_are_orthonormal():
    channels = laguerre_gauss(101, 12.0).reshape(CHANNELS, -1)
    np.testing.assert_allclose(channels @ channels.T, np.eye(CHANNELS), atol=1e-6)


def test_the_trained_observer_reaches_the_ideal_one_of_its_channels(rng):
    trials = white(1500, rng)
    found = channelised_hotelling(trials, 8.0, resampling(trials.place, rng))
    ideal = ideal_d_prime(spot(), 8.0)
    error = standard_error(ideal, 1500)
    assert ideal > 1
    assert abs(found.d_prime.value - ideal) < 4 * error
    auc = stats.norm.cdf(found.d_prime.value / np.sqrt(2))
    assert abs(found.auc.value - auc) < 4 * (found.auc.high - found.auc.low) / 3.92
    # The bootstrap's interval is that of the closed form, about.
    assert (found.d_prime.high - found.d_prime.low) / 3.92 == pytest.approx(error, rel=0.35)


def test_the_observer_looks_past_a_loud_background(rng):
    """White noise and a broad bump of random height: covariance s^2 I + t^2 b b^T."""
    count, height_hu = 1500, 40.0
    centred = np.arange(SIDE) - SIDE // 2
    bump = np.exp(-(centred[:, None] ** 2 + centred**2) / (2 * 6.0**2))
    trials = white(count, rng)
    heights = height_hu * rng.standard_normal((2, count, 1, 1))
    loud = Trials(
        trials.present + heights[0] * bump, trials.absent + heights[1] * bump, trials.place
    )
    channels = laguerre_gauss(SIDE, 8.0).reshape(CHANNELS, -1)
    channels = channels - channels.mean(axis=1, keepdims=True)
    seen, broad = channels @ spot().reshape(-1), channels @ bump.reshape(-1)
    covariance = SIGMA_HU**2 * channels @ channels.T + height_hu**2 * np.outer(broad, broad)
    ideal = np.sqrt(seen @ np.linalg.solve(covariance, seen))
    matched = seen @ seen / np.sqrt(seen @ covariance @ seen)
    found = channelised_hotelling(loud, 8.0, resampling(loud.place, rng))
    error = standard_error(ideal, count)
    assert abs(found.d_prime.value - ideal) < 4 * error
    assert matched < ideal - 8 * error


def test_what_leaves_no_trace_is_chance(rng):
    trials = white(100, rng)
    found = channelised_hotelling(
        trials._replace(present=trials.absent), 8.0, resampling(trials.place, rng)
    )
    assert found.d_prime == (0, 0, 0)
    assert found.auc == (0.5, 0.5, 0.5)


def test_the_interval_covers(rng):
    # Sixty repetitions: a true 95 % fails in fewer than 11 with more than four standard errors.
    ideal, missed = ideal_d_prime(spot(), 8.0), 0
    values = []
    for _ in range(60):
        trials = white(120, rng)
        found = channelised_hotelling(trials, 8.0, resampling(trials.place, rng))
        values.append(found.d_prime.value)
        missed += not found.d_prime.low <= ideal <= found.d_prime.high
    assert missed <= 60 * 0.05 + 4 * np.sqrt(60 * 0.05 * 0.95)
    # Not by being endless: twice the true spread at most.
    assert found.d_prime.high - found.d_prime.low < 2 * 3.92 * np.std(values)


def test_without_a_lesion_chance_decides(rng):
    trials = white(300, rng, signal=0 * spot())
    found = channelised_hotelling(trials, 8.0, resampling(trials.place, rng))
    assert found.auc.low < 0.5 < found.auc.high
    assert found.d_prime.low < 0 < found.d_prime.high


def test_shuffled_labels_are_chance(rng):
    trials = white(300, rng)
    both = rng.permutation(np.concatenate([trials.present, trials.absent]))
    shuffled = Trials(both[:300], both[300:], trials.place)
    samples = resampling(trials.place, rng)
    assert channelised_hotelling(trials, 8.0, samples).auc.low > 0.6
    found = channelised_hotelling(shuffled, 8.0, samples)
    assert found.auc.low < 0.5 < found.auc.high


def test_copies_of_a_place_teach_nothing(rng):
    """Each image four times: the interval stays, and no copy trains for its own test."""
    trials = white(100, rng)
    copied = Trials(*(np.repeat(values, 4, axis=0) for values in trials))
    once = channelised_hotelling(trials, 8.0, resampling(trials.place, rng))
    found = channelised_hotelling(copied, 8.0, resampling(copied.place, rng))
    assert found.places == 100
    assert found.images == 400
    widths = [d.high - d.low for d in (once.d_prime, found.d_prime)]
    assert widths[1] == pytest.approx(widths[0], rel=0.25)
    assert found.d_prime.value == pytest.approx(once.d_prime.value, abs=widths[0] / 2)


def test_the_change_is_known_better_than_its_parts(rng):
    trials = white(200, rng)
    samples = resampling(trials.place, rng)
    extra = 5 * rng.standard_normal(trials.present.shape)
    noisier = Trials(trials.present + extra, trials.absent - extra, trials.place)
    first, second = (channelised_hotelling(t, 8.0, samples) for t in (trials, noisier))
    found, none = change(second, first), change(first, first)
    assert none == (0, 0, 0)
    assert found.value == pytest.approx(second.d_prime.value - first.d_prime.value)
    assert found.high - found.low < (first.d_prime.high - first.d_prime.low) / 2
    # Noise of 20 and 5 HU: d' falls to 1 / sqrt(1 + 1 / 16).
    assert found.low < first.d_prime.value * (1 / np.sqrt(1 + 1 / 16) - 1) < found.high


def test_scaling_all_images_changes_nothing(rng):
    trials = white(150, rng)
    samples = resampling(trials.place, rng)
    scaled = Trials(3 * trials.present + 40, 3 * trials.absent - 7, trials.place)
    first, second = (channelised_hotelling(t, 8.0, samples) for t in (trials, scaled))
    np.testing.assert_allclose(second.d_prime, first.d_prime, rtol=1e-9)
    assert second.auc == first.auc


@pytest.mark.parametrize(("images", "places"), [(99, 99), (400, 19), (0, 0)])
def test_too_few_are_refused(images, places, rng):
    with pytest.raises(CddnetError, match=f"{images} images .* at {places} places"):
        resampling(np.arange(images) % max(places, 1), rng)


def test_a_hundred_are_taken_with_a_warning_and_two_hundred_without(rng):
    for count, warned in ((100, True), (200, False)):
        trials = white(count, rng)
        found = channelised_hotelling(trials, 8.0, resampling(trials.place, rng))
        assert ("read with care" in found.within) == warned


def test_images_without_noise_and_stacks_that_differ_are_refused(rng):
    trials = white(100, rng)
    samples = resampling(trials.place, rng)
    still = Trials(0 * trials.absent + spot(), 0 * trials.absent, trials.place)
    with pytest.raises(CddnetError, match="do not vary"):
        channelised_hotelling(still, 8.0, samples)
    with pytest.raises(CddnetError, match="equal numbers"):
        channelised_hotelling(trials._replace(absent=trials.absent[:50]), 8.0, samples)


def test_laguerre_polynomials_are_those_of_the_recurrence():
    # (j + 1) L_{j+1} = (2 j + 1 - x) L_j - j L_{j-1}, apart from the library's own evaluation.
    side, width_px = 21, 6.0
    centred = np.arange(side) - 10.0
    x = 2 * np.pi * (centred[:, None] ** 2 + centred**2) / width_px**2
    made = [np.ones_like(x), 1 - x]
    for j in range(1, CHANNELS - 1):
        made.append(((2 * j + 1 - x) * made[j] - j * made[j - 1]) / (j + 1))
    expected = np.stack(made) * np.sqrt(2) / width_px * np.exp(-x / 2)
    np.testing.assert_allclose(laguerre_gauss(side, width_px), expected, atol=1e-10)


def test_a_disc_at_zero_frequency_has_its_content():
    near, at = disc_task(np.array([1e-9, 0.0]), 7.0, 12.0)
    assert at == pytest.approx(12 * np.pi * 3.5**2)
    assert near == pytest.approx(at)


def test_the_eye_is_half_a_metre_away_and_sees_true_size_unless_said_otherwise():
    per_mm = np.linspace(0.05, 3, 60)
    cycles = per_mm * 500 * np.pi / 180
    # Burgess 1994: f^1.3 exp(-b f^2) with its top, here 1, at 4 cycles per degree.
    shape = (cycles / 4) ** 1.3 * np.exp(0.65 * (1 - (cycles / 4) ** 2))
    assert eye_filter(per_mm) == pytest.approx(shape)
    assert eye_filter(per_mm, viewing_mm=250, magnification=0.5) == pytest.approx(shape)


def test_intervals_are_as_wide_as_the_resamples_spread(rng):
    trials = white(120, rng)
    found = channelised_hotelling(trials, 5.0, resampling(trials.place, rng))
    assert found.resampled.shape == (200,)
    reach = stats.norm.ppf(0.975) * found.resampled.std(ddof=1)
    assert found.d_prime.high - found.d_prime.value == pytest.approx(reach, rel=1e-6)
    assert found.d_prime.value - found.d_prime.low == pytest.approx(reach, rel=1e-6)


@pytest.mark.parametrize("places", [20, 21, 34])
def test_half_of_the_places_trains_and_the_others_test(places, rng):
    place = np.arange(150) % places
    samples = resampling(place, rng)
    assert samples.train.shape == (10, 150)
    for half in samples.train:
        assert len(set(place[half])) == places // 2
        assert not set(place[half]) & set(place[~half])
    assert samples.times.shape == (201, 150)
    assert (samples.times[0] == 1).all()
    first_of_place = samples.times[1:, :places]
    assert (first_of_place.sum(axis=1) == places).all()
    assert np.array_equal(samples.times, samples.times[:, place])


def test_a_background_that_both_share_changes_nothing(rng):
    trials = white(200, rng)
    samples = resampling(trials.place, rng)
    found = channelised_hotelling(trials, 5.0, samples)
    vessel = spot(height_hu=70.0, radius_px=3.0)
    same = channelised_hotelling(
        Trials(trials.present + vessel, trials.absent + vessel, trials.place), 5.0, samples
    )
    assert same.d_prime == pytest.approx(found.d_prime, rel=1e-6)
    assert same.auc == pytest.approx(found.auc, rel=1e-6)
