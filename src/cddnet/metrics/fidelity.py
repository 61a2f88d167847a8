"""Fidelity to the full dose inside a named HU window."""

# Shapes: H row, W column.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddnet.intensity.window import hu_to_window

Window = tuple[float, float]
Mask = NDArray[np.bool_]

_SSIM_SIDE = 7


def psnr(
    full_dose: NDArray[np.floating],
    test: NDArray[np.floating],
    *,
    window_hu: Window,
    mask: Mask | None = None,
) -> float:
    """Peak signal-to-noise ratio in dB, over the window's range; infinite for equal images.

    Parameters: images (H, W) HU, clipped to window_hu; mask (H, W) or None for every pixel.
    """
    error = hu_to_window(full_dose, window_hu) - hu_to_window(test, window_hu)
    mse = _masked(np.square(error, dtype=np.float64), mask)
    return float("inf") if mse == 0 else float(-10 * np.log10(mse))


def rmse_hu(
    full_dose: NDArray[np.floating],
    test: NDArray[np.floating],
    *,
    window_hu: Window,
    mask: Mask | None = None,
) -> float:
    """Root mean square error in HU of images (H, W) clipped to window_hu."""
    error = np.clip(full_dose, *window_hu) - np.clip(test, *window_hu)
    return float(np.sqrt(_masked(np.square(error, dtype=np.float64), mask)))


def ssim(
    full_dose: NDArray[np.floating],
    test: NDArray[np.floating],
    *,
    window_hu: Window,
    mask: Mask | None = None,
) -> float:
    """Structural similarity, 7 x 7 uniform window with sample covariance, border of 3 left out.

    Parameters as `psnr`; sides of at least 7.
    Source: Wang et al., IEEE Trans. Image Process. 13:600, 2004; this variant is scikit-image's
    default, which ldct-benchmark uses.
    """
    x = hu_to_window(full_dose, window_hu).astype(np.float64)
    y = hu_to_window(test, window_hu).astype(np.float64)
    unbiased = _SSIM_SIDE**2 / (_SSIM_SIDE**2 - 1)
    mean_x, mean_y = (ndimage.uniform_filter(values, _SSIM_SIDE) for values in (x, y))
    variance_x = unbiased * (ndimage.uniform_filter(x * x, _SSIM_SIDE) - mean_x**2)
    variance_y = unbiased * (ndimage.uniform_filter(y * y, _SSIM_SIDE) - mean_y**2)
    covariance = unbiased * (ndimage.uniform_filter(x * y, _SSIM_SIDE) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    border = _SSIM_SIDE // 2
    inner = np.s_[border:-border, border:-border]
    return _masked(similarity[inner], None if mask is None else mask[inner])


def _masked(values: NDArray[np.float64], mask: Mask | None) -> float:
    chosen = values if mask is None else values[mask]
    if chosen.size == 0:
        raise ValueError("the mask leaves no pixel to measure")
    return float(chosen.mean(dtype=np.float64))


METRICS = {
    "PSNR": (psnr, "dB", "higher"),
    "SSIM": (ssim, "", "higher"),
    "RMSE": (rmse_hu, "HU", "lower"),
}
