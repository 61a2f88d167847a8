"""How slices lie in a patient: their plane, and their orientation in words."""

# Coordinates are DICOM patient coordinates (LPS). A direction is (slice, row index, column index),
# unit vectors; the row index grows downwards.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

AXIAL = "axial"
PLANES = ("sagittal", "coronal", AXIAL)
_WAYS = (("right", "left"), ("front", "back"), ("feet", "head"))
# A gantry tilts by up to 30 degrees; slices at a larger angle were reformatted.
_LARGEST_TILT_DEGREES = 35.0


def plane_of(direction: Sequence[Sequence[float]]) -> str:
    """The plane of the slices: axial, coronal, sagittal, or oblique where none of them is near."""
    normal = np.abs(np.cross(direction[2], direction[1]))
    axis = int(normal.argmax())
    near = normal[axis] >= np.cos(np.radians(_LARGEST_TILT_DEGREES)) * np.linalg.norm(normal)
    return PLANES[axis] if near else "oblique"


def plane_notes(direction: Sequence[Sequence[float]]) -> tuple[str, ...]:
    """What to say of slices that are not axial; nothing of axial ones."""
    plane = plane_of(direction)
    if plane == AXIAL:
        return ()
    return (f"slices are {plane}, and the networks were trained on axial ones",)


def orientation_words(direction: Sequence[Sequence[float]]) -> str:
    """Where rows and columns run to: "rows from front to back, columns from right to left"."""
    _, down, across = direction
    return f"rows {_way(down)}, columns {_way(across)}"


def _way(vector: Sequence[float]) -> str:
    axis = int(np.abs(vector).argmax())
    start, end = _WAYS[axis] if vector[axis] > 0 else _WAYS[axis][::-1]
    return f"from {start} to {end}"
