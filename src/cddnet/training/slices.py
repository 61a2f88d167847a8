"""Full-dose slices to learn from, out of CT volumes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import GeometryError
from cddnet.intensity.hu import air_for_padding
from cddnet.physics.beam import SliceGeometry
from cddnet.training.pairs import FullDoseSlice, StoredSlice, in_memory
from cddnet.volume import CTVolume

# Thin slices are averaged up to this thickness, so that targets are quiet.
_QUIET_MM = 5.0


def full_dose_slices(volume: CTVolume) -> Iterator[FullDoseSlice]:
    """Slices with padding set to air; thin ones averaged over runs of neighbours.

    A run ends where the distance between slices changes.
    """
    return (in_memory(item) for item in stored_slices(volume))


def stored_slices(volume: CTVolume) -> Iterator[StoredSlice]:
    """As `full_dose_slices`, but each is read only when its HU are asked for, and not kept."""
    positions_mm = volume.slice_positions_mm()
    spacing_mm = volume.spacing_mm[0]
    together = max(1, int(_QUIET_MM // max(volume.thickness_mm or spacing_mm, spacing_mm)))
    index = 0
    while index < volume.shape[0]:
        run = [index]
        while (
            len(run) < together
            and run[-1] + 1 < volume.shape[0]
            and abs(positions_mm[run[-1] + 1] - positions_mm[run[-1]] - spacing_mm) < 0.01
        ):
            run.append(run[-1] + 1)
        yield StoredSlice(
            read=partial(_mean, volume, tuple(run)),
            geometry=calibrated_geometry(volume),
            series_uid=volume.series_uid,
            slice_index=index,
        )
        index = run[-1] + 1


def _mean(volume: CTVolume, run: tuple[int, ...]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = np.mean(
        [filled(volume, item) for item in run], axis=0, dtype=np.float32
    )
    return mean


def filled(volume: CTVolume, index: int) -> NDArray[np.float32]:
    """Slice (H, W) in HU with padding set to air."""
    return air_for_padding(volume.read_slice(index), volume.padding(index))


def calibrated_geometry(volume: CTVolume) -> SliceGeometry:
    """The volume's pixels, at the photons of the calibrated 3 mm slice whatever its own thickness:
    the inserted noise is absolute.  Raises GeometryError for pixels that are not square.
    """
    _, row_mm, column_mm = volume.spacing_mm
    if abs(row_mm - column_mm) > 0.01 * column_mm:
        raise GeometryError(
            f"pixels are {row_mm:.3f} x {column_mm:.3f} mm; dose simulation needs square ones; "
            "resample the series first, or leave it out."
        )
    return SliceGeometry(pixel_mm=column_mm)
