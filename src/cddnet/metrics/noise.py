"""Noise in flat tissue."""

# Shapes: H row, W column, K region, P pixel of a region.

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
    reference, inserted = [], []
    for full_dose, low_dose in pairs:
        corners = _flat_regions(full_dose)
        reference.append(_detrended_std(full_dose, corners))
        inserted.append(_detrended_std(low_dose - full_dose, corners))
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


def _flat_regions(hu: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Corners of regions, half a side apart, whose smoothed pixels are all soft tissue."""
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), _SMOOTHING)
    tissue = (smooth > _TISSUE_HU[0]) & (smooth < _TISSUE_HU[1])
    step = _SIDE // 2
    return [
        (row, column)
        for row in range(0, hu.shape[0] - _SIDE + 1, step)
        for column in range(0, hu.shape[1] - _SIDE + 1, step)
        if tissue[row : row + _SIDE, column : column + _SIDE].all()
    ]


def _detrended_std(hu: NDArray[np.floating], corners: list[tuple[int, int]]) -> NDArray[np.float64]:
    if not corners:
        return np.empty(0)
    regions = np.stack(
        [hu[row : row + _SIDE, column : column + _SIDE].reshape(-1) for row, column in corners]
    ).astype(np.float64)
    axis = np.linspace(-1, 1, _SIDE)
    y, x = (grid.reshape(-1) for grid in np.meshgrid(axis, axis, indexing="ij"))
    trend, _ = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1))
    residual = regions - (regions @ trend) @ trend.T
    freedom = _SIDE**2 - trend.shape[1]
    deviation: NDArray[np.float64] = np.sqrt(np.square(residual).sum(axis=1) / freedom)
    return deviation


def _mode(values: NDArray[np.float64]) -> float:
    grid = np.linspace(values.min(), np.percentile(values, 90), 512)
    return float(grid[np.argmax(stats.gaussian_kde(values)(grid))])
