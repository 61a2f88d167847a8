"""Series that must not be denoised as they are, made from series that may."""

# Shapes: D slice, H row, W column.

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Stack = NDArray[np.float32]
Make = Callable[[Stack, float, np.random.Generator], Stack]

# Intensities of an MR image are not monotone in HU: fat is bright, bone and lung are dark. The
# tissues between are drawn anew for each series, as another sequence would show them.
_MR_HU = (-1100, -950, -700, -300, -110, -60, 0, 15, 45, 70, 110, 200, 400, 3000)
WINDOWS_HU = ((-160, 240), (-1350, 150), (-1000, 1000), (-1024, 3071), (-1024, 1023))


def magnetic_resonance(hu: Stack, _: float, rng: np.random.Generator) -> Stack:
    """Imitated MR: remapped tissue, a bias field, Rician noise, any scale; stored as CT, with or
    without the usual intercept of -1024.
    """
    fat, bone = rng.uniform(0.5, 1), rng.uniform(0.02, 0.2)
    muscle, organ = rng.uniform(0.2, 0.5), rng.uniform(0.25, 0.7)
    fluid, lung = rng.uniform(0.15, 1), rng.uniform(0.02, 0.08)
    shown = (
        0,
        0,
        lung,
        1.5 * lung,
        fat,
        fat,
        fluid,
        fluid,
        muscle,
        organ,
        organ,
        fluid,
        bone,
        bone,
    )
    smooth = ndimage.gaussian_filter(hu, (0, 1, 1))
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in hu.shape[1:]), indexing="ij")
    terms = np.stack([x, y, x * y, x * x, y * y])
    bias = np.exp(np.tensordot(rng.normal(0, 0.25, 5), terms, 1))
    signal = np.interp(smooth, _MR_HU, shown) * bias
    noise = rng.uniform(0.01, 0.05)
    real, imaginary = rng.normal(0, noise, (2, *hu.shape))
    magnitude = np.hypot(signal + real, imaginary)
    scale = 10 ** rng.uniform(2.3, 3.5) / np.quantile(magnitude, 0.99)
    return np.asarray(np.rint(magnitude * scale + rng.choice([0, -1024])), np.float32)


def offset(hu: Stack, _: float, rng: np.random.Generator) -> Stack:
    """A rescale intercept that was forgotten or taken twice; below -1024 some writers clip."""
    shift = rng.choice([-1024, -1000, 1000, 1024])
    moved = (np.maximum(hu, -1024) if rng.random() < 0.5 else hu) + shift
    return np.asarray(np.maximum(moved, -1024) if rng.random() < 0.5 else moved, np.float32)


def eight_bits(hu: Stack, _: float, rng: np.random.Generator) -> Stack:
    """Grey levels of a window in whole HU, or the bare levels 0 to 255."""
    low, high = WINDOWS_HU[rng.integers(len(WINDOWS_HU))]
    levels = np.rint(np.clip((hu - low) / (high - low), 0, 1) * 255)
    back = levels if rng.random() < 0.25 else np.rint(levels / 255 * (high - low) + low)
    return np.asarray(back, np.float32)


def blurred(hu: Stack, _: float, rng: np.random.Generator) -> Stack:
    """Gaussian of 1 to 2 pixels over every slice."""
    sigma = rng.uniform(1.0, 2.0)
    return np.asarray(np.rint(ndimage.gaussian_filter(hu, (0, sigma, sigma))), np.float32)


def metal(hu: Stack, pixel_mm: float, rng: np.random.Generator) -> Stack:
    """A disc of 3 to 8 mm radius at 3072 to 8000 HU in tissue of every slice, with streaks."""
    found = hu.copy()
    y, x = np.mgrid[: hu.shape[1], : hu.shape[2]]
    radius_mm, value_hu = rng.uniform(3, 8), rng.uniform(3072, 8000)
    lobes, phase = rng.integers(4, 9), rng.uniform(0, 2 * np.pi)
    for hu_slice in found:
        rows, columns = np.nonzero(np.abs(hu_slice) < 150)
        place = rng.integers(len(rows))
        down, across = (y - rows[place]) * pixel_mm, (x - columns[place]) * pixel_mm
        distance_mm = np.maximum(np.hypot(down, across), radius_mm)
        streaks = np.cos(lobes * np.arctan2(down, across) + phase) * 300 * radius_mm / distance_mm
        hu_slice += np.rint(streaks * (hu_slice > -900)).astype(np.float32)
        hu_slice[distance_mm <= radius_mm] = np.rint(value_hu)
    return found


MISFITS: dict[str, Make] = {
    "MR as CT": magnetic_resonance,
    "HU offset of 1000": offset,
    "8-bit rescaled": eight_bits,
    "blurred kernel": blurred,
    "metal": metal,
}
