"""Uniformity: the CT number of water, and whether the rim shows the same as the centre."""

# Shapes: H row, W column.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REGION_MM = 16.0
RIM_MM = 4.0


class Cylinder(NamedTuple):
    """A round phantom: row and column of its centre, in pixels from 0, and its radius."""

    row: float
    column: float
    radius_mm: float


class Uniformity(NamedTuple):
    """Means of a region in the centre and of four at the rim: above, right, below, left."""

    centre_hu: float
    edges_hu: tuple[float, float, float, float]

    @property
    def edge_less_centre_hu(self) -> float:
        """The difference that is largest in size, with its sign."""
        return max((edge - self.centre_hu for edge in self.edges_hu), key=abs)

    @property
    def mean_hu(self) -> float:
        """Over the five regions: the CT number of the material."""
        return (self.centre_hu + sum(self.edges_hu)) / 5


def uniformity(
    hu: NDArray[np.floating],
    pixel_mm: float,
    cylinder: Cylinder,
    free: NDArray[np.bool_],
) -> Uniformity:
    """Centre and rim of a uniform cylinder.

    Parameters: hu (H, W), a slice or the mean of several, square pixels; free (H, W), pixels that
    show nothing but the cylinder's material. Regions are 16 mm wide, 4 mm inside the edge.
    Raises: ValueError where a region is not free.
    Source: the layout of IEC 61223-3-5 and the ACR phantom, with smaller regions nearer the edge.
    """
    reach = (cylinder.radius_mm - RIM_MM - REGION_MM / 2) / pixel_mm
    rows, columns = np.indices(hu.shape)

    def mean(down: float, right: float) -> float:
        row, column = cylinder.row + down * reach, cylinder.column + right * reach
        region = np.hypot(rows - row, columns - column) * pixel_mm <= REGION_MM / 2
        if not region.any() or not free[region].all():
            raise ValueError(
                f"the region of {REGION_MM:g} mm at row {row:.0f}, column {column:.0f} holds more "
                "than the cylinder's material"
            )
        return float(np.mean(hu[region], dtype=np.float64))

    edges = (mean(-1, 0), mean(0, 1), mean(1, 0), mean(0, -1))
    return Uniformity(mean(0, 0), edges)
