"""Volumes as radiologists look at them, so that mirrored copies of one volume can be compared."""

# Shapes: D slice, H row, W column. Coordinates are DICOM patient coordinates (LPS), mm.

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from cddnet.grid import plane_of
from cddnet.volume import CTVolume, Mask, SliceHU, Storage

# Where the row index and the column index grow to, for each plane.
_LOOKED_AT = {
    "axial": ((0, 1, 0), (1, 0, 0)),
    "coronal": ((0, 0, -1), (1, 0, 0)),
    "sagittal": ((0, 0, -1), (0, 1, 0)),
}
_ROW, _COLUMN = 1, 2

Values = TypeVar("Values", SliceHU, Mask)


def upright(volume: CTVolume) -> CTVolume:
    """The volume with rows and columns as they are looked at: axial ones run to back and left.

    Nothing is resampled: rows and columns are mirrored or exchanged, each voxel keeps its place. A
    volume stays as it is where it comes from DICOM, whose images are shown as they are, or where
    its file states no orientation.
    """
    wanted = _LOOKED_AT.get(plane_of(volume.direction))
    if wanted is None or volume.headers is not None or not volume.storage.placed:
        return volume
    down, across = wanted
    turned = volume
    if abs(np.dot(turned.direction[_ROW], down)) < abs(np.dot(turned.direction[_COLUMN], down)):
        turned = _exchanged(turned)
    for axis, way in ((_ROW, down), (_COLUMN, across)):
        if np.dot(turned.direction[axis], way) < 0:
            turned = _mirrored(turned, axis)
    return turned


def _exchanged(volume: CTVolume) -> CTVolume:
    """Rows become columns."""
    depth, height, width = volume.shape
    slice_mm, row_mm, column_mm = volume.spacing_mm
    through, down, across = volume.direction

    def turn(values: Values) -> Values:
        return np.ascontiguousarray(values.T)

    return replace(
        volume,
        shape=(depth, width, height),
        spacing_mm=(slice_mm, column_mm, row_mm),
        direction=(through, across, down),
        read_slice=lambda index: turn(volume.read_slice(index)),
        read_padding=lambda index: turn(volume.padding(index)),
        storage=Storage(),
    )


def _mirrored(volume: CTVolume, axis: int) -> CTVolume:
    """The last row or column becomes the first."""
    step_mm = np.array(volume.direction[axis]) * volume.spacing_mm[axis]
    x, y, z = np.array(volume.origin_mm) + step_mm * (volume.shape[axis] - 1)
    directions = list(volume.direction)
    right, back, up = directions[axis]
    directions[axis] = (-right, -back, -up)

    def turn(values: Values) -> Values:
        return np.ascontiguousarray(np.flip(values, axis - 1))

    return replace(
        volume,
        origin_mm=(float(x), float(y), float(z)),
        direction=tuple(directions),
        read_slice=lambda index: turn(volume.read_slice(index)),
        read_padding=lambda index: turn(volume.padding(index)),
        storage=Storage(),
    )
