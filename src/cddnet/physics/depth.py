"""Radiological depth: how much the rays through a point were attenuated, hence how noisy it is.

D(x) = log of the view average of N0 var(log n), n the photons that a detector reads behind the
line integral p through x: N = N0 b m exp(-p) on average, N0 those sent at this dose, b bowtie,
m tube current, with electronic noise s. Where photons abound this is exp(p) / (b m)
(1 + s^2 / N); where they starve the logarithm of a count below one stops its growth. Up to the
kernel's constant D is the log of the noise variance. It is computed from the slice itself, noisy or
not, on a coarse grid: rays average the noise away.
"""

# Shapes: H row, W column, V view, J detector channel.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from cddnet.physics import projector
from cddnet.physics.beam import (
    DEFAULT_SCANNER,
    MU_WATER_PER_MM,
    Scanner,
    SliceGeometry,
    beam_filter,
    covering,
    flux,
    line_integrals,
    photons_per_reading,
)
from cddnet.physics.kernel import SOFT_KERNEL, Kernel

_SIDE = 128
_VIEWS = 90

_NEIGHBOURS = np.array([0.25, 0.5, 0.25], np.float32)
_KNOTS = 64

# A standard normal variate as 128 equally likely values of unit variance.
_QUANTILES = special.ndtri((np.arange(128) + 0.5) / 128)
_NORMAL = _QUANTILES / _QUANTILES.std()

# Body against air; what is thinner than the table goes.
_BODY_HU = -500.0


class _Coarse(NamedTuple):
    hu: NDArray[np.float32]
    step: int  # fine pixels per coarse one


def radiological_depth(
    hu: NDArray[np.floating],
    geometry: SliceGeometry,
    *,
    dose_fraction: float = 1.0,
    scanner: Scanner = DEFAULT_SCANNER,
) -> NDArray[np.float32]:
    """Log of the relative noise variance of each pixel, by the rays through it.

    Parameters: hu (H, W); dose_fraction of the scanner's full dose, for the electronic floor.
    Returns: (H, W) float32, 0 where nothing attenuates.
    Source: variance of filtered back projection, Kak and Slaney 1988, chapter 5, as the view
    average over the rays of a point; electronic noise as in Yu et al. 2012.
    """
    coarse = _coarse(hu)
    beam = covering(coarse.hu, _VIEWS)
    pixel_mm = geometry.pixel_mm * coarse.step
    integrals = line_integrals(coarse.hu, pixel_mm, beam)
    # Noise that is left would not average away in the exponential; kernels mix these rays anyway.
    integrals = ndimage.convolve1d(integrals, _NEIGHBOURS, axis=1)
    sent = photons_per_reading(scanner, geometry) * dose_fraction
    filtered = beam_filter(integrals, beam.positions * pixel_mm, scanner)
    relative = sent * _log_variance(sent * filtered * np.exp(-integrals), scanner.electronic_std)
    mean = projector.adjoint(relative.astype(np.float32), beam) / np.float32(_VIEWS)
    depth = np.log(np.maximum(mean[: coarse.hu.shape[0], : coarse.hu.shape[1]], 1.0))
    return _fine(depth, hu.shape, coarse.step)


def predicted_noise_hu(
    depth: NDArray[np.floating],
    geometry: SliceGeometry,
    *,
    dose_fraction: float = 1.0,
    scanner: Scanner = DEFAULT_SCANNER,
    kernel: Kernel = SOFT_KERNEL,
) -> NDArray[np.float32]:
    """Standard deviation of the noise in HU at each pixel of a radiological depth (H, W).

    Exact where the noise of the rays changes slowly across the kernel.
    Source: Kak and Slaney 1988, chapter 5.
    """
    frequency = (np.arange(512) + 0.5) / 1024  # cycles per pixel
    transfer = frequency * kernel.response(frequency / geometry.pixel_mm)
    power = 2 * np.mean(transfer**2) * 0.5
    # Any number of views shares the photons of a rotation.
    photons = flux(scanner, geometry, _VIEWS).photons * dose_fraction
    per_view = np.pi**2 / _VIEWS * power / photons
    unit_hu = np.sqrt(per_view) * 1000.0 / (MU_WATER_PER_MM * geometry.pixel_mm)
    noise: NDArray[np.float32] = (unit_hu * np.exp(depth / 2)).astype(np.float32)
    return noise


def _log_variance(photons: NDArray[np.floating], electronic_std: float) -> NDArray[np.float64]:
    """Variance of the log of a count, read as one below one photon, by its expected photons.

    The count is taken as Gaussian, of variance photons + electronic_std^2, which holds where
    starvation matters: electronic noise is wider than the steps of the count.
    """
    log_photons = np.log(np.maximum(photons, 1e-6))
    lowest, highest = float(log_photons.min()), float(log_photons.max())
    knots = np.linspace(lowest, max(highest, lowest + 1e-3), _KNOTS)
    mean = np.exp(knots)[:, None]
    count = mean + np.sqrt(mean + electronic_std**2) * _NORMAL
    log_variance = np.log(np.maximum(np.log(np.maximum(count, 1.0)).var(axis=1), 1e-12))
    variance: NDArray[np.float64] = np.exp(np.interp(log_photons, knots, log_variance))
    return variance


def euclidean_depth(hu: NDArray[np.floating], pixel_mm: float) -> NDArray[np.float32]:
    """Distance in mm of each pixel of a slice (H, W) to the outside of the patient, 0 outside.

    The geometric rival of the radiological depth, for ablations.
    """
    solid = ndimage.binary_opening(hu > _BODY_HU, iterations=3)
    body = np.pad(ndimage.binary_fill_holes(solid), 1)
    distance = ndimage.distance_transform_edt(body)[1:-1, 1:-1] * pixel_mm
    return np.asarray(distance, np.float32)


def shuffled_depth(
    depth: NDArray[np.float32], rng: np.random.Generator, block: int = 32
) -> NDArray[np.float32]:
    """The same values of a depth map (H, W) in wrong places, for ablations.

    Whole blocks change places; the rim that fills no block stays.
    """
    rows, columns = depth.shape[0] // block, depth.shape[1] // block
    inner = np.s_[: rows * block, : columns * block]
    blocks = depth[inner].reshape(rows, block, columns, block).swapaxes(1, 2)
    mixed = rng.permutation(blocks.reshape(-1, block, block)).reshape(blocks.shape)
    result = depth.copy()
    result[inner] = mixed.swapaxes(1, 2).reshape(rows * block, columns * block)
    return result


def _coarse(hu: NDArray[np.floating]) -> _Coarse:
    """Block means of a slice, padded with its own rim, of at most 128 pixels a side."""
    step = -(-max(hu.shape) // _SIDE)
    if step == 1:
        return _Coarse(hu.astype(np.float32, copy=False), 1)
    height, width = (-(-side // step) for side in hu.shape)
    rim = (height * step - hu.shape[0], width * step - hu.shape[1])
    whole = np.pad(hu, ((0, rim[0]), (0, rim[1])), mode="edge") if any(rim) else hu
    blocks = whole.reshape(height, step, width, step)
    return _Coarse(blocks.mean(axis=(1, 3), dtype=np.float32), step)


def _fine(coarse: NDArray[np.float32], shape: tuple[int, ...], step: int) -> NDArray[np.float32]:
    """Bilinear values at the fine pixels' centres (H, W)."""
    if step == 1:
        return coarse
    rows, columns = (
        _bilinear(fine, side, step) for fine, side in zip(shape, coarse.shape, strict=True)
    )
    return np.asarray(rows @ coarse @ columns.T, np.float32)


def _bilinear(fine: int, coarse: int, step: int) -> NDArray[np.float32]:
    """Weights (fine, coarse) of linear interpolation; constant beyond the outer centres."""
    position = np.clip((np.arange(fine) + 0.5) / step - 0.5, 0, coarse - 1)
    weights = np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(coarse)))
    return weights.astype(np.float32)
