"""Full-dose slices to learn from, out of CT volumes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import GeometryError
from cddnet.grid import AXIAL, plane_of
from cddnet.intensity.hu import air_for_padding
from cddnet.physics.beam import SliceGeometry
from cddnet.training.pairs import FullDoseSlice, StoredSlice, in_memory
from cddnet.volume import CTVolume

# Thin slices are averaged up to this thickness, so that targets are quiet.
_QUIET_MM = 5.0
# Neighbours that are nearer are images of several acquisitions.
_SAME_PLACE_MM = 0.01


def full_dose_slices(volume: CTVolume) -> Iterator[FullDoseSlice]:
    """Slices with padding set to air; thin ones averaged over runs of neighbours.

    A run ends where the distance between slices changes. Of several acquisitions at the same places
    none is averaged.
    """
    return (in_memory(item) for item in stored_slices(volume))


def stored_slices(volume: CTVolume) -> Iterator[StoredSlice]:
    """As `full_dose_slices`, but each is read only when its HU are asked for, and not kept."""
    for run in _runs(volume):
        yield StoredSlice(
            read=partial(_mean, volume, run),
            geometry=calibrated_geometry(volume),
            series_uid=volume.series_uid,
            slice_index=run[0],
        )


def slab_volume(volume: CTVolume) -> CTVolume:
    """The slices of `stored_slices` as a volume, so that their own noise can be measured.

    Its slices are read on demand; those at the end of a run may be thinner than it says.
    """
    runs = _runs(volume)
    spacing_mm = volume.spacing_mm[0]
    longest = max(map(len, runs))
    thickness_mm = (volume.thickness_mm or spacing_mm) + (longest - 1) * spacing_mm
    positions_mm = volume.slice_positions_mm()
    return replace(
        volume,
        shape=(len(runs), *volume.shape[1:]),
        spacing_mm=(longest * spacing_mm, *volume.spacing_mm[1:]),
        read_slice=lambda index: _mean(volume, runs[index]),
        read_padding=None,
        thickness_mm=thickness_mm,
        thicknesses_mm=volume.thicknesses_mm if longest == 1 else (),
        acquisition_labels=(),
        positions_mm=tuple(float(np.mean([positions_mm[item] for item in run])) for run in runs),
        headers=None,
    )


def _runs(volume: CTVolume) -> list[tuple[int, ...]]:
    """Neighbours that are averaged, each slice in one run."""
    positions_mm = volume.slice_positions_mm()
    spacing_mm = volume.spacing_mm[0]
    together = max(1, int(_QUIET_MM // max(volume.thickness_mm or spacing_mm, spacing_mm)))
    if np.any(np.diff(positions_mm) < _SAME_PLACE_MM):
        together = 1
    runs: list[list[int]] = []
    for index in range(volume.shape[0]):
        run = runs[-1] if runs else []
        if (
            0 < len(run) < together
            and abs(positions_mm[index] - positions_mm[run[-1]] - spacing_mm) < 0.01
        ):
            run.append(index)
        else:
            runs.append([index])
    return [tuple(run) for run in runs]


def _mean(volume: CTVolume, run: tuple[int, ...]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = np.mean(
        [filled(volume, item) for item in run], axis=0, dtype=np.float32
    )
    return mean


def filled(volume: CTVolume, index: int) -> NDArray[np.float32]:
    """Slice (H, W) in HU with padding set to air."""
    return air_for_padding(volume.read_slice(index), volume.padding(index))


def require_axial(volume: CTVolume) -> None:
    """Refuse slices in which the X-rays of a scanner never ran.  Raises GeometryError."""
    plane = plane_of(volume.direction)
    if plane != AXIAL:
        raise GeometryError(
            f"slices are {plane}; dose and noise are computed along the rays of the scanner, which "
            "run in axial slices; give the axial series."
        )


def calibrated_geometry(volume: CTVolume) -> SliceGeometry:
    """The volume's pixels, at the photons of the calibrated 3 mm slice whatever its own thickness:
    the inserted noise is absolute.  Raises GeometryError for slices that are not axial, and for
    pixels that are not square.
    """
    require_axial(volume)
    _, row_mm, column_mm = volume.spacing_mm
    if abs(row_mm - column_mm) > 0.01 * column_mm:
        raise GeometryError(
            f"pixels are {row_mm:.3f} x {column_mm:.3f} mm; dose simulation needs square ones; "
            "resample the series first, or leave it out."
        )
    return SliceGeometry(pixel_mm=column_mm)
