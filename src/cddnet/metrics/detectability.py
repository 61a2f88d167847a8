"""Detectability of low-contrast lesions: from task, TTF and NPS, and by an observer on images.

A linear filter changes noise and lesion alike and leaves detectability as it was; fidelity to the
full dose rewards it all the same.
"""

# Shapes: N image, S side of a region, C channel, P split, R resample (the first is the data).

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from cddnet.errors import CddnetError

Floats = NDArray[np.float64]

CHANNELS = 5
FEWEST_IMAGES = 100
ENOUGH_IMAGES = 200
FEWEST_PLACES = 20

_SPLITS = 10
_RESAMPLES = 200
_NORMAL_95 = 1.959964

# Burgess, J. Opt. Soc. Am. A 11:1237, 1994: f^1.3 exp(-b f^2) with its peak at 4 cycles per degree.
_EYE_EXPONENT = 1.3
_EYE_PEAK_PER_DEGREE = 4.0
_EYE_DECAY = _EYE_EXPONENT / (2 * _EYE_PEAK_PER_DEGREE**2)


class Estimate(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


class Trials(NamedTuple):
    """Images with the lesion in their middle, and without.

    present, absent: (N, S, S) HU.  place: (N,) the same number for images that share a background;
    they are split and resampled together.  The pair (present[i], absent[i]) is of one place.
    """

    present: NDArray[np.floating]
    absent: NDArray[np.floating]
    place: NDArray[np.integer]


class Resampling(NamedTuple):
    """train: (P, N) bool, the other images test.  times: (R, N), how often each image counts."""

    train: NDArray[np.bool_]
    times: NDArray[np.int64]


class Detection(NamedTuple):
    """What an observer reaches.  images: of each class.  places: of different background.
    resampled: d' of each bootstrap sample (R - 1,).
    """

    d_prime: Estimate
    auc: Estimate
    images: int
    places: int
    resampled: Floats

    @property
    def within(self) -> str:
        """What it was measured on, in words, and a warning where that is little."""
        text = f"{self.images} + {self.images} images at {self.places} places"
        if self.images >= ENOUGH_IMAGES:
            return text
        return f"{text}; fewer than {ENOUGH_IMAGES} + {ENOUGH_IMAGES}, read with care"


def disc_task(frequency_per_mm: Floats, diameter_mm: float, contrast_hu: float) -> Floats:
    """Fourier transform of a disc, HU mm^2, at radial frequencies of any shape.

    Closed form C a J1(2 pi a f) / f with radius a.
    """
    radius_mm = diameter_mm / 2
    argument = 2 * np.pi * radius_mm * np.asarray(frequency_per_mm, np.float64)
    safe = np.where(argument == 0, 1.0, argument)
    shape = np.where(argument == 0, 1.0, 2 * special.j1(safe) / safe)
    task: Floats = contrast_hu * np.pi * radius_mm**2 * shape
    return task


def gaussian_task(frequency_per_mm: Floats, fwhm_mm: float, contrast_hu: float) -> Floats:
    """Fourier transform of a Gaussian of full width at half maximum fwhm_mm, HU mm^2."""
    sigma_mm = fwhm_mm / np.sqrt(8 * np.log(2))
    squared = np.square(frequency_per_mm, dtype=np.float64) * sigma_mm**2
    task: Floats = contrast_hu * 2 * np.pi * sigma_mm**2 * np.exp(-2 * np.pi**2 * squared)
    return task


def eye_filter(
    frequency_per_mm: Floats, *, viewing_mm: float = 500.0, magnification: float = 1.0
) -> Floats:
    """Response of the eye, largest value 1, at frequencies of the object.

    viewing_mm: from eye to screen; magnification: of the image on the screen over the object.
    Source: Burgess, J. Opt. Soc. Am. A 11:1237, 1994, peak at 4 cycles per degree.
    """
    per_degree = np.asarray(frequency_per_mm, np.float64) / magnification * np.pi / 180 * viewing_mm

    def response(cycles: Floats) -> Floats:
        shape: Floats = cycles**_EYE_EXPONENT * np.exp(-_EYE_DECAY * cycles**2)
        return shape

    return response(per_degree) / response(np.array(_EYE_PEAK_PER_DEGREE))


def d_prime_npw(
    task: Floats, ttf: Floats, noise_power: Floats, frequency_step_per_mm: float
) -> float:
    """Detectability index d' of the non-prewhitening observer.

    Parameters: task (S, S) HU mm^2, ttf (S, S) dimensionless and noise_power (S, S) HU^2 mm^2 on
    one frequency grid, 1 / (S pixel) apart; order as the caller's.  A linear system is assumed: for
    a network this is indicative at most, and the observer on images decides.
    Source: Burgess, J. Opt. Soc. Am. A 16:633, 1999; AAPM report TG-233 (2019).
    """
    return d_prime_npwe(task, ttf, noise_power, frequency_step_per_mm, eye=np.ones(()))


def d_prime_npwe(
    task: Floats, ttf: Floats, noise_power: Floats, frequency_step_per_mm: float, *, eye: Floats
) -> float:
    """As `d_prime_npw`, seen through an eye filter (S, S)."""
    seen = np.square(np.abs(task)) * np.square(ttf) * np.square(eye)
    step = frequency_step_per_mm**2
    signal, noise = seen.sum() * step, (seen * np.square(eye) * noise_power).sum() * step
    if not noise > 0:
        raise CddnetError(
            f"the noise in the band of the task is {noise:g}, expected more than zero; "
            "measure the noise power on images with noise."
        )
    return float(signal / np.sqrt(noise))


def laguerre_gauss(side: int, width_px: float, channels: int = CHANNELS) -> Floats:
    """Channels (C, S, S): sqrt(2)/h exp(-pi r^2/h^2) L_j(2 pi r^2/h^2) with h = width_px.

    Source: Gallas and Barrett, J. Opt. Soc. Am. A 20:1725, 2003.
    """
    centred = np.arange(side) - (side - 1) / 2
    reach = np.pi * (centred[:, None] ** 2 + centred**2) / width_px**2
    envelope = np.sqrt(2) / width_px * np.exp(-reach)
    return np.stack([envelope * special.eval_laguerre(j, 2 * reach) for j in range(channels)])


def resampling(place: NDArray[np.integer], rng: np.random.Generator) -> Resampling:
    """Ten random halves to train on, and 200 bootstrap samples, both of whole places (N,).

    Rows observed with one resampling can be compared, see `change`.
    Raises: CddnetError for fewer than 100 images or 20 places.
    """
    images, (_, number) = len(place), np.unique(place, return_inverse=True)
    places = int(number.max()) + 1 if images else 0
    if images < FEWEST_IMAGES or places < FEWEST_PLACES:
        raise CddnetError(
            f"detectability from {images} images with and without a lesion at {places} places; "
            f"at least {FEWEST_IMAGES} and {FEWEST_PLACES} are needed, {ENOUGH_IMAGES} images are "
            "recommended: give more slices or realisations of the noise."
        )
    train = np.zeros((_SPLITS, places), np.bool_)
    for half in train:
        half[rng.permutation(places)[: places // 2]] = True
    drawn = rng.multinomial(places, np.full(places, 1 / places), size=_RESAMPLES)
    times = np.concatenate([np.ones((1, places), np.int64), drawn])
    return Resampling(train[:, number], times[:, number])


def channelised_hotelling(trials: Trials, width_px: float, samples: Resampling) -> Detection:
    """Laguerre-Gauss channelised Hotelling observer on images less their means.

    Trained on one half and tested on the other, mean over the splits; the interval is 1.96 standard
    deviations of the bootstrap over places, training included. Half of the images trains, so d' is
    a little low, equally for all rows.  AUC by pairs (Mann-Whitney).  Flat images are chance.
    Raises: CddnetError where the stacks differ, or show a lesion without any noise.
    """
    shapes = {np.shape(trials.present), np.shape(trials.absent)}
    if len(shapes) != 1 or len(trials.place) != len(trials.present):
        raise CddnetError(
            f"images with the lesion {np.shape(trials.present)}, without "
            f"{np.shape(trials.absent)}, places {np.shape(trials.place)}; give equal numbers."
        )
    channels = laguerre_gauss(trials.present.shape[-1], width_px).reshape(CHANNELS, -1)
    present, absent = (_seen(images, channels) for images in (trials.present, trials.absent))
    if present.any() or absent.any():
        found = [_observe(present, absent, half, samples.times) for half in samples.train]
        d_prime, auc = np.mean(found, axis=0)
    else:
        d_prime, auc = np.zeros(len(samples.times)), np.full(len(samples.times), 0.5)
    return Detection(
        d_prime=_about(d_prime[0], d_prime[1:]),
        auc=_bounded(_about(auc[0], auc[1:])),
        images=len(present),
        places=len(np.unique(trials.place)),
        resampled=d_prime[1:],
    )


def change(first: Detection, second: Detection) -> Estimate:
    """Difference in d', the first minus the second, both observed with one resampling.

    Same places and the same noise make the difference far better known than either.
    """
    value = first.d_prime.value - second.d_prime.value
    return _about(value, first.resampled - second.resampled)


def _seen(images: NDArray[np.floating], channels: Floats) -> Floats:
    flat = images.reshape(len(images), -1).astype(np.float64)
    outputs: Floats = (flat - flat.mean(axis=1, keepdims=True)) @ channels.T
    return outputs


def _observe(
    present: Floats, absent: Floats, train: NDArray[np.bool_], times: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """Both d' and AUC (R,) of one split."""
    weights = times[:, train]
    mean_1, covariance_1 = _moments(present[train], weights)
    mean_0, covariance_0 = _moments(absent[train], weights)
    covariance = (covariance_1 + covariance_0) / 2
    if not (np.linalg.eigvalsh(covariance[0])[0] > 0):
        raise CddnetError(
            "the images do not vary in every channel of the observer, so d' is not defined; "
            "give images with noise."
        )
    template = np.linalg.solve(covariance, (mean_1 - mean_0)[..., None])[..., 0]
    score_1, score_0 = template @ present[~train].T, template @ absent[~train].T
    tested = times[:, ~train].astype(np.float64)
    total = tested.sum(axis=1)
    average_1, average_0 = ((tested * s).sum(axis=1) / total for s in (score_1, score_0))
    spread_1, spread_0 = (
        (tested * (s - m[:, None]) ** 2).sum(axis=1) / (total - 1)
        for s, m in ((score_1, average_1), (score_0, average_0))
    )
    # Where lesions leave no trace the template is empty, and so is every score.
    spread = np.sqrt((spread_1 + spread_0) / 2)
    d_prime = np.where(spread > 0, average_1 - average_0, 0.0) / np.where(spread > 0, spread, 1.0)
    auc = [_wins(*values) for values in zip(score_1, score_0, tested, strict=True)]
    return d_prime, np.array(auc)


def _moments(outputs: Floats, weights: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Weighted means (R, C) and covariances (R, C, C)."""
    total = weights.sum(axis=1)[:, None]
    mean = weights @ outputs / total
    products = (outputs[:, :, None] * outputs[:, None, :]).reshape(len(outputs), -1)
    second = (weights @ products / total).reshape(len(weights), CHANNELS, CHANNELS)
    covariance = (second - mean[:, :, None] * mean[:, None, :]) * (total / (total - 1))[..., None]
    return mean, covariance


def _wins(score_1: Floats, score_0: Floats, times: Floats) -> float:
    """Share of pairs in which the image with the lesion scores higher; ties count half."""
    order = np.argsort(score_0)
    below = np.concatenate([[0.0], np.cumsum(times[order])])
    ranked = score_0[order]
    less, not_more = (below[np.searchsorted(ranked, score_1, side)] for side in ("left", "right"))
    return float(times @ (less + not_more) / (2 * times.sum() ** 2))


def _about(value: float, resampled: Floats) -> Estimate:
    reach = _NORMAL_95 * float(resampled.std(ddof=1))
    return Estimate(float(value), float(value) - reach, float(value) + reach)


def _bounded(share: Estimate) -> Estimate:
    return Estimate(share.value, max(share.low, 0.0), min(share.high, 1.0))
