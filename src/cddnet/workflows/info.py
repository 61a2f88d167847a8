"""What a file or folder holds, and whether it may be denoised."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cddnet.errors import CddnetError, FormatError, SeriesChoiceError
from cddnet.formats import read_volume
from cddnet.volume import CTVolume
from cddnet.workflows.fitness import examine


class SeriesInfo(NamedTuple):
    """uid: "" where the format has none.  refusal: why it may not be denoised, or None."""

    uid: str
    description: str
    notes: tuple[str, ...]
    refusal: str | None


def describe(
    source: Path, acquisition: str | None = None, *, slice_axis: int | None = None
) -> tuple[SeriesInfo, ...]:
    """Every series found; a refusal is an answer here.  Raises FormatError for a missing path.

    acquisition: of series that hold several at their places.
    slice_axis: of the slices (0, 1 or 2) in arrays that state no orientation.
    """
    if not source.exists():
        raise FormatError(f"{source}: there is no such file or folder; check the name.")
    try:
        volume = read_volume(source, acquisition=acquisition, slice_axis=slice_axis)
        return (_fit(volume),)
    except SeriesChoiceError as several:
        return tuple(_chosen(source, uid, text, acquisition) for uid, text in several.choices)
    except CddnetError as error:
        return (SeriesInfo("", "no CT series in HU", (), str(error)),)


def _chosen(source: Path, uid: str, description: str, acquisition: str | None) -> SeriesInfo:
    try:
        return _fit(read_volume(source, series=uid, acquisition=acquisition))
    except CddnetError as error:
        return SeriesInfo(uid, description, (), str(error))


def _fit(volume: CTVolume) -> SeriesInfo:
    depth, height, width = volume.shape
    slice_mm, row_mm, column_mm = volume.spacing_mm
    places = len(set(volume.slice_positions_mm()))
    slices = f"{depth} slices" if depth > 1 else "1 slice"
    if places > 1:
        where = f" at {places} places" if volume.acquisition_labels else ""
        slices += f"{where}, {slice_mm:.2f} mm apart,"
    thickness = "" if volume.thickness_mm is None else f", {volume.thickness_mm:g} mm thick"
    text = f"{slices} of {height} x {width} pixels of {row_mm:.3f} x {column_mm:.3f} mm{thickness}"
    fitness = examine(volume)
    return SeriesInfo(volume.series_uid, text, (*volume.notes, *fitness.notes), fitness.refusal)
