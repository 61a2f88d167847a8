"""Order and geometry of the slices of one series."""

# Shapes: D slice. Coordinates are DICOM patient coordinates (LPS), mm.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import DicomError, GeometryError
from cddnet.formats._dicom_frames import Frame
from cddnet.formats._dicom_pixels import SEND_AGAIN, frame_count, read_stored
from cddnet.formats._dicom_values import Vector

SAME_POSITION_MM = 0.01
SPACING_TOLERANCE_MM = 0.02
SPACING_TOLERANCE_FRACTION = 0.01
DIRECTION_TOLERANCE = 1e-3
PIXEL_TOLERANCE_FRACTION = 1e-3
SIDEWAYS_TOLERANCE_MM = 0.1


class Stack(NamedTuple):
    """Slices in order along their normal, and the grid they form.

    spacing_mm: (slice, row, column); direction: unit vectors (slice, row index, column index).
    positions_mm: along the normal from the first slice, empty where they are evenly spaced.
    notes: what a user should know; problems: what forbids work across slices.
    """

    frames: tuple[Frame, ...]
    spacing_mm: Vector
    origin_mm: Vector
    direction: tuple[Vector, Vector, Vector]
    positions_mm: tuple[float, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def stack(frames: Sequence[Frame], uid: str) -> Stack:
    """Sort the slices of a series by position and check that they belong on one grid.

    Raises GeometryError for slices of different size, spacing or orientation, without a position,
    or several at one place.
    """
    _require_one_grid(frames, uid)
    if len(frames) == 1:
        return _lone(frames[0])
    row, column = _require_placed(frames, uid)
    normal = np.cross(row, column)
    positions = np.array([frame.position_mm for frame in frames], dtype=np.float64)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    ordered = [frames[index] for index in order]
    kept, dropped = _drop_repeats(ordered, along[order], uid)
    frames = [ordered[index] for index in kept]
    positions, along = positions[order][kept], along[order][kept]
    notes = [f"copies of {dropped} slices were found and left out"] if dropped else []
    if len(frames) == 1:
        lone = _lone(frames[0])
        return lone._replace(notes=(*notes, *lone.notes))
    steps_mm = np.diff(along)
    step_mm = float(np.median(steps_mm))
    problems = _spacing_problems(steps_mm, step_mm, along)
    positions_mm = tuple((along - along[0]).tolist()) if problems else ()
    tilted, slice_direction = _sideways(positions, along, normal, frames[0])
    problems += tilted + _frame_of_reference_problems(frames)
    return Stack(
        frames=tuple(frames),
        spacing_mm=(
            step_mm / float(slice_direction @ normal),
            frames[0].spacing_mm[0],
            frames[0].spacing_mm[1],
        ),
        origin_mm=_vector(positions[0]),
        direction=(_vector(slice_direction), _vector(column), _vector(row)),
        positions_mm=positions_mm,
        notes=(*notes, *problems),
        problems=tuple(problems),
    )


def _lone(frame: Frame) -> Stack:
    notes = []
    row, column = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    if frame.row_direction is not None and frame.column_direction is not None:
        row, column = np.array(frame.row_direction), np.array(frame.column_direction)
    if frame.position_mm is None or frame.row_direction is None:
        notes.append("the slice does not say where it lies in the patient")
    problems = list(notes)
    thickness_mm = frame.thickness_mm
    if thickness_mm is None or thickness_mm <= 0:
        problems.append("the slice does not say how thick it is")
        thickness_mm = 1.0
    return Stack(
        frames=(frame,),
        spacing_mm=(thickness_mm, *frame.spacing_mm),
        origin_mm=frame.position_mm or (0.0, 0.0, 0.0),
        direction=(_vector(np.cross(row, column)), _vector(column), _vector(row)),
        positions_mm=(),
        notes=tuple(problems),
        problems=tuple(problems),
    )


def _require_one_grid(frames: Sequence[Frame], uid: str) -> None:
    _require_alike(frames, uid, "matrix size", lambda frame: frame.size, 0.0)
    spacing = (lambda frame: frame.spacing_mm, PIXEL_TOLERANCE_FRACTION * min(frames[0].spacing_mm))
    _require_alike(frames, uid, "pixel spacing (mm)", *spacing)


def _require_placed(
    frames: Sequence[Frame], uid: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    for frame in frames:
        for keyword, value in (
            ("ImagePositionPatient", frame.position_mm),
            ("ImageOrientationPatient", frame.row_direction),
        ):
            if value is None:
                raise GeometryError(
                    f"series {uid}: {frame.name} has no {keyword}, so its place among the "
                    f"{len(frames)} slices is unknown; export the original series"
                    f"{_or_without(frame)}."
                )
    _require_alike(frames, uid, "orientation", _orientation, DIRECTION_TOLERANCE)
    return np.array(frames[0].row_direction), np.array(frames[0].column_direction)


def _orientation(frame: Frame) -> tuple[float, ...]:
    return (*(frame.row_direction or ()), *(frame.column_direction or ()))


def _require_alike(
    frames: Sequence[Frame],
    uid: str,
    what: str,
    value_of: Callable[[Frame], tuple[float, ...]],
    tolerance: float,
) -> None:
    """Refuse slices that differ, by the name of one that is unlike most of the others."""
    values = np.array([value_of(frame) for frame in frames], dtype=np.float64)
    apart = np.abs(values - values[0]).max(axis=1) > tolerance
    if not apart.any():
        return
    most, other = (0, int(np.argmax(apart)))
    if apart.sum() > len(frames) / 2:
        most, other = other, most
    raise GeometryError(
        f"series {uid}: the {what} differs, {_shown(value_of(frames[most]))} in "
        f"{frames[most].name} but {_shown(value_of(frames[other]))} in {frames[other].name}; "
        f"export each as its own series{_or_without(frames[other])}."
    )


def _or_without(frame: Frame) -> str:
    """A remedy for one odd slice, which as one of several frames cannot be taken out."""
    several = frame_count(frame.header) > 1
    return "" if several else ", or, if it is no slice of the series, take it out"


def _shown(value: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{number:g}" for number in value) + ")"


def _drop_repeats(
    frames: Sequence[Frame], along: NDArray[np.float64], uid: str
) -> tuple[list[int], int]:
    """Slices to keep where a file is there twice. Raises where different images share a place."""
    kept = [0]
    for index in range(1, len(frames)):
        if along[index] - along[kept[-1]] > SAME_POSITION_MM:
            kept.append(index)
            continue
        rivals = [other for other in kept if along[index] - along[other] <= SAME_POSITION_MM]
        twin = next((frames[i] for i in rivals if _same_image(frames[i], frames[index])), None)
        if twin is None:
            places = int(np.count_nonzero(np.diff(along) > SAME_POSITION_MM)) + 1
            raise _shared_place(frames[kept[-1]], frames[index], uid, (len(frames), places))
    uids = Counter((frames[index].sop_uid, frames[index].index) for index in kept)
    repeated = [pair for pair, count in uids.items() if count > 1 and pair[0]]
    if repeated:
        raise DicomError(
            f"series {uid}: {uids[repeated[0]]} different slices carry the SOPInstanceUID "
            f"{repeated[0][0]}; {SEND_AGAIN}"
        )
    return kept, len(frames) - len(kept)


def _same_image(one: Frame, other: Frame) -> bool:
    if one.sop_uid != other.sop_uid or one.index != other.index or not one.sop_uid:
        return False
    if not np.array_equal(read_stored(one.path, one.index), read_stored(other.path, other.index)):
        raise DicomError(
            f"{one.name} and {other.name} carry one SOPInstanceUID but different pixels, so one of "
            f"them was changed; {SEND_AGAIN}"
        )
    return True


def _shared_place(one: Frame, other: Frame, uid: str, counts: tuple[int, int]) -> GeometryError:
    images, places = counts
    pair = (
        f"instance number {one.instance_number or '?'} ({one.name}) and "
        f"{other.instance_number or '?'} ({other.name})"
    )
    if places == 1:
        return GeometryError(
            f"series {uid}: all {images} images lie at one position, {pair} among them, as in "
            "bolus tracking; choose the series of the scan itself, or give one file alone."
        )
    return GeometryError(
        f"series {uid}: {images} images lie at only {places} positions, such as {pair}: several "
        "phases or acquisitions in one series. Export each as its own series, "
        "or give one file alone."
    )


def _spacing_problems(
    steps_mm: NDArray[np.float64], step_mm: float, along: NDArray[np.float64]
) -> list[str]:
    tolerance_mm = max(SPACING_TOLERANCE_MM, SPACING_TOLERANCE_FRACTION * step_mm)
    gaps = np.flatnonzero(steps_mm > 1.5 * step_mm)
    uneven = np.flatnonzero(np.abs(steps_mm - step_mm) > tolerance_mm)
    if gaps.size:
        where = int(gaps[0])
        places = "1 place" if gaps.size == 1 else f"{gaps.size} places"
        return [
            f"slices are missing at {places}, the first {steps_mm[where]:.2f} mm wide "
            f"at {along[where]:.1f} mm along the stack (usual step {step_mm:.2f} mm)"
        ]
    if uneven.size:
        return [
            f"slice spacing varies from {steps_mm.min():.2f} to {steps_mm.max():.2f} mm "
            f"(usual step {step_mm:.2f} mm)"
        ]
    return []


def _sideways(
    positions: NDArray[np.float64],
    along: NDArray[np.float64],
    normal: NDArray[np.float64],
    first: Frame,
) -> tuple[list[str], NDArray[np.float64]]:
    """Problems of a stack that leans, and the unit vector from slice to slice."""
    sideways = positions - np.outer(along, normal)
    sideways -= sideways[0]
    depth_mm = along - along[0]
    lean = depth_mm @ sideways / float(depth_mm @ depth_mm)
    rest_mm = float(np.abs(sideways - np.outer(depth_mm, lean)).max())
    problems = []
    direction = normal
    if float(np.abs(sideways).max()) > SIDEWAYS_TOLERANCE_MM:
        direction = normal + lean
        direction = direction / np.linalg.norm(direction)
        angle = float(np.degrees(np.arctan(np.linalg.norm(lean))))
        if rest_mm > SIDEWAYS_TOLERANCE_MM:
            problems.append(f"slices are shifted sideways against each other by {rest_mm:.1f} mm")
        if angle > 0.1:
            problems.append(
                f"the stack leans by {angle:.1f} degrees (gantry tilt); "
                "each slice is right, the volume is skewed"
            )
    tilt = first.gantry_tilt_degrees
    if tilt and not problems:
        problems.append(f"the header states a gantry tilt of {tilt:g} degrees")
    return problems, np.asarray(direction, dtype=np.float64)


def _frame_of_reference_problems(frames: Sequence[Frame]) -> list[str]:
    references = {str(frame.header.get("FrameOfReferenceUID") or "") for frame in frames}
    if len(references) == 1:
        return []
    return [
        f"slices have {len(references)} frames of reference, so their positions may not compare"
    ]


def _vector(values: NDArray[np.float64]) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])
