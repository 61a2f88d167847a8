"""DICOM Parametric Map, back from the file: the numbers of `_parametric` at their places.

Sources: PS3.3 A.75 (the object), C.7.6.16 (functional groups), C.7.6.24 (floating point pixels).
"""

# Shapes: D frame, H row, W column.

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom import Dataset, uid

from cddnet.errors import CddnetError, DicomError, FormatError
from cddnet.formats._dicom_frames import Frame, group_item
from cddnet.formats._dicom_geometry import stack
from cddnet.formats._dicom_pixels import (
    SEND_AGAIN,
    frame_count,
    quiet,
    read_up_to_pixels,
    transfer_syntax_of,
)
from cddnet.formats._dicom_values import Vector, directions, joined_text
from cddnet.formats._finite import finite_hu
from cddnet.formats._parametric import BYTES_PER_PIXEL, Quantity
from cddnet.formats._stored import require_slice_size
from cddnet.volume import CTVolume, SliceHU

FLOAT_PIXELS = b"\xe0\x7f\x08\x00"
SYNTAXES = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)


@dataclass(frozen=True, slots=True)
class MapHeader:
    """The data set of a map, of which no CT can be written."""

    dataset: Dataset = field(repr=False)


def read_parametric_map(path: Path, quantity: Quantity | None = None) -> CTVolume:
    """The maps (H, W) of a parametric map as slices; one frame is in memory at a time.

    path: a file as `write_parametric_map` makes it.  quantity: what it must hold, None for any.
    The slices hold the stored numbers instead of HU; `headers` is a MapHeader.
    Raises: DicomError for another object, another quantity, or a damaged one; GeometryError where
    the frames do not lie on one grid; FormatError where it cannot be read.
    """
    try:
        with quiet():
            return _read(path, quantity)
    except CddnetError:
        raise
    except OSError as error:
        raise FormatError(
            f"{path}: reading failed ({error.strerror or error}); check the name, or copy it."
        ) from error
    except Exception as error:
        # Not chained: the library's message may quote a value that names the patient.
        raise DicomError(
            f"{path.name}: its header is damaged or no DICOM ({type(error).__name__}); {SEND_AGAIN}"
        ) from None


def _read(path: Path, quantity: Quantity | None) -> CTVolume:
    with path.open("rb") as file:
        header = read_up_to_pixels(file, path.name)
        syntax = transfer_syntax_of(header)
        head = file.read(8 if syntax.is_implicit_VR else 12)
        offset = file.tell()
        there = file.seek(0, os.SEEK_END) - offset
    _require_map(header, path.name, quantity)
    rows, columns, count = int(header.Rows), int(header.Columns), frame_count(header)
    require_slice_size(path.name, rows, columns)
    size = BYTES_PER_PIXEL * rows * columns
    if syntax not in SYNTAXES or head[:4] != FLOAT_PIXELS or header.get("SamplesPerPixel") != 1:
        raise DicomError(
            f"{path.name}: its numbers are no uncompressed 32-bit floating point pixels; "
            "give the file as cddnet wrote it."
        )
    if min(there, int.from_bytes(head[-4:], "little")) < count * size:
        raise DicomError(
            f"{path.name}: its {count} frames need {count * size} bytes, but only {there} are "
            f"there; {SEND_AGAIN}"
        )
    frames = [_frame(header, path, index) for index in range(count)]
    slices = stack(frames, "of the map", compare=False)

    def read_slice(index: int) -> SliceHU:
        frame = slices.frames[index]
        with path.open("rb") as file:
            file.seek(offset + frame.index * size)
            stored = np.frombuffer(file.read(size), "<f4").reshape(rows, columns)
        return finite_hu(stored, frame.name)

    thick = {frame.thickness_mm for frame in slices.frames}
    return CTVolume(
        shape=(len(slices.frames), rows, columns),
        spacing_mm=slices.spacing_mm,
        read_slice=read_slice,
        origin_mm=slices.origin_mm,
        direction=slices.direction,
        thickness_mm=thick.pop() if len(thick) == 1 else None,
        positions_mm=slices.positions_mm,
        series_uid=joined_text(header, "SeriesInstanceUID"),
        headers=MapHeader(header),
        notes=slices.notes,
        volume_problems=slices.problems,
        acquisition_labels=slices.labels,
        skew=slices.skew,
    )


def _require_map(header: Dataset, name: str, quantity: Quantity | None) -> None:
    kind = joined_text(header, "SOPClassUID")
    if kind != uid.ParametricMapStorage:
        found = uid.UID(kind).name.removesuffix(" Storage") if kind else "of no stated kind"
        raise DicomError(f"{name}: is no DICOM Parametric Map but: {found}; give the map.")
    label = joined_text(header, "ContentLabel")
    if quantity and label != quantity.label:
        raise DicomError(
            f"{name}: is a map of {label or 'nothing that is stated'}, expected {quantity.label}; "
            "give the map of that."
        )


def _frame(header: Dataset, path: Path, index: int) -> Frame:
    """Where a frame lies; what concerns stored integers says nothing here."""
    measures = group_item(header, index, "PixelMeasuresSequence")
    orientation = group_item(header, index, "PlaneOrientationSequence").ImageOrientationPatient
    position = group_item(header, index, "PlanePositionSequence").ImagePositionPatient
    thickness_mm = measures.get("SliceThickness")
    row_mm, column_mm = map(float, measures.PixelSpacing)
    across = directions(tuple(map(float, orientation)), path.name)
    if not (row_mm > 0 and column_mm > 0):
        raise ValueError("spacing")
    return Frame(
        path=path,
        index=index,
        kept=header,
        sop_uid=joined_text(header, "SOPInstanceUID"),
        instance_number="",
        size=(int(header.Rows), int(header.Columns)),
        spacing_mm=(row_mm, column_mm),
        thickness_mm=None if thickness_mm in (None, "") else float(thickness_mm),
        position_mm=_vector(position),
        row_direction=across.row,
        column_direction=across.column,
        slope=1.0,
        intercept=0.0,
        gantry_tilt_degrees=0.0,
        acquisition="",
        legal=(0, 0),
        padding=None,
        rounded_digits=across.digits,
    )


def _vector(values: object) -> Vector:
    first, second, third = (float(value) for value in values)  # type: ignore[attr-defined]
    if not all(map(math.isfinite, (first, second, third))):
        raise ValueError("not finite")
    return first, second, third
