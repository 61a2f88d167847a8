"""Whether a predicted standard deviation tells the truth: coverage of intervals, rank by block."""

# Shapes: H row, W column, N block.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from cddnet.metrics._body import body_mask

Mask = NDArray[np.bool_]

# Half widths of the intervals in standard deviations, and the share of a normal error inside.
INTERVALS = {"68 %": 1.0, "95 %": 1.959964}

# Air is outside the body and inside the circle that is scanned: what lies beyond is filled in.
TISSUES_HU = {
    "air": (-1100.0, -970.0),
    "lung": (-950.0, -700.0),
    "fat": (-130.0, -70.0),
    "soft tissue": (0.0, 140.0),
    "bone": (300.0, 1500.0),
}
_SMOOTHING = 2.0
_RIM = 2
BLOCK = 16


class Blocks(NamedTuple):
    """Root mean squares over the blocks of a slice: of the error and of what was predicted (N,)."""

    error_hu: NDArray[np.float64]
    predicted_hu: NDArray[np.float64]


def coverage(
    error_hu: NDArray[np.floating], sigma_hu: NDArray[np.floating], half_width: float
) -> float:
    """Share of errors within `half_width` predicted standard deviations, bounds included.

    Parameters: errors and their predicted standard deviations in HU, of one shape.
    Raises: ValueError for other shapes, without values or for a negative standard deviation.
    """
    if error_hu.shape != sigma_hu.shape or error_hu.size == 0:
        raise ValueError(f"errors {error_hu.shape} and predictions {sigma_hu.shape} do not fit")
    if (sigma_hu < 0).any():
        raise ValueError("a standard deviation below zero was predicted")
    return float(np.mean(np.abs(error_hu) <= half_width * sigma_hu))


def tissues(reference_hu: NDArray[np.floating]) -> dict[str, Mask]:
    """Where a slice (H, W) shows each tissue of TISSUES_HU, one pixel from others; edges count.

    Smoothed by two pixels first, so that the noise of the reference does not choose its pixels.
    """
    smooth = ndimage.gaussian_filter(reference_hu.astype(np.float32), _SMOOTHING)
    body = body_mask(reference_hu)
    places = dict.fromkeys(TISSUES_HU, body) | {"air": _scanned(body.shape) & ~body}
    return {
        name: ndimage.binary_erosion(places[name] & (smooth >= low) & (smooth <= high))
        for name, (low, high) in TISSUES_HU.items()
    }


def blocks(
    error_hu: NDArray[np.floating], sigma_hu: NDArray[np.floating], inside: Mask, side: int = BLOCK
) -> Blocks:
    """Blocks of `side` pixels that lie whole in a mask (H, W); the rim that fills none is left.

    Parameters: error_hu and sigma_hu (H, W).
    """
    whole = _block_means(inside.astype(np.float64), side) == 1
    error, sigma = (
        np.sqrt(_block_means(np.square(values, dtype=np.float64), side)[whole])
        for values in (error_hu, sigma_hu)
    )
    return Blocks(error, sigma)


def rank_correlation(found: Blocks) -> float:
    """Spearman's rank correlation of predicted and found error over blocks, 1 at best.

    Raises: ValueError below three blocks or where one of both is the same everywhere.
    """
    if len(found.error_hu) < 3:
        raise ValueError(f"{len(found.error_hu)} blocks have no rank correlation; give 3 or more")
    if np.ptp(found.error_hu) == 0 or np.ptp(found.predicted_hu) == 0:
        raise ValueError("error or prediction is the same in all blocks, so they have no ranks")
    return float(stats.spearmanr(found.predicted_hu, found.error_hu).statistic)


def _scanned(shape: tuple[int, ...]) -> Mask:
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in shape)
    inside: Mask = np.hypot(rows[:, None], columns) < min(shape) / 2 - _RIM
    return inside


def _block_means(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    height, width = (length // side for length in values.shape)
    cut = values[: height * side, : width * side].reshape(height, side, width, side)
    mean: NDArray[np.float64] = cut.mean(axis=(1, 3))
    return mean
