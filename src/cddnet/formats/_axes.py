"""Position and orientation of a voxel grid, checked, in LPS and in RAS."""

# Order everywhere: slice, row index, column index. Coordinates in mm.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cddnet.errors import GeometryError
from cddnet.volume import CTVolume

Triple: TypeAlias = tuple[float, float, float]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Cosine between axes; header rounding stays below 1e-6, a tilted gantry is above 1e-2.
RIGHT_ANGLE = 1e-3
# Of a unit cube along the axes; two of them are nearly parallel below it.
_SMALLEST_VOLUME = 0.1


class Axes(NamedTuple):
    """The geometry fields of a CTVolume."""

    spacing_mm: Triple
    origin_mm: Triple
    direction: tuple[Triple, ...]


def axes_from_steps(where: str, steps_mm: ArrayLike, origin_mm: ArrayLike) -> Axes:
    """Axes from the way (3, 3) in mm LPS to the next slice, row and column: one per row.

    They may be skewed, see `skew_of`.  Raises GeometryError where a step is zero or not finite, or
    two are nearly parallel.
    """
    steps, origin = np.asarray(steps_mm, np.float64), np.asarray(origin_mm, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        spacing = np.linalg.norm(steps, axis=1)
    if not np.isfinite([*spacing, *origin]).all() or not (spacing > 0).all():
        raise GeometryError(
            f"{where}: the spacing or position is zero or no number (spacing {spacing.tolist()}, "
            f"position {origin.tolist()}); repair the header."
        )
    direction = steps / spacing[:, None]
    if abs(np.linalg.det(direction)) < _SMALLEST_VOLUME:
        raise GeometryError(
            f"{where}: two of its axes are nearly parallel ({np.round(direction, 3).tolist()}); "
            "repair the header."
        )
    rows = [_triple(row) for row in direction]
    return Axes(_triple(spacing), _triple(origin), tuple(rows))


def axes_from_directions(
    where: str, direction: ArrayLike, spacing_mm: ArrayLike, origin_mm: ArrayLike
) -> Axes:
    """Axes from unit vectors (3, 3), one per row, checked like `axes_from_steps`."""
    vectors, spacing = np.asarray(direction, np.float64), np.asarray(spacing_mm, np.float64)
    if vectors.shape != (3, 3) or spacing.shape != (3,) or np.shape(origin_mm) != (3,):
        raise GeometryError(
            f"{where}: direction, spacing and position have shapes {vectors.shape}, "
            f"{spacing.shape} and {np.shape(origin_mm)}, expected (3, 3), (3,) and (3,); repair "
            "the header."
        )
    if not np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=RIGHT_ANGLE):
        raise GeometryError(
            f"{where}: the directions {vectors.tolist()} are not unit vectors; repair the header."
        )
    if not (spacing > 0).all():
        raise GeometryError(
            f"{where}: the spacing {spacing.tolist()} mm is not positive; repair the header."
        )
    checked = axes_from_steps(where, vectors * spacing[:, None], origin_mm)
    return Axes(_triple(spacing), checked.origin_mm, checked.direction)


def axes_of(volume: CTVolume, where: str) -> Axes:
    """The geometry of a volume to be written, which may be skewed; refuses gaps."""
    volume.require_whole()
    return axes_from_directions(where, volume.direction, volume.spacing_mm, volume.origin_mm)


def skew_of(direction: Sequence[Sequence[float]]) -> tuple[str, ...]:
    """In words, how axes (slice, row, column) miss right angles; nothing where they meet them."""
    through, down, across = np.asarray(direction, np.float64)
    found = []
    normal = np.cross(across, down)
    along = min(abs(float(through @ normal)) / float(np.linalg.norm(normal)), 1.0)
    if np.sqrt(1 - along**2) > RIGHT_ANGLE:
        found.append(leaning(float(np.degrees(np.arccos(along)))))
    cosine = float(down @ across)
    if abs(cosine) > RIGHT_ANGLE:
        found.append(
            f"rows and columns meet at {np.degrees(np.arccos(cosine)):.2f} degrees: HU are right, "
            "distances within a slice are not exact"
        )
    return tuple(found)


def leaning(degrees: float) -> str:
    """What to say of slices that are shifted evenly against each other."""
    return (
        f"the stack leans by {degrees:.1f} degrees (gantry tilt); "
        "each slice is right, the volume is skewed"
    )


def axes_from_ras(where: str, affine: NDArray[np.float64]) -> Axes:
    """Axes from an affine (4, 4) that takes (column, row, slice) to RAS mm."""
    # What is not finite is refused where the steps are checked.
    with np.errstate(invalid="ignore"):
        lps = LPS_TO_RAS @ affine
    return axes_from_steps(where, lps[:3, 2::-1].T, lps[:3, 3])


def ras_from_axes(axes: Axes) -> NDArray[np.float64]:
    """The affine (4, 4) that takes (column, row, slice) to RAS mm."""
    lps = np.eye(4)
    lps[:3, 2::-1] = (np.asarray(axes.direction) * np.asarray(axes.spacing_mm)[:, None]).T
    lps[:3, 3] = axes.origin_mm
    return np.asarray(LPS_TO_RAS @ lps, np.float64)


def _triple(values: NDArray[np.float64]) -> Triple:
    first, second, third = (float(value) + 0.0 for value in values)
    return first, second, third
