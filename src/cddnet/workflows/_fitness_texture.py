"""What the noise of a series says: smoothed, sharper or quieter than training covered?"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from cddnet.formats._facts import HeaderFacts
from cddnet.metrics.noise import flat_regions, mean_frequency_per_mm, radial_power
from cddnet.metrics.plausibility import REGION_PIXELS as _SIDE
from cddnet.metrics.plausibility import NoiseTexture
from cddnet.physics.kernel import Kernel, kernel_named
from cddnet.workflows._fitness_header import Finding, Kind

# The sharpest kernel that training drew (NoiseRanges of its recipe).
SHARPEST = Kernel(cutoff_per_mm=1.9, boost=0.3)
SHARPER = 1.1

NOISE_HU = (4.5, 120.0)
NOISELESS_HU = 0.5
LEAST_HIGH_SHARE = 0.06
SMOOTHER = 0.82
MUCH_SMOOTHER = 0.75

# Pixels a side on which noise is correlated; far wider than a region.
_GRID = 128


def texture_findings(
    texture: NoiseTexture | None, facts: HeaderFacts, pixel_mm: float
) -> Iterator[Finding]:
    """Notes and refusals from the noise of a series; a note too where no tissue is flat."""
    if texture is None:
        yield Finding(Kind.noise, False, "too little flat tissue to judge the noise by")
        return
    if texture.level_hu < NOISELESS_HU:
        text = "flat tissue has no noise beyond rounding: nothing to remove"
        yield Finding(Kind.noise, False, text)
        return
    low, high = NOISE_HU
    if not low <= texture.level_hu <= high:
        text = f"noise is {texture.level_hu:.1f} HU, training covered {low:g} to {high:g} HU"
        yield Finding(Kind.noise, False, text)
    yield from _smoothness(texture, facts, pixel_mm)
    found, sharpest = texture.mean_frequency_per_mm, expected_per_mm(SHARPEST, pixel_mm)
    if found > SHARPER * sharpest:
        text = f"noise texture is {found:.2f} per mm, training covered up to {sharpest:.2f}"
        yield Finding(Kind.sharp, False, text)


def _smoothness(texture: NoiseTexture, facts: HeaderFacts, pixel_mm: float) -> Iterator[Finding]:
    kernel = kernel_named(facts.kernel, facts.manufacturer)
    found = texture.mean_frequency_per_mm
    if kernel is not None:
        ratio = found / expected_per_mm(kernel, pixel_mm)
        if ratio < SMOOTHER:
            text = (
                f"noise texture is {found:.2f} per mm, {ratio:.0%} of what its kernel implies: "
                "smoothed or denoised already"
            )
            refuses = ratio < MUCH_SMOOTHER
            remedy = "; give the plain reconstruction" if refuses else ""
            yield Finding(Kind.smooth, refuses, text + remedy)
            return
    if texture.high_share < LEAST_HIGH_SHARE:
        text = f"high frequencies have {texture.high_share:.1%} of the power of middle ones"
        yield Finding(
            Kind.smooth, False, f"noise is smooth ({text}): smoothed or denoised already?"
        )


@lru_cache(maxsize=64)
def expected_per_mm(kernel: Kernel, pixel_mm: float) -> float:
    """Mean frequency of a kernel's noise as `noise_texture` measures it: in small regions that
    lost a quadratic trend, by the covariance of their pixels.

    The noise power of filtered back projection goes with frequency times response squared (Kak and
    Slaney 1988, chapter 5).
    """
    cycles = np.fft.fftfreq(_GRID, pixel_mm)
    frequency = np.hypot(cycles[:, None], cycles)
    covariance = np.fft.ifft2(frequency * kernel.response(frequency) ** 2).real
    row, column = (place.reshape(-1) for place in np.indices((_SIDE, _SIDE)))
    pixels = covariance[row[:, None] - row, column[:, None] - column]
    single = np.eye(_SIDE**2).reshape(-1, _SIDE)
    corners = np.stack([np.arange(_SIDE**2) * _SIDE, np.zeros(_SIDE**2, np.intp)], axis=1)
    flat = flat_regions(single, corners, _SIDE)
    seen = np.fft.fft2(flat).reshape(_SIDE**2, -1).T
    power = np.einsum("fi,ij,fj->f", seen, pixels, seen.conj(), optimize=True).real
    return float(mean_frequency_per_mm(radial_power(power.reshape(_SIDE, _SIDE), pixel_mm)))
