"""What a few slices show by themselves: are these HU, and how does their noise look?

Nothing here needs a header, a second image or a network; a slice costs some ten milliseconds.
"""

# Shapes: D slice, H row, W column, N region, S side of a region.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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

# Soft tissue and fat with their noise; what is denser than nearly all bone; what is no tissue.
_TISSUE_HU = 200.0
_DENSE_HU = 700.0
_AIRY_HU = -500.0
# A constant below this is what a scanner writes outside its field of view, not air.
_OUTSIDE_HU = -1020.0
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


class ValueSigns(NamedTuple):
    """Shares between 0 and 1 of the pixels that hold a measurement.

    airy: below -500 HU.  negative: below water.  tissue: within 200 HU of water.
    Of the pixels above -500 HU: tissue_of_dense within 200 HU of water, between those from -500 to
    -200 HU, dense above 700 HU.
    """

    airy: float
    negative: float
    tissue: float
    tissue_of_dense: float
    between: float
    dense: float


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

    A constant below -1020 HU in a hundredth or more of them is padding that no header tells.
    """
    values: NDArray[np.float64] = np.concatenate(
        [hu[::2, ::2][~empty[::2, ::2]] for hu, empty in zip(slices, padding, strict=True)]
    ).astype(np.float64)
    if values.size and (lowest := values.min()) < _OUTSIDE_HU:
        kept: NDArray[np.float64] = values[values > lowest]
        if kept.size <= 0.99 * values.size:
            return kept
    return values


def value_signs(values: NDArray[np.floating]) -> ValueSigns:
    """Where values (N,) lie on the HU scale; all zero for none."""
    if values.size == 0:
        return ValueSigns(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    body = values[values > _AIRY_HU]
    total, inside = values.size, max(body.size, 1)

    def share(found: NDArray[np.bool_], among: int) -> float:
        return float(np.count_nonzero(found) / among)

    tissue = np.abs(body) < _TISSUE_HU
    return ValueSigns(
        airy=1 - body.size / total,
        negative=share(values < 0, total),
        tissue=share(tissue, total),
        tissue_of_dense=share(tissue, inside),
        between=share(body <= -_TISSUE_HU, inside),
        dense=share(body > _DENSE_HU, inside),
    )


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
