"""Noise in flat tissue: its map, its level and its power spectrum."""

# Shapes: H row, W column, N region, S side of a region, F frequency, R repeat.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

_SIDE = 15
_TISSUE_HU = (0.0, 200.0)
_SMOOTHING = 2.0
_QUIET = 1.25
_FEWEST = 10
_TREND_TERMS = 6

# A window of a noise map, and the most of its values that a mode is worked out from.
_WINDOW_MM = 9.0
_VALUES = 20_000

# From low to high frequencies, in cycles per mm; the last has no end below Nyquist.
BANDS_PER_MM = ((0.0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, float("inf")))


class RadialPower(NamedTuple):
    """Noise power over the radius of the frequency, which runs in steps of one over the region.

    frequency_per_mm: (F,) from 0 to Nyquist.  power: (..., F) HU^2 mm^2.
    """

    frequency_per_mm: NDArray[np.float64]
    power: NDArray[np.float64]


class InsertedNoise(NamedTuple):
    """Noise in flat soft tissue: of the reference, and inserted into it; ratio is of variances."""

    reference_hu: float
    inserted_hu: float
    ratio: float
    regions: int

    @property
    def noise_free_gain_db(self) -> float:
        """What an output without any noise gains over the low dose, in dB: 10 log10 R."""
        return float(10 * np.log10(self.ratio))


def inserted_noise(
    pairs: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]],
) -> InsertedNoise:
    """Noise of full-dose slices and of what was inserted into them.

    Parameters: pairs of (full_dose, low_dose), each (H, W) HU, of one patient.
    Both are root mean squares of the standard deviation over the same flat 15 x 15 regions of soft
    tissue after a quadratic detrend. Regions above 1.25 times the reference's mode are left out:
    they hold vessels and edges (mode as noise level: Christianson et al., AJR 205:W63, 2015).
    Raises: ValueError where fewer than ten flat regions are found.
    """
    reference: list[NDArray[np.float64]] = []
    inserted: list[NDArray[np.float64]] = []
    for full_dose, low_dose in pairs:
        corners = flat_corners(full_dose, _SIDE)
        for found, hu in ((reference, full_dose), (inserted, low_dose - full_dose)):
            found.append(detrended_std(flat_regions(hu, corners, _SIDE)))
    reference_std, inserted_std = np.concatenate(reference), np.concatenate(inserted)
    if reference_std.size < _FEWEST:
        raise ValueError(
            f"{reference_std.size} flat regions of soft tissue found, {_FEWEST} are needed"
        )
    quiet = reference_std <= _QUIET * _mode(reference_std)
    level, added = (
        float(np.sqrt(np.mean(stds[quiet] ** 2))) for stds in (reference_std, inserted_std)
    )
    return InsertedNoise(level, added, (added / level) ** 2, int(quiet.sum()))


def flat_corners(
    hu: NDArray[np.floating],
    side: int,
    *,
    tissue_hu: tuple[float, float] = _TISSUE_HU,
    step: int | None = None,
) -> NDArray[np.intp]:
    """Corners (N, 2) of the regions of a slice (H, W) whose smoothed pixels are all soft tissue.

    side of a region and step between corners in pixels, half a side unless said otherwise.
    """
    return corners_inside(_smooth_tissue(hu, tissue_hu), side, step=step)


def corners_inside(
    mask: NDArray[np.bool_], side: int, *, step: int | None = None
) -> NDArray[np.intp]:
    """Corners (N, 2) of the regions of `side` pixels that lie whole in a mask (H, W)."""
    if min(mask.shape) < side:
        return np.empty((0, 2), np.intp)
    # A region is all inside where its sum, four reads of the summed table, is its area.
    table = np.pad(mask.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    inside = table[side:, side:] - table[:-side, side:] - table[side:, :-side]
    inside += table[:-side, :-side]
    step = step or side // 2
    return np.argwhere(inside[::step, ::step] == side**2) * step


def cut_regions(
    hu: NDArray[np.floating], corners: NDArray[np.intp], side: int
) -> NDArray[np.float64]:
    """Regions (N, S, S) of a slice (H, W) at the corners (N, 2), as they are."""
    regions = np.empty((len(corners), side, side))
    for region, (row, column) in zip(regions, corners, strict=True):
        region[:] = hu[row : row + side, column : column + side]
    return regions


def flat_regions(
    hu: NDArray[np.floating], corners: NDArray[np.intp], side: int
) -> NDArray[np.float64]:
    """Regions (N, S, S) of a slice (H, W) at the corners (N, 2), less a quadratic trend of each."""
    regions = cut_regions(hu, corners, side).reshape(-1, side * side)
    axis = np.linspace(-1, 1, side)
    y, x = (grid.reshape(-1) for grid in np.meshgrid(axis, axis, indexing="ij"))
    trend, _ = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1))
    regions -= (regions @ trend) @ trend.T
    return regions.reshape(-1, side, side)


def detrended_std(regions: NDArray[np.floating]) -> NDArray[np.float64]:
    """Standard deviation (N,) of regions (N, S, S) that lost a quadratic trend."""
    freedom = regions.shape[1] * regions.shape[2] - _TREND_TERMS
    deviation: NDArray[np.float64] = np.sqrt(np.square(regions).sum(axis=(1, 2)) / freedom)
    return deviation


def noise_map_hu(
    hu: NDArray[np.floating], pixel_mm: float, *, window_mm: float = _WINDOW_MM
) -> NDArray[np.float64]:
    """Standard deviation around each pixel of a slice (H, W): (H, W) HU, of a square window.

    Edges and vessels count, so its mode tells the level, not its mean. Noise that is slower than
    the window is missed.
    """
    side = window_pixels(pixel_mm, window_mm)
    level = hu - np.mean(hu, dtype=np.float64)
    mean = ndimage.uniform_filter(level, side)
    square = ndimage.uniform_filter(level * level, side)
    freedom = (side**2 - 1) / side**2
    deviation: NDArray[np.float64] = np.sqrt(np.clip(square - mean**2, 0, None) / freedom)
    return deviation


def window_pixels(pixel_mm: float, window_mm: float = _WINDOW_MM) -> int:
    """Side of the window of a noise map in pixels, odd."""
    return 2 * max(1, round(window_mm / pixel_mm / 2)) + 1


def soft_tissue(
    hu: NDArray[np.floating], side: int, *, tissue_hu: tuple[float, float] = _TISSUE_HU
) -> NDArray[np.bool_]:
    """Pixels (H, W) of a slice whose window of `side` pixels, smoothed, is all soft tissue."""
    tissue = _smooth_tissue(hu, tissue_hu)
    whole: NDArray[np.bool_] = ndimage.minimum_filter(tissue, side, mode="constant", cval=0)
    return whole


def global_noise_level_hu(deviations: NDArray[np.floating]) -> float:
    """Mode of the values of noise maps in soft tissue (any shape), of one patient.

    Raises: ValueError without values.
    Source: Christianson et al., AJR 205:W63, 2015.
    """
    values = np.asarray(deviations, np.float64).reshape(-1)
    if values.size == 0:
        raise ValueError("no soft tissue to measure the noise in")
    values = values[:: -(-values.size // _VALUES)]
    # Windows with edges in them would widen the density's kernel.
    values = values[values <= 2 * np.median(values)]
    if np.ptp(values) <= 1e-9 * values.max():
        return float(values[0])
    return _mode(values)


def ensemble_noise(repeats: NDArray[np.floating]) -> NDArray[np.float64]:
    """Noise (R, ...) of repeated images (R, ...): each less the mean of all, times sqrt(n/(n-1)).

    What does not change is gone, whatever its shape; the variance is that of one image.
    Raises: ValueError below two repeats.
    """
    count = len(repeats)
    if count < 2:
        raise ValueError(f"{count} image has no repeats to tell its noise from; give at least 2")
    noise = repeats - repeats.mean(axis=0, dtype=np.float64)
    scaled: NDArray[np.float64] = noise * np.sqrt(count / (count - 1))
    return scaled


def noise_power_spectrum(regions: NDArray[np.floating], pixel_mm: float) -> NDArray[np.float64]:
    """Two-dimensional noise power spectrum of each region.

    Parameters: regions (..., H, W) HU, without their means or trends; pixel_mm square pixel pitch.
    Returns: (..., H, W) HU^2 mm^2, zero frequency at [0, 0]; its integral over the frequencies is
    the mean square of the region.  The spectrum of a slice is the mean over its regions.
    Source: ICRU Report 87; Siewerdsen et al., Med. Phys. 29:2655, 2002.
    """
    height, width = regions.shape[-2:]
    transform = np.abs(np.fft.fft2(regions))
    spectrum: NDArray[np.float64] = transform**2 * (pixel_mm**2 / (height * width))
    return spectrum


def radial_power(spectrum: NDArray[np.floating], pixel_mm: float) -> RadialPower:
    """Means over rings of square noise power spectra (..., S, S), one frequency step wide.

    Raises: ValueError where the spectrum is not square.
    """
    side = spectrum.shape[-1]
    if spectrum.shape[-2] != side:
        raise ValueError(f"a spectrum of shape {spectrum.shape[-2:]} is not square")
    cycles = np.fft.fftfreq(side, 1 / side)
    ring = np.rint(np.hypot(cycles[:, None], cycles)).astype(np.intp).reshape(-1)
    rings = side // 2 + 1
    member = (ring[:, None] == np.arange(rings)).astype(np.float64)
    mean = spectrum.reshape(*spectrum.shape[:-2], -1) @ (member / member.sum(axis=0))
    return RadialPower(np.arange(rings) / (side * pixel_mm), mean)


def mean_frequency_per_mm(radial: RadialPower) -> NDArray[np.float64]:
    """Mean frequency (...) of radial noise power (..., F): sum f P over sum P, up to Nyquist.

    The zero frequency, which the trend took, does not count.
    """
    power, frequency = radial.power[..., 1:], radial.frequency_per_mm[1:]
    mean: NDArray[np.float64] = np.asarray(power @ frequency / power.sum(axis=-1))
    return mean


def peak_frequency_per_mm(radial: RadialPower) -> float:
    """Frequency of the most power (F,) above zero, after smoothing with weights 1, 2 and 1.

    A parabola through the largest value and its neighbours places it between two steps. Flat or
    falling spectra have their peak at an end of the range.
    """
    power = radial.power[1:]
    padded = np.pad(power, 1, mode="edge")
    smooth = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    top = int(np.argmax(smooth))
    step = float(radial.frequency_per_mm[1])
    peak = float(radial.frequency_per_mm[1 + top])
    if not 0 < top < len(smooth) - 1:
        return peak
    below, at, above = smooth[top - 1 : top + 2].tolist()
    return peak + step * float((above - below) / (2 * (2 * at - below - above)))


def band_ratios(
    radial: RadialPower,
    reference: RadialPower,
    bands_per_mm: Sequence[tuple[float, float]] = BANDS_PER_MM,
) -> tuple[float | None, ...]:
    """Noise power (F,) over that of a reference in bands of frequency; None for an empty band.

    Powers are integrals over both frequency axes, where a ring counts by its radius.
    Raises: ValueError where the frequencies differ.
    """
    frequency = radial.frequency_per_mm
    if not np.array_equal(frequency, reference.frequency_per_mm):
        raise ValueError("two noise power spectra have different frequencies and no ratio")
    ratios: list[float | None] = []
    for low, high in bands_per_mm:
        weight = frequency * ((frequency > 0) & (frequency >= low) & (frequency < high))
        basis = float(weight @ reference.power)
        ratios.append(float(weight @ radial.power) / basis if basis > 0 else None)
    return tuple(ratios)


def _smooth_tissue(hu: NDArray[np.floating], tissue_hu: tuple[float, float]) -> NDArray[np.bool_]:
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), _SMOOTHING)
    tissue: NDArray[np.bool_] = (smooth > tissue_hu[0]) & (smooth < tissue_hu[1])
    return tissue


def _mode(values: NDArray[np.float64]) -> float:
    grid = np.linspace(values.min(), np.percentile(values, 90), 512)
    return float(grid[np.argmax(stats.gaussian_kde(values)(grid))])
