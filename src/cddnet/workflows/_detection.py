"""Detectability of inserted lesions before and after denoising, in real slices and in water."""

# Shapes: H row, W column, L place, N image, S side of a region.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import CddnetError
from cddnet.metrics.noise import detrended_std, flat_corners, flat_regions
from cddnet.physics import phantom
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.dose import SCANNER_FLOOR_HU, add_noise, insert_noise, rng_for
from cddnet.training.pairs import Learnable
from cddnet.volume import SliceHU
from cddnet.workflows._observer import (
    FULL_DOSE,
    LOW_DOSE,
    DetectionOptions,
    LesionRow,
    Scene,
    observed,
)

Denoise = Callable[[SliceHU], SliceHU]

# Widths of the regions in diameters. A blur carries what lies outside a region into it; with these
# and the observer's channels a linear filter changes d' by a percent or two, and one as wide as the
# lesion by up to six.
_REGION_IN_SLICES, _REGION_IN_WATER = 2.0, 4.0
_NOISY = 1.25
# Places in water lie on a ring, where the noise is the same by symmetry, and this far apart.
_RING_MM = 60.0
_APART = 1.05


def detect_in_slices(
    slices: Sequence[Learnable], methods: Mapping[str, Denoise], options: DetectionOptions
) -> tuple[LesionRow, ...]:
    """Lesions inserted into flat soft tissue of full-dose slices before the low dose is simulated.

    methods: name -> what it makes of a low-dose slice (H, W) in HU.
    Returns: for each lesion the low dose, the methods and the full dose.
    With and without lesion at the same places, with independent inserted noise; the full dose has
    one noise only, and its pairs share it. The interval is over places of these slices and says
    nothing on other patients.
    Raises: CddnetError where too few flat places are found.
    """
    width_mm = _REGION_IN_SLICES * max(lesion.diameter_mm for lesion in options.lesions)
    sides = [_side(width_mm, source.geometry.pixel_mm) for source in slices]
    centres = [flat_places(s.hu, side) for s, side in zip(slices, sides, strict=True)]
    step = max(1, math.ceil(sum(map(len, centres)) / options.most_places))
    chosen = list(zip(slices, centres, sides, strict=True))[::step]
    used = sum(len(found) > 0 for _, found, _ in chosen)
    firsts = np.cumsum([0, *(len(found) for _, found, _ in chosen)])
    scenes = (
        Scene(
            hu=source.hu,
            pixel_mm=source.geometry.pixel_mm,
            side=side,
            centres=found,
            place=np.arange(first, first + len(found), dtype=np.intp),
            noises=(2 * realisation, 2 * realisation + 1),
            rows=partial(_rows_of_slice, source, methods, options),
        )
        for (source, found, side), first in zip(chosen, firsts[:-1], strict=True)
        for realisation in range(options.realisations)
        if len(found)
    )
    where = (
        f"lesions inserted before {options.dose_fraction:.0%} of the dose was simulated, "
        f"flat soft tissue in {used} of {len(slices)} slices; interval over places"
    )
    return observed(scenes, options, where)


def detect_in_water(
    geometry: SliceGeometry, size: int, methods: Mapping[str, Denoise], options: DetectionOptions
) -> tuple[LesionRow, ...]:
    """As `detect_in_slices`, on a ring in a water phantom of 200 mm with new noise each time.

    Parameters: size of the square slice in pixels.
    The noise is that of bare water: these lesions change it by less than a percent.
    Raises: CddnetError where the slice does not hold the phantom.
    """
    made = phantom.build("water-200")
    if size * geometry.pixel_mm < made.field_mm:
        raise CddnetError(
            f"{size} pixels of {geometry.pixel_mm:g} mm do not hold the phantom; "
            f"{made.field_mm:g} mm are needed; choose larger pixels or more of them."
        )
    water = phantom.render(made, size, geometry.pixel_mm)
    width_mm = _REGION_IN_WATER * max(lesion.diameter_mm for lesion in options.lesions)
    side = _side(width_mm, geometry.pixel_mm)
    count = int(2 * np.pi * _RING_MM / (side * geometry.pixel_mm * _APART))
    angles = 2 * np.pi * np.arange(count) / count
    ring = np.stack([np.sin(angles), np.cos(angles)], axis=1) * _RING_MM / geometry.pixel_mm
    centres = np.rint(ring + (size - 1) / 2).astype(np.intp)

    # Both noises of a realisation at both doses are asked for once by each lesion.
    @lru_cache(maxsize=4)
    def noise(number: int, dose_fraction: float) -> SliceHU:
        rng = rng_for(f"water {dose_fraction}", number, options.seed)
        measured = add_noise(
            water, geometry, rng, dose_fraction=dose_fraction, kernel=options.kernel
        )
        return measured.hu - water

    def rows(hu: SliceHU, number: int) -> dict[str, SliceHU]:
        low = hu + noise(number, options.dose_fraction)
        denoised = {name: denoise(low) for name, denoise in methods.items()}
        return {LOW_DOSE: low, **denoised, FULL_DOSE: hu + noise(number, 1.0)}

    scenes = (
        Scene(
            hu=water,
            pixel_mm=geometry.pixel_mm,
            side=side,
            centres=centres,
            place=np.arange(count, dtype=np.intp) + number * count,
            noises=(2 * number, 2 * number + 1),
            rows=rows,
        )
        for number in range(math.ceil(options.most_places / count))
    )
    where = (
        f"water phantom of 200 mm at {options.dose_fraction:.0%} of the dose, "
        f"{_RING_MM:g} mm from the axis; interval over noise"
    )
    return observed(scenes, options, where)


def flat_places(hu: NDArray[np.floating], side: int) -> NDArray[np.intp]:
    """Centres (L, 2) of regions of odd `side` in flat soft tissue of a slice (H, W), none of which
    overlap; those noisier than 1.25 times their median hold vessels and edges and are left out.
    """
    corners = flat_corners(hu, side, step=max(1, side // 4))
    if not len(corners):
        return corners
    noise = detrended_std(flat_regions(hu, corners, side))
    taken: list[NDArray[np.intp]] = []
    free = np.ones(hu.shape, np.bool_)
    for corner in corners[noise <= _NOISY * np.median(noise)]:
        region = np.s_[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
        if free[region].all():
            free[region] = False
            taken.append(corner)
    return np.array(taken) + side // 2


def _rows_of_slice(
    source: Learnable,
    methods: Mapping[str, Denoise],
    options: DetectionOptions,
    hu: SliceHU,
    number: int,
) -> dict[str, SliceHU]:
    rng = rng_for(source.series_uid, source.slice_index, options.seed * 10**6 + number)
    inserted = insert_noise(
        hu, source.geometry, rng, dose_fraction=options.dose_fraction, kernel=options.kernel
    )
    low = np.maximum(inserted.hu, np.float32(SCANNER_FLOOR_HU))
    return {
        LOW_DOSE: low,
        **{name: denoise(low) for name, denoise in methods.items()},
        FULL_DOSE: hu,
    }


def _side(width_mm: float, pixel_mm: float) -> int:
    """Odd number of pixels that is at least so wide."""
    return 2 * math.ceil(width_mm / (2 * pixel_mm)) + 1
