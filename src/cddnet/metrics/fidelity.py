"""Fidelity to the full dose inside a named HU window."""

# Shapes: H row, W column, K weight of a filter.

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddnet.intensity.window import hu_to_window

Window = tuple[float, float]
Mask = NDArray[np.bool_]

# HU + 1024 from 0 to 2924, as ldct-benchmark has it; VIF depends on the scale of its input.
VIF_WINDOW_HU: Window = (-1024.0, 1900.0)

_SSIM_SIDE = 7
_GAUSSIAN_SIDE = 11
_GAUSSIAN_SIGMA = 1.5
_VIF_SIDES = (17, 9, 5, 3)
_VIF_SMALLEST = 41
_VISUAL_NOISE = 2.0
_NO_VARIANCE = 1e-10
# Columns of a filter's matrix product: few enough that the band is not mostly zero.
_BLOCK = 32


class Measure(NamedTuple):
    """A metric: function (full_dose, test, *, window_hu, mask) of images (H, W) in HU.

    definition: variant and source in a few words.  smallest_side: of an image, in pixels.
    """

    function: Callable[..., float]
    unit: str
    direction: Literal["higher", "lower"]
    definition: str
    smallest_side: int = 1


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


def mae_hu(
    full_dose: NDArray[np.floating],
    test: NDArray[np.floating],
    *,
    window_hu: Window,
    mask: Mask | None = None,
) -> float:
    """Mean absolute error in HU of images (H, W) clipped to window_hu."""
    error = np.clip(full_dose, *window_hu) - np.clip(test, *window_hu)
    return _masked(np.abs(error, dtype=np.float64), mask)


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
    similarity = _similarity((mean_x, mean_y), (variance_x, variance_y), covariance)
    inner = _inner(_SSIM_SIDE)
    return _masked(similarity[inner], None if mask is None else mask[inner])


def ssim_gaussian(
    full_dose: NDArray[np.floating],
    test: NDArray[np.floating],
    *,
    window_hu: Window,
    mask: Mask | None = None,
) -> float:
    """Structural similarity, 11 x 11 Gaussian window of 1.5 pixels, border of 5 left out.

    Parameters as `psnr`; sides of at least 11, or ValueError.
    Source: Wang et al., IEEE Trans. Image Process. 13:600, 2004.
    """
    if min(full_dose.shape) < _GAUSSIAN_SIDE:
        raise ValueError(f"SSIM needs sides of {_GAUSSIAN_SIDE} pixels, found {full_dose.shape}")
    x = hu_to_window(full_dose, window_hu).astype(np.float64)
    y = hu_to_window(test, window_hu).astype(np.float64)
    local = _local_moments(x, y, _gaussian(_GAUSSIAN_SIDE, _GAUSSIAN_SIGMA))
    similarity = _similarity(local.means, local.variances, local.covariance)
    return _masked(similarity, None if mask is None else mask[_inner(_GAUSSIAN_SIDE)])


def vif(
    full_dose: NDArray[np.floating],
    test: NDArray[np.floating],
    *,
    window_hu: Window,
    mask: Mask | None = None,
) -> float:
    """Visual information fidelity in the pixel domain: information of the full dose that is kept.

    Parameters as `psnr`; sides of at least 41; at the four scales the mask is that of the centres.
    Not symmetric, and above 1 where contrast is raised.  NaN for a full dose without structure.
    Source: Sheikh and Bovik, IEEE Trans. Image Process. 15:430, 2006; visual noise of 2 HU^2.
    """
    if min(full_dose.shape) < _VIF_SMALLEST:
        raise ValueError(f"VIF needs sides of {_VIF_SMALLEST} pixels, found {full_dose.shape}")
    low, high = window_hu
    x, y = (np.clip(hu, low, high).astype(np.float64) for hu in (full_dose, test))
    # Moments of values around zero lose least to rounding.
    x, y = x - x.mean(), y - y.mean()
    if mask is not None and not mask[_inner(_VIF_SIDES[0])].any():
        raise ValueError("the mask leaves no pixel to measure")
    kept = held = 0.0
    for side in _VIF_SIDES:
        weights, inner = _gaussian(side, side / 5), _inner(side)
        if side != _VIF_SIDES[0]:
            x, y = _filtered(np.stack([x, y]), weights, step=2)
            mask = None if mask is None else mask[inner][::2, ::2]
        (_, _), (variance_x, variance_y), covariance = _local_moments(x, y, weights)
        np.maximum(variance_x, 0, out=variance_x)
        np.maximum(variance_y, 0, out=variance_y)
        related = (variance_x >= _NO_VARIANCE) & (variance_y >= _NO_VARIANCE) & (covariance > 0)
        gain = np.where(related, covariance / (variance_x + _NO_VARIANCE), 0)
        distortion = np.maximum(variance_y - gain * covariance, _NO_VARIANCE)
        of_test = np.log(1 + gain**2 * variance_x / (distortion + _VISUAL_NOISE))
        of_full = np.log(1 + variance_x / _VISUAL_NOISE)
        chosen = np.s_[:] if mask is None else mask[inner]
        kept += float(of_test[chosen].sum())
        held += float(of_full[chosen].sum())
    return kept / held if held > 0 else float("nan")


def vif_ldctbench(
    full_dose: NDArray[np.floating],
    test: NDArray[np.floating],
    *,
    window_hu: Window,
    mask: Mask | None = None,
) -> float:
    """`vif` with the two images exchanged, as ldct-benchmark calls it; for its tables alone."""
    return vif(test, full_dose, window_hu=window_hu, mask=mask)


class _LocalMoments(NamedTuple):
    """Each (H - K + 1, W - K + 1), of the full dose and of the test."""

    means: tuple[NDArray[np.float64], NDArray[np.float64]]
    variances: tuple[NDArray[np.float64], NDArray[np.float64]]
    covariance: NDArray[np.float64]


def _local_moments(
    x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]
) -> _LocalMoments:
    mean_x, mean_y, xx, yy, xy = _filtered(np.stack([x, y, x * x, y * y, x * y]), weights)
    xx -= mean_x**2
    yy -= mean_y**2
    xy -= mean_x * mean_y
    return _LocalMoments((mean_x, mean_y), (xx, yy), xy)


def _filtered(
    images: NDArray[np.float64], weights: NDArray[np.float64], *, step: int = 1
) -> NDArray[np.float64]:
    """Images (N, H, W) under a separable symmetric filter, at every `step` pixels where it fits.

    A block of columns is a product with a band matrix, which is several times as fast as sums of
    shifted images.
    """
    taps = len(weights)
    for _ in range(2):
        length = (images.shape[-1] - taps) // step + 1
        block = min(_BLOCK // step, length)
        band = np.zeros(((block - 1) * step + taps, block))
        for column in range(block):
            band[column * step : column * step + taps, column] = weights
        passed = np.empty((*images.shape[:-1], length))
        for start in range(0, length, block):
            stop = min(start + block, length)
            reach = (stop - start - 1) * step + taps
            np.matmul(
                images[..., start * step : start * step + reach],
                band[:reach, : stop - start],
                out=passed[..., start:stop],
            )
        images = passed.swapaxes(-1, -2)
    return images


def _gaussian(side: int, sigma: float) -> NDArray[np.float64]:
    weights = np.exp(-np.square(np.arange(side) - side // 2) / (2 * sigma**2))
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised


def _inner(side: int) -> tuple[slice, slice]:
    """Pixels around which a window of odd side fits whole."""
    inside = slice(side // 2, -(side // 2))
    return inside, inside


def _similarity(
    means: tuple[NDArray[np.float64], NDArray[np.float64]],
    variances: tuple[NDArray[np.float64], NDArray[np.float64]],
    covariance: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Of fractions of a window: range 1."""
    (mean_x, mean_y), (variance_x, variance_y) = means, variances
    c1, c2 = 0.01**2, 0.03**2
    similarity: NDArray[np.float64] = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return similarity


def _masked(values: NDArray[np.float64], mask: Mask | None) -> float:
    chosen = values if mask is None else values[mask]
    if chosen.size == 0:
        raise ValueError("the mask leaves no pixel to measure")
    return float(chosen.mean(dtype=np.float64))


METRICS = {
    "PSNR": Measure(psnr, "dB", "higher", "10 log10(range^2 / MSE), clipped to the window"),
    "SSIM": Measure(
        ssim,
        "",
        "higher",
        "7 x 7 uniform window, sample covariance (scikit-image's default, ldct-benchmark)",
        _SSIM_SIDE,
    ),
    "SSIM-Gaussian": Measure(
        ssim_gaussian,
        "",
        "higher",
        "11 x 11 Gaussian window of 1.5 pixels (Wang et al. 2004)",
        _GAUSSIAN_SIDE,
    ),
    "RMSE": Measure(rmse_hu, "HU", "lower", "root mean square error, clipped to the window"),
    "MAE": Measure(mae_hu, "HU", "lower", "mean absolute error, clipped to the window"),
    "VIF": Measure(
        vif,
        "",
        "higher",
        "VIF-p, test against reference, visual noise 2 HU^2 (Sheikh and Bovik 2006)",
        _VIF_SMALLEST,
    ),
    "VIF-ldctbench": Measure(
        vif_ldctbench,
        "",
        "higher",
        "VIF-p with the two images exchanged, as ldct-benchmark calls it",
        _VIF_SMALLEST,
    ),
}
