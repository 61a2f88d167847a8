"""Small low-contrast lesions put into training slices, and what tells how much of them is kept.

A network that learns the least mean-square error learns that small faint things are rare, and
takes them for noise. Lesions of known contrast make them less rare, and let a loss see the bias.
"""

# Shapes: H row, W column, S strata.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from cddnet.config import LesionRange

# Fat, water and soft tissue, after averaging over 5 pixels.
_TISSUE_HU = (-130.0, 150.0)
# Centres of lesions stay this many of the largest diameter apart.
_SPACING = 1.5


class Lesions(NamedTuple):
    """hu: (H, W), to be added to the slice.  weights: (S, H, W) per HU; the sum of weights times
    what was kept of `hu` is the mean share kept of each lesion, times their number in the stratum.
    """

    hu: NDArray[np.float32]
    weights: NDArray[np.float32]


def draw_lesions(
    slice_hu: NDArray[np.float32], pixel_mm: float, lesions: LesionRange, rng: np.random.Generator
) -> Lesions:
    """Elliptical lesions of either sign at random places of soft tissue of a slice (H, W).

    They do not overlap. Each stratum has an equal share of them; small ones have more contrast.
    """
    hu = np.zeros(slice_hu.shape, np.float32)
    weights = np.zeros((len(lesions.strata), *slice_hu.shape), np.float32)
    largest_mm = max(stratum.diameter_mm[1] for stratum in lesions.strata)
    for centre in _places(slice_hu, largest_mm / pixel_mm, lesions.per_slice, rng):
        number = int(rng.integers(len(lesions.strata)))
        stratum = lesions.strata[number]
        diameter = rng.uniform(*stratum.diameter_mm) / pixel_mm
        contrast = rng.uniform(*stratum.contrast_hu) * (1 if rng.random() < 0.5 else -1)
        window, shape = _ellipse(centre, diameter, rng.uniform(*lesions.edge_mm) / pixel_mm, rng)
        hu[window] += contrast * shape
        weights[(number, *window)] += shape / (contrast * np.square(shape).sum())
    return Lesions(hu, weights)


def _places(
    slice_hu: NDArray[np.float32], largest: float, count: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """At most `count` places (n, 2) in tissue, apart by their grid, which lies at random."""
    step = int(np.ceil(_SPACING * largest)) + 1
    margin = step
    smooth = ndimage.uniform_filter(slice_hu, 5)
    offset = rng.integers(step, size=2)
    rows, columns = (
        np.arange(margin + start, side - margin, step)
        for start, side in zip(offset, slice_hu.shape, strict=True)
    )
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    if not len(grid):
        return grid
    values = smooth[grid[:, 0], grid[:, 1]]
    fitting = grid[(values > _TISSUE_HU[0]) & (values < _TISSUE_HU[1])]
    return rng.permutation(fitting)[:count]


def _ellipse(
    centre: NDArray[np.intp], diameter: float, edge: float, rng: np.random.Generator
) -> tuple[tuple[slice, slice], NDArray[np.float32]]:
    """Its window in the slice, and its values 0 to 1; edge: standard deviation of the blur, pixels.

    Its axes are within 1.25 of each other's; sizes are in pixels.
    """
    aspect, turned = np.sqrt(rng.uniform(0.8, 1.25)), rng.uniform(0, np.pi)
    reach = int(np.ceil(diameter / 2 * 1.12 + 3 * edge)) + 1
    offset = rng.uniform(-0.5, 0.5, (2, 1, 1))
    row, column = np.mgrid[-reach : reach + 1, -reach : reach + 1] + offset
    along = row * np.cos(turned) + column * np.sin(turned)
    across = column * np.cos(turned) - row * np.sin(turned)
    radius = np.hypot(along * aspect, across / aspect)
    shape = 0.5 * special.erfc((radius - diameter / 2) / (np.sqrt(2) * edge))
    window = tuple(slice(int(middle) - reach, int(middle) + reach + 1) for middle in centre)
    return (window[0], window[1]), shape.astype(np.float32)
