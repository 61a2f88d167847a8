"""HU bias: what a method does to the mean of each tissue."""

# Shapes: H row, W column, T test image.

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddnet.metrics._body import body_mask
from cddnet.metrics.noise import window_pixels

Mask = NDArray[np.bool_]

# Never air: what is clipped at its lower end has a biased mean.
TISSUES_HU = {
    "lung": (-950.0, -700.0),
    "fat": (-130.0, -70.0),
    "soft": (30.0, 75.0),
    "organ": (80.0, 140.0),
    "bone": (300.0, 1500.0),
}
_SMOOTHING = 2.0
# Two pixels, and one by which smoothing moves an edge.
_EROSION = 3


class TissueMeans(NamedTuple):
    """Means over the pixels of a tissue: of the reference, and of each test image (T,)."""

    pixels: int
    reference_hu: float
    test_hu: NDArray[np.float64]

    @property
    def bias_hu(self) -> NDArray[np.float64]:
        """(T,) test less reference."""
        return self.test_hu - self.reference_hu


class Line(NamedTuple):
    """Least squares: measured = slope truth + intercept_hu; r_squared of determination."""

    slope: float
    intercept_hu: float
    r_squared: float
    largest_deviation_hu: float


def tissue_masks(reference: NDArray[np.floating]) -> dict[str, Mask]:
    """Where a slice (H, W) shows each tissue of TISSUES_HU, at least two pixels from others.

    Smoothed by two pixels first: what was chosen by its own noise would regress to the mean in any
    image of less noise, and look like bias. Where a tissue lies near the end of its range some of
    that stays: of -13 HU at 35 HU and white noise of 25 HU, -2; of 12 HU, nothing. The body alone
    counts, not foam of a table.
    """
    smooth = ndimage.gaussian_filter(reference.astype(np.float32), _SMOOTHING)
    body = body_mask(reference)
    masks = {}
    for name, (low, high) in TISSUES_HU.items():
        inside = body & (smooth >= low) & (smooth <= high)
        masks[name] = ndimage.binary_erosion(inside, iterations=_EROSION)
    return masks


def tissue_means(
    slices: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]],
) -> dict[str, TissueMeans]:
    """Means of each tissue over the slices of a patient; tissues that are not seen are left out.

    Parameters: slices of (reference (H, W), tests (T, H, W)) HU.
    """
    pixels = dict.fromkeys(TISSUES_HU, 0)
    sums: dict[str, NDArray[np.float64]] = {}
    for reference, tests in slices:
        images = np.concatenate([reference[None], tests])
        for name, mask in tissue_masks(reference).items():
            pixels[name] += int(mask.sum())
            total = images[:, mask].sum(axis=1, dtype=np.float64)
            sums[name] = sums.get(name, 0.0) + total
    return {
        name: TissueMeans(count, float(sums[name][0] / count), sums[name][1:] / count)
        for name, count in pixels.items()
        if count
    }


def linearity(truth_hu: NDArray[np.floating], measured_hu: NDArray[np.floating]) -> Line:
    """Line through means (N,) of a test over those of the truth or a reference.

    Raises: ValueError below two different true values.
    """
    truth, measured = (np.asarray(values, np.float64) for values in (truth_hu, measured_hu))
    if np.unique(truth).size < 2:
        raise ValueError("a line needs at least two materials of different HU")
    spread = truth - truth.mean()
    slope = float(spread @ measured / (spread @ spread))
    intercept = float(measured.mean() - slope * truth.mean())
    rest = measured - (slope * truth + intercept)
    total = measured - measured.mean()
    scale = float(total @ total)
    deviations = measured - truth
    return Line(
        slope=slope,
        intercept_hu=intercept,
        r_squared=1 - float(rest @ rest) / scale if scale > 0 else float("nan"),
        largest_deviation_hu=float(deviations[np.argmax(np.abs(deviations))]),
    )


def local_mean_map_hu(
    change: NDArray[np.floating], pixel_mm: float, *, side_mm: float = 20.0
) -> NDArray[np.float64]:
    """Mean of a change, such as output less input (H, W) HU, in a square around each pixel."""
    side = window_pixels(pixel_mm, side_mm)
    mean: NDArray[np.float64] = ndimage.uniform_filter(change.astype(np.float64), side)
    return mean


def largest_local_mean_hu(
    change: NDArray[np.floating], pixel_mm: float, body: Mask, *, side_mm: float = 20.0
) -> float | None:
    """The local mean that is largest in size, with its sign, of squares inside the body (H, W).

    None where no square fits into the body.
    """
    side = window_pixels(pixel_mm, side_mm)
    inside = ndimage.minimum_filter(body, side, mode="constant", cval=0)
    means = local_mean_map_hu(change, pixel_mm, side_mm=side_mm)[inside]
    return float(means[np.argmax(np.abs(means))]) if means.size else None
