"""Low-contrast lesions to insert into a slice, as the scanner would show them."""

# Shapes: H row, W column, L lesion.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cddnet.physics.kernel import SOFT_KERNEL, Kernel, seen_through

_DIAMETERS_MM = (3.0, 15.0)
_CONTRASTS_HU = (3.0, 30.0)

# Points along each side of a pixel, for the mean over its area.
_POINTS = 16


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """diameter_mm: of a disc, or full width at half maximum of a Gaussian, 3 to 15.
    contrast_hu: to the tissue around, at the centre and before the kernel, 3 to 30 or -3 to -30.
    Raises: ValueError outside these ranges.
    """

    diameter_mm: float
    contrast_hu: float
    shape: Literal["disc", "gaussian"] = "disc"

    def __post_init__(self) -> None:
        for name, value, (low, high) in (
            ("diameter in mm", self.diameter_mm, _DIAMETERS_MM),
            ("contrast in HU", abs(self.contrast_hu), _CONTRASTS_HU),
        ):
            if not low <= value <= high:
                raise ValueError(f"a lesion's {name} is {value:g}, expected {low:g} to {high:g}")

    @property
    def described(self) -> str:
        return f"{self.diameter_mm:g} mm, {self.contrast_hu:+g} HU {self.shape}"


def lesion_image(
    shape: tuple[int, int],
    centres: NDArray[np.floating] | NDArray[np.integer],
    lesion: Lesion,
    *,
    pixel_mm: float,
    kernel: Kernel = SOFT_KERNEL,
) -> NDArray[np.float32]:
    """What equal lesions add to a slice (H, W), in HU.

    Parameters: centres (L, 2) row and column in pixels, fractions allowed.
    Each pixel is the mean over its area; the kernel's MTF blurs the edges.
    Raises: ValueError where a lesion reaches over the edge of the slice.
    """
    drawn = np.zeros(shape, np.float64)
    # A Gaussian of FWHM d is below 1e-5 of its top at 2.05 d.
    reach = lesion.diameter_mm * (0.5 if lesion.shape == "disc" else 2.05) / pixel_mm + 1
    for centre in np.asarray(centres, np.float64):
        first, last = np.floor(centre - reach).astype(int), np.ceil(centre + reach).astype(int)
        if first.min() < 0 or np.any(last >= shape):
            raise ValueError(
                f"a lesion of {lesion.diameter_mm:g} mm at row {centre[0]:g}, column {centre[1]:g} "
                f"leaves the slice of {shape[0]} x {shape[1]} pixels; move it inwards"
            )
        window = np.s_[first[0] : last[0] + 1, first[1] : last[1] + 1]
        drawn[window] += _sharp(first - centre, last - centre, lesion, pixel_mm)
    return seen_through(drawn, pixel_mm, kernel)


def _sharp(
    first: NDArray[np.float64],
    last: NDArray[np.float64],
    lesion: Lesion,
    pixel_mm: float,
) -> NDArray[np.float64]:
    """Mean of the lesion over each pixel from `first` to `last`, in pixels from its centre."""
    offsets = (np.arange(_POINTS) + 0.5) / _POINTS - 0.5
    rows, columns = (
        (np.arange(round(b - a) + 1)[:, None] + a + offsets).reshape(-1) * pixel_mm
        for a, b in zip(first, last, strict=True)
    )
    squared_mm2 = rows[:, None] ** 2 + columns**2
    if lesion.shape == "disc":
        profile = (squared_mm2 <= (lesion.diameter_mm / 2) ** 2).astype(np.float64)
    else:
        profile = np.exp(-4 * np.log(2) * squared_mm2 / lesion.diameter_mm**2)
    height, width = rows.size // _POINTS, columns.size // _POINTS
    mean: NDArray[np.float64] = profile.reshape(height, _POINTS, width, _POINTS).mean(axis=(1, 3))
    return lesion.contrast_hu * mean
