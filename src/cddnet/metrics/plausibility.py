"""What a few slices show by themselves: are these HU, and how does their noise look?

Nothing here needs a header, a second image or a network; a slice costs some ten milliseconds.
"""

# Shapes: D slice, H row, W column, N region, S side of a region.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddnet.intensity.background import NO_AIR_HU, edge_of, touching_edge
from cddnet.intensity.plausible import USUAL_OFFSETS, not_hu, value_signs
from cddnet.metrics._body import body_mask
from cddnet.metrics.noise import (
    detrended_std,
    flat_corners,
    flat_regions,
    mean_frequency_per_mm,
    noise_power_spectrum,
    radial_power,
)

REGION_PIXELS = 16
METAL_HU = 3000.0

# A constant below this is what a scanner writes outside its field of view, not air.
_OUTSIDE_HU = -1020.0
# Padding that was compressed with loss, that noise was added to, or that a network saw.
_FAR_BELOW_AIR_HU = -1500.0
_NEARLY_ONE_HU = 150.0
_RIM_PIXELS = 12
# What hardly holds anything but air may hold a small body, of this share at least.
_MOSTLY_AIR = 0.9
_SOME_AIR = 0.005
_SMALLEST_OBJECT = 5e-4
_AROUND_HU = (-850.0, -200.0)
_BLUR_PIXELS = 5
# Air that an offset of 1000 or 1024 moved lies here, unlike muscle.
_AT_WATER = 30.0
# Scanners store whole HU; what they lack between was rounded away later.
_STEP_HU = 1.01

_MARGIN = 2
_MOST_REGIONS = 150
_FEWEST_REGIONS = 4
_QUIET_SHARE = 0.25
_FEWEST_QUIET = 8

# Shares of the Nyquist frequency: what smoothing removes, and what it leaves.
_HIGH_BAND = (0.6, 1.0)
_MIDDLE_BAND = (0.15, 0.45)


class Levels(NamedTuple):
    """different: number of values that differ.  apart: share of the gaps between them above one HU.
    at_top: share of the pixels that have the highest value.
    """

    different: int
    apart: float
    at_top: float


class NoiseTexture(NamedTuple):
    """Noise in the quietest flat tissue.

    level_hu: standard deviation.  mean_frequency_per_mm: of the radial power up to Nyquist.
    high_share: mean power from 0.6 of Nyquist on over that from 0.15 to 0.45.
    """

    level_hu: float
    mean_frequency_per_mm: float
    high_share: float
    regions: int


def measured_values(
    slices: Sequence[NDArray[np.floating]], padding: Sequence[NDArray[np.bool_]]
) -> NDArray[np.float64]:
    """Every second value in both directions of slices (H, W) in HU, without padding: (N,).

    Padding that no header tells is left out too: a constant below -1020 HU in a hundredth or more
    of the values, and what noise, loss or a network left of one around the field of view.
    """
    values: NDArray[np.float64] = np.concatenate(
        [
            hu[::2, ::2][~(empty | _beside_padding(hu, empty))[::2, ::2]]
            for hu, empty in zip(slices, padding, strict=True)
        ]
    ).astype(np.float64)
    if values.size and (lowest := values.min()) < _OUTSIDE_HU:
        kept: NDArray[np.float64] = values[values > lowest]
        if kept.size <= 0.99 * values.size:
            return kept
    return values


def _beside_padding(hu: NDArray[np.floating], empty: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is left of padding around the field of view beside the padding that is known (H, W).

    It lies below air, and nearly at one value or within some pixels of known padding: (H, W) bool.
    """
    below: NDArray[np.bool_] = (hu < NO_AIR_HU) & ~empty
    if not below.any():
        return below
    below &= touching_edge(below | empty)
    values = hu[below]
    middle = np.median(values) if values.size else 0.0
    near = np.abs(values - middle) < _NEARLY_ONE_HU
    if middle > _FAR_BELOW_AIR_HU or np.count_nonzero(near) < values.size / 2:
        beside = ndimage.distance_transform_edt(~empty) <= _RIM_PIXELS
        below &= beside & empty.any()
    return below


def not_hu_of_a_body(
    slices: Sequence[NDArray[np.floating]], padding: Sequence[NDArray[np.bool_]]
) -> str:
    """Why slices (H, W) cannot be HU of a patient or phantom, in words; "" where they can."""
    values = measured_values(slices, padding)
    reason, signs = not_hu(values), value_signs(values)
    if reason:
        return not_hu(values, _object_values(slices)) if signs.airy > _MOSTLY_AIR else reason
    # A field of view inside the body, or a small body in air that was moved to water.
    if signs.airy < _SOME_AIR and signs.tissue > _MOSTLY_AIR and abs(np.median(values)) < _AT_WATER:
        for offset in (1000, 1024):
            moved = [hu - offset for hu in slices]
            body = _object_values(moved, inside=True)
            if body.size and not not_hu(values - offset, body):
                return "none is air, and what is near water surrounds a small body"
    return ""


def fitting_offsets(
    slices: Sequence[NDArray[np.floating]], padding: Sequence[NDArray[np.bool_]]
) -> tuple[int, ...]:
    """Those of the usual offsets that leave HU, with air, when they are taken off slices (H, W)."""

    def fits(offset: int) -> bool:
        moved = [hu - offset for hu in slices]
        air = value_signs(measured_values(moved, padding)).airy
        return air > _SOME_AIR and not not_hu_of_a_body(moved, padding)

    return tuple(offset for offset in USUAL_OFFSETS if fits(offset))


def _object_values(
    slices: Sequence[NDArray[np.floating]], *, inside: bool = False
) -> NDArray[np.floating]:
    """Values of the largest object above -500 HU of each slice, lungs in: (N,).

    None of a slice in which it is tiny, or not alone: around a body is air, and around the bright
    parts of an MR image are the dark ones.  inside: none either where it touches the slice's edge.
    """
    found: list[NDArray[np.floating]] = [np.zeros(0)]
    for hu in slices:
        body = body_mask(hu)
        size = np.count_nonzero(body)
        touches = inside and edge_of(body).any()
        if touches or not _SMALLEST_OBJECT * hu.size < size < hu.size:
            continue
        beside = ~ndimage.binary_dilation(body, iterations=_BLUR_PIXELS)
        # Without the noise of air.
        smooth = ndimage.uniform_filter(hu, _BLUR_PIXELS)[beside]
        if np.count_nonzero((smooth > _AROUND_HU[0]) & (smooth < _AROUND_HU[1])) < size:
            found.append(hu[body])
    return np.concatenate(found)


def value_levels(values: NDArray[np.floating]) -> Levels:
    """How many different values (N,) there are.  Raises ValueError for none."""
    if values.size == 0:
        raise ValueError("no values to count the levels of")
    levels = np.unique(values)
    gaps = np.diff(levels)
    return Levels(
        different=int(levels.size),
        apart=float(np.mean(gaps > _STEP_HU)) if gaps.size else 0.0,
        at_top=float(np.mean(values == levels[-1])),
    )


def metal_mm2(hu: NDArray[np.floating], pixel_mm2: float) -> float:
    """Area of a slice (H, W) above 3000 HU, in mm2: denser than bone and iodine in vessels."""
    return float(np.count_nonzero(hu > METAL_HU) * pixel_mm2)


def noise_texture(slices: Sequence[NDArray[np.floating]], pixel_mm: float) -> NoiseTexture | None:
    """Noise of the quietest quarter of the flat 16 x 16 regions of slices (H, W) in HU.

    None where fewer than four regions of soft tissue are flat.  Anatomy counts, which makes the
    level an upper bound and the frequency a lower one.
    Source: noise power after Siewerdsen et al., Med. Phys. 29:2655, 2002.
    """
    found = []
    for hu in slices:
        wide = flat_corners(hu, REGION_PIXELS + 2 * _MARGIN, step=REGION_PIXELS // 2)
        wide = wide[:: -(-len(wide) // _MOST_REGIONS) or 1]
        found.append(flat_regions(hu, wide + _MARGIN, REGION_PIXELS))
    regions = np.concatenate(found)
    if len(regions) < _FEWEST_REGIONS:
        return None
    deviation = detrended_std(regions)
    count = max(_FEWEST_QUIET, int(_QUIET_SHARE * len(regions)))
    quiet = np.argsort(deviation, kind="stable")[:count]
    power = radial_power(noise_power_spectrum(regions[quiet], pixel_mm).mean(axis=0), pixel_mm)
    relative = power.frequency_per_mm / power.frequency_per_mm[-1]
    high = power.power[(relative > _HIGH_BAND[0]) & (relative <= _HIGH_BAND[1])]
    middle = power.power[(relative > _MIDDLE_BAND[0]) & (relative <= _MIDDLE_BAND[1])]
    level = float(np.sqrt(np.mean(deviation[quiet] ** 2)))
    # Constant tissue leaves what rounding leaves.
    if level <= 1e-9 or middle.mean() == 0:
        return NoiseTexture(level, 0.0, 0.0, len(quiet))
    return NoiseTexture(
        level_hu=level,
        mean_frequency_per_mm=float(mean_frequency_per_mm(power)),
        high_share=float(high.mean() / middle.mean()),
        regions=len(quiet),
    )
