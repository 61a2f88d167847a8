"""What a method took out of an image, or put in: structure in the residual, scanning FRC."""

# Shapes: H row, W column, P patch, S side of a patch, F frequency.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddnet.errors import CddnetError
from cddnet.metrics.noise import (
    RadialPower,
    flat_corners,
    flat_regions,
    noise_power_spectrum,
    radial_power,
)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Edges wider than noise: the reference is noisy too.
_EDGE_SMOOTHING = 1.5
_SHIFTS = 60
_SHIFT_PIXELS = (16.0, 48.0)

_PATCH = 64
_POWER_SIDE = 32
_FRC_THRESHOLD = 0.5


class ResidualStructure(NamedTuple):
    """correlation: of edges with what was removed, 0 for pure noise.
    chance_low, chance_high: its 95 % range where the residual is moved away from the edges it came
    from; noise that is louder near edges shifts and widens it.
    """

    correlation: float
    chance_low: float
    chance_high: float

    @property
    def by_chance(self) -> bool:
        return self.chance_low <= self.correlation <= self.chance_high


class ResidualPower(NamedTuple):
    """Radial noise power of what the method removed, and of what the low dose had added."""

    removed: RadialPower
    added: RadialPower


class ScanningFrc(NamedTuple):
    """corners: (P, 2).  frc: (P, F) at frequency_per_mm (F,).  crossing_per_mm: (P,) where the
    correlation first falls below 0.5, Nyquist where it never does.
    """

    corners: NDArray[np.intp]
    frequency_per_mm: Floats
    frc: Floats
    crossing_per_mm: Floats

    def flagged(self, least_per_mm: float) -> NDArray[np.intp]:
        """Corners of the patches that cross below least_per_mm.

        The limit has no universal value: tune it on known fakes of the same anatomy and dose.
        """
        return self.corners[self.crossing_per_mm < least_per_mm]

    def distribution(self) -> dict[str, float]:
        """Crossing frequencies over the patches, cycles per mm: what a limit is chosen from."""
        shares = {"least": 0, "5 %": 5, "25 %": 25, "median": 50, "75 %": 75, "most": 100}
        return {
            name: float(np.percentile(self.crossing_per_mm, share))
            for name, share in shares.items()
        }


def residual_structure(
    reference: NDArray[np.floating],
    source: NDArray[np.floating],
    output: NDArray[np.floating],
    *,
    mask: Mask | None = None,
) -> ResidualStructure:
    """Correlation of |grad reference| with |source - output| in a mask, images (H, W) HU.

    The gradient is that of the reference smoothed by 1.5 pixels. Chance is measured by 60 shifts
    of the residual, with its mask, by 16 to 48 pixels.
    Raises: CddnetError for a side below 64 pixels, where nothing was removed, or without an edge.
    """
    if min(reference.shape) < _PATCH:
        raise CddnetError(
            f"a slice of {reference.shape} is too small for the structure of a residual; "
            f"give at least {_PATCH} x {_PATCH} pixels."
        )
    inside = np.ones(reference.shape, np.bool_) if mask is None else mask
    edges = ndimage.gaussian_gradient_magnitude(reference.astype(np.float64), _EDGE_SMOOTHING)
    removed = np.abs(source.astype(np.float64) - output)
    for name, values in (("residual", removed), ("gradient of the reference", edges)):
        if inside.sum() < 2 or values[inside].std() == 0:
            raise CddnetError(
                f"the {name} is the same everywhere in the mask, so its structure cannot be "
                "measured; give a method's output and a slice with anatomy."
            )
    rng = np.random.default_rng(0)
    distance, angle = rng.uniform(*_SHIFT_PIXELS, _SHIFTS), rng.uniform(0, 2 * np.pi, _SHIFTS)
    chance: list[float] = []
    for down, right in np.rint(distance * np.stack([np.sin(angle), np.cos(angle)])).astype(int).T:
        shift = (int(down), int(right))
        moved = np.roll(removed, shift, axis=(0, 1))
        there = np.roll(inside, shift, axis=(0, 1))
        chance.append(_correlation(edges, moved, there & inside))
    low, high = np.percentile(chance, [2.5, 97.5])
    return ResidualStructure(_correlation(edges, removed, inside), float(low), float(high))


def residual_power(
    full_dose: NDArray[np.floating],
    low_dose: NDArray[np.floating],
    output: NDArray[np.floating],
    pixel_mm: float,
) -> ResidualPower:
    """Radial noise power of (low_dose - output) and of (low_dose - full_dose), images (H, W) HU.

    In flat 32 x 32 regions of the full dose's soft tissue, each less its quadratic trend. Equal
    curves mean that the added noise was removed and nothing else; the full dose is noisy itself,
    so a method that removes its noise too lies above.
    Raises: CddnetError where no flat region is found.
    """
    corners = flat_corners(full_dose, _POWER_SIDE)
    if not len(corners):
        raise CddnetError(
            f"no flat region of {_POWER_SIDE} x {_POWER_SIDE} pixels of soft tissue in the slice; "
            "choose another slice."
        )
    removed, added = (
        radial_power(
            noise_power_spectrum(
                flat_regions(low_dose - other, corners, _POWER_SIDE), pixel_mm
            ).mean(axis=0),
            pixel_mm,
        )
        for other in (output, full_dose)
    )
    return ResidualPower(removed, added)


def scanning_frc(
    reference: NDArray[np.floating],
    output: NDArray[np.floating],
    *,
    pixel_mm: float,
    step: int = _PATCH // 2,
    mask: Mask | None = None,
) -> ScanningFrc:
    """Fourier ring correlation of an output with its reference (H, W), patch by patch.

    Patches of 64 x 64 pixels under a Hann window, less their means, `step` pixels apart; with a
    mask, those whose centre lies in it. A patch that both images leave empty agrees with itself.
    Raises: CddnetError for images of different size or below one patch.
    Source: scanning FRC, arXiv 2603.04673; threshold 0.5 for CT.
    """
    if reference.shape != output.shape or min(reference.shape) < _PATCH:
        raise CddnetError(
            f"reference {reference.shape} and output {output.shape} differ or are too small for "
            f"scanning FRC; give images of one size, at least {_PATCH} x {_PATCH}."
        )
    corners = np.array(
        [
            (row, column)
            for row in range(0, reference.shape[0] - _PATCH + 1, step)
            for column in range(0, reference.shape[1] - _PATCH + 1, step)
            if mask is None or mask[row + _PATCH // 2, column + _PATCH // 2]
        ],
        np.intp,
    )
    if not len(corners):
        raise CddnetError("the mask holds the centre of no patch; give a larger one.")
    member = _rings()
    frequency = np.arange(1, member.shape[1] + 1) / (_PATCH * pixel_mm)
    frc = np.stack([_frc(reference, output, corner, member) for corner in corners])
    return ScanningFrc(corners, frequency, frc, _crossings(frequency, frc))


def _frc(
    reference: NDArray[np.floating],
    output: NDArray[np.floating],
    corner: NDArray[np.intp],
    member: Floats,
) -> Floats:
    row, column = corner
    hann = np.hanning(_PATCH + 2)[1:-1]
    spectra = []
    for image in (reference, output):
        patch = image[row : row + _PATCH, column : column + _PATCH].astype(np.float64)
        spectra.append(np.fft.fft2((patch - patch.mean()) * hann[:, None] * hann).reshape(-1))
    first, second = spectra
    common = (first * second.conj()).real @ member
    power_1, power_2 = (np.square(np.abs(s)) @ member for s in (first, second))
    both = np.sqrt(power_1 * power_2)
    empty = np.where(power_1 == power_2, 1.0, 0.0)
    frc: Floats = np.where(both > 0, common / np.where(both > 0, both, 1.0), empty)
    return frc


def _rings() -> Floats:
    """Which frequency (S * S) lies in which ring (F), from 1 cycle per patch to Nyquist."""
    cycles = np.fft.fftfreq(_PATCH, 1 / _PATCH)
    ring = np.rint(np.hypot(cycles[:, None], cycles)).reshape(-1)
    member: Floats = (ring[:, None] == np.arange(1, _PATCH // 2 + 1)).astype(np.float64)
    return member


def _crossings(frequency: Floats, frc: Floats) -> Floats:
    """Frequency where each row first falls below the threshold, between rings by a line."""
    crossing = np.full(len(frc), frequency[-1])
    for number, row in enumerate(frc):
        below = np.flatnonzero(row < _FRC_THRESHOLD)
        if not below.size:
            continue
        after = int(below[0])
        # At zero frequency images with their means taken away agree by definition.
        left, before = (1.0, 0.0) if after == 0 else (row[after - 1], frequency[after - 1])
        share = (left - _FRC_THRESHOLD) / (left - row[after])
        crossing[number] = before + share * (frequency[after] - before)
    return crossing


def _correlation(one: Floats, other: Floats, where: Mask) -> float:
    return float(np.corrcoef(one[where], other[where])[0, 1])
