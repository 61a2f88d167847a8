"""Noise in flat tissue: its level and its power spectrum."""

# Shapes: H row, W column, N region, S side of a region, P pixel of a region, F frequency.

from __future__ import annotations

from collections.abc import Iterable
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
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), _SMOOTHING)
    tissue = (smooth > tissue_hu[0]) & (smooth < tissue_hu[1])
    if min(hu.shape) < side:
        return np.empty((0, 2), np.intp)
    # A region is all tissue where its sum, four reads of the summed table, is its area.
    table = np.pad(tissue.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    inside = table[side:, side:] - table[:-side, side:] - table[side:, :-side]
    inside += table[:-side, :-side]
    step = step or side // 2
    return np.argwhere(inside[::step, ::step] == side**2) * step


def flat_regions(
    hu: NDArray[np.floating], corners: NDArray[np.intp], side: int
) -> NDArray[np.float64]:
    """Regions (N, S, S) of a slice (H, W) at the corners (N, 2), less a quadratic trend of each."""
    regions = np.empty((len(corners), side * side))
    for region, (row, column) in zip(regions, corners, strict=True):
        region[:] = hu[row : row + side, column : column + side].reshape(-1)
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


def _mode(values: NDArray[np.float64]) -> float:
    grid = np.linspace(values.min(), np.percentile(values, 90), 512)
    return float(grid[np.argmax(stats.gaussian_kde(values)(grid))])
