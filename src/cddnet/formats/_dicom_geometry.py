"""Order and geometry of the slices of one series."""

# Shapes: D slice. Coordinates are DICOM patient coordinates (LPS), mm.

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import DicomError, GeometryError
from cddnet.formats._axes import leaning
from cddnet.formats._dicom_acquisitions import (
    acquisitions_of,
    no_acquisition,
    of_acquisition,
    stated_acquisitions,
)
from cddnet.formats._dicom_frames import Frame
from cddnet.formats._dicom_pixels import SEND_AGAIN, frame_count, read_stored
from cddnet.formats._dicom_steps import step_problems
from cddnet.formats._dicom_values import Vector, rounding_degrees

SAME_POSITION_MM = 0.01
DIRECTION_TOLERANCE = 1e-3
PIXEL_TOLERANCE_FRACTION = 1e-3
SIDEWAYS_TOLERANCE_MM = 0.1
LEAN_DEGREES = 0.1


class Stack(NamedTuple):
    """Slices in order along their normal, and the grid they form.

    spacing_mm: (slice, row, column); direction: unit vectors (slice, row index, column index).
    positions_mm: along the normal from the first slice, empty where they are evenly spaced.
    notes: what a user should know; problems: what forbids work across slices; skew: how the stack
    leans, which its direction states too.
    labels: acquisition of each slice where several lie at one place, else empty.
    """

    frames: tuple[Frame, ...]
    spacing_mm: Vector
    origin_mm: Vector
    direction: tuple[Vector, Vector, Vector]
    positions_mm: tuple[float, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    skew: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def stack(
    frames: Sequence[Frame],
    uid: str,
    *,
    acquisition: str | None = None,
    compare: bool = True,
) -> Stack:
    """Sort the slices of a series by position and check that they belong on one grid.

    acquisition: take the slices of that label alone.  compare: whether copies may be known by their
    pixels.  Raises GeometryError for slices of different size, spacing or orientation, or without a
    position, and for a label that no slice has; DicomError where one UID names different images.
    """
    chosen, is_number = of_acquisition(frames, acquisition)
    _require_one_grid(chosen, uid)
    if len(chosen) == 1:
        if acquisition is not None and not is_number:
            raise no_acquisition(uid, acquisition, [frame.acquisition for frame in frames])
        return _with_notes(_lone(chosen[0]), _without(len(frames) - 1))
    row, column = _require_placed(chosen, uid)
    normal = np.cross(row, column)
    along = np.array([frame.position_mm for frame in chosen], dtype=np.float64) @ normal
    order = np.argsort(along, kind="stable")
    ordered = [chosen[index] for index in order]
    kept, dropped = _drop_repeats(ordered, along[order], uid)
    slices = _Slices([ordered[index] for index in kept], along[order][kept])
    shared = _shared_places(slices, uid, None if is_number else acquisition, compare=compare)
    left_out = len(kept) - len(shared.frames) - shared.copies + len(frames) - len(chosen)
    notes = [
        *([f"copies of {dropped} slices were found and left out"] if dropped else []),
        *_copied(shared.copies),
        *_without(left_out),
    ]
    if len(shared.frames) == 1:
        return _with_notes(_lone(shared.frames[0]), notes)
    return _stack(shared, notes, (row, column))


class _Slices(NamedTuple):
    """Slices in order of their positions along the normal, mm (D,)."""

    frames: list[Frame]
    along: NDArray[np.float64]

    def places(self) -> list[int]:
        """Number of the place of each slice: slices within the tolerance share one."""
        places, start = [0], self.along[0]
        for value in self.along[1:]:
            new = value - start > SAME_POSITION_MM
            start = value if new else start
            places.append(places[-1] + int(new))
        return places

    def only(self, indices: Sequence[int]) -> _Slices:
        return _Slices([self.frames[index] for index in indices], self.along[list(indices)])


class _Shared(NamedTuple):
    """Slices of which several may lie at one place.

    labels: acquisition of each, none where each place has one.  problem: what is said of that.
    copies: images that were left out because they equal another at their place.
    """

    frames: list[Frame]
    along: NDArray[np.float64]
    labels: tuple[str, ...] = ()
    problem: str = ""
    copies: int = 0


def _shared_places(slices: _Slices, uid: str, acquisition: str | None, *, compare: bool) -> _Shared:
    """Slices in order of place and acquisition, copies apart; those of one label if it is given."""
    places = slices.places()
    if len(set(places)) == len(places):
        return _between_each_other(slices, uid, acquisition)
    acquisitions = acquisitions_of(slices.frames, places)
    rank = {label: index for index, label in enumerate(acquisitions.order)}
    order = sorted(range(len(places)), key=lambda i: (places[i], rank[acquisitions.labels[i]]))
    slices, places = slices.only(order), [places[index] for index in order]
    labels = [acquisitions.labels[index] for index in order]
    if acquisition is not None:
        wanted = [index for index, label in enumerate(labels) if label == acquisition]
        if not wanted:
            raise no_acquisition(uid, acquisition, labels)
        return _Shared(*slices.only(wanted))
    firsts = _firsts(places)
    if compare and _all_copies(slices.frames, places):
        return _Shared(*slices.only(firsts), copies=len(places) - len(firsts))
    count = f"{len(places)} images"
    if len(firsts) == 1:
        problem = f"all {count} state one position, so their order and distance are unknown"
    else:
        problem = (
            f"{count} lie at only {len(firsts)} positions, told apart by {acquisitions.listed()}"
        )
    return _Shared(*slices, labels=tuple(labels), problem=problem)


def _between_each_other(slices: _Slices, uid: str, acquisition: str | None) -> _Shared:
    """Slices at places of their own, which may be even within each acquisition alone."""
    frames = slices.frames
    thicknesses_mm = [frame.thickness_mm for frame in frames]
    uneven = bool(step_problems(slices.along, thicknesses_mm))
    if acquisition is None and not uneven:
        return _Shared(*slices)
    for stated in stated_acquisitions(frames):
        members = _members(stated.labels)
        if acquisition in members:
            return _Shared(*slices.only(members[acquisition]))
        changes = sum(one != other for one, other in pairwise(stated.labels))
        if (
            uneven
            and changes >= len(members)
            and all(
                len(indices) > 2
                and not step_problems(slices.along[indices], [thicknesses_mm[i] for i in indices])
                for indices in members.values()
            )
        ):
            return _Shared(
                *slices,
                labels=stated.labels,
                problem=f"slices of several acquisitions lie between each other, told apart by "
                f"{stated.listed()}",
            )
    if acquisition is not None:
        raise no_acquisition(uid, acquisition, [frame.acquisition for frame in frames])
    return _Shared(*slices)


def _members(labels: Sequence[str]) -> dict[str, list[int]]:
    """Label -> its slices, in order."""
    members: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    return members


def _firsts(places: Sequence[int]) -> list[int]:
    """The first slice of each place; places ascend."""
    return [i for i, place in enumerate(places) if i == 0 or place != places[i - 1]]


def _all_copies(frames: Sequence[Frame], places: Sequence[int]) -> bool:
    """Whether every image beyond the first of its place has the same pixels and scale.

    Blank slices of two acquisitions are equal too, but then others of them are not.
    """
    first: dict[int, Frame] = {}
    for frame, place in zip(frames, places, strict=True):
        other = first.setdefault(place, frame)
        if other is frame:
            continue
        if (frame.slope, frame.intercept) != (other.slope, other.intercept):
            return False
        pixels = read_stored(frame.path, frame.index)
        if not np.array_equal(pixels, read_stored(other.path, other.index)):
            return False
    return True


def _copied(copies: int) -> list[str]:
    if not copies:
        return []
    slices = "1 slice" if copies == 1 else f"{copies} slices"
    return [f"copies of {slices} under other UIDs were found and left out"]


def _without(count: int) -> list[str]:
    if count < 1:
        return []
    slices = "1 slice" if count == 1 else f"{count} slices"
    return [f"{slices} of other acquisitions {'was' if count == 1 else 'were'} left out"]


def _with_notes(lone: Stack, notes: Sequence[str]) -> Stack:
    return lone._replace(notes=(*notes, *lone.notes))


def _stack(
    shared: _Shared, notes: list[str], axes: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> Stack:
    (row, column), frames, along = axes, shared.frames, shared.along
    normal = np.cross(row, column)
    positions = np.array([frame.position_mm for frame in frames], dtype=np.float64)
    firsts = _firsts(_Slices(frames, along).places())
    problems = [shared.problem] if shared.problem else []
    shifted: list[str] = []
    skew: list[str] = []
    slice_direction, step_mm = normal, max(frames[0].thickness_mm or 0.0, 0.0) or 1.0
    if len(firsts) > 1:
        groups = list(_members(shared.labels).values()) or [firsts]
        steps_mm = np.concatenate([np.diff(along[indices]) for indices in groups])
        # Images that are alone in their acquisition have no step.
        step_mm = float(np.median(steps_mm if steps_mm.size else np.diff(along[firsts])))
        if not shared.labels or len(firsts) < len(frames):
            problems += step_problems(along[firsts], [frames[i].thickness_mm for i in firsts])
        shifted, skew, slice_direction = _sideways(positions, along, normal, frames[0])
    positions_mm = tuple((along - along[0]).tolist()) if problems else ()
    differing = _frame_of_reference_problems(frames)
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
        notes=(*notes, *problems, *shifted, *skew, *differing),
        problems=(*problems, *shifted, *differing),
        skew=tuple(skew),
        labels=shared.labels,
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
    """Slices to keep where a file is there twice; several images at one place are all kept."""
    kept: list[int] = []
    named: dict[tuple[str, int], list[int]] = {}
    for index, frame in enumerate(frames):
        same_uid = named.setdefault((frame.sop_uid, frame.index), [])
        rivals = [i for i in same_uid if along[index] - along[i] <= SAME_POSITION_MM]
        if not any(_same_image(frames[rival], frame) for rival in rivals):
            kept.append(index)
            same_uid.append(index)
    repeated = [(pair, same) for pair, same in named.items() if len(same) > 1 and pair[0]]
    if repeated:
        (sop_uid, _), same = repeated[0]
        raise DicomError(
            f"series {uid}: {len(same)} different slices carry the SOPInstanceUID {sop_uid}; "
            f"{SEND_AGAIN}"
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


def _sideways(
    positions: NDArray[np.float64],
    along: NDArray[np.float64],
    normal: NDArray[np.float64],
    first: Frame,
) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Slices shifted unevenly, a stack that leans, and the unit vector from slice to slice."""
    sideways = positions - np.outer(along, normal)
    sideways -= sideways[0]
    depth_mm = along - along[0]
    lean = depth_mm @ sideways / float(depth_mm @ depth_mm)
    rest_mm = float(np.abs(sideways - np.outer(depth_mm, lean)).max())
    problems: list[str] = []
    skew: list[str] = []
    direction = normal
    if float(np.abs(sideways).max()) > SIDEWAYS_TOLERANCE_MM:
        direction = normal + lean
        direction = direction / np.linalg.norm(direction)
        angle = float(np.degrees(np.arctan(np.linalg.norm(lean))))
        if rest_mm > SIDEWAYS_TOLERANCE_MM:
            problems.append(f"slices are shifted sideways against each other by {rest_mm:.1f} mm")
        if angle > _least_lean_degrees(first):
            skew.append(leaning(angle))
    tilt = first.gantry_tilt_degrees
    if tilt and not (problems or skew):
        skew.append(f"the header states a gantry tilt of {tilt:g} degrees")
    return problems, skew, np.asarray(direction, dtype=np.float64)


def _least_lean_degrees(frame: Frame) -> float:
    """From where on a stack leans; less may come from cosines that were rounded."""
    digits = frame.rounded_digits
    return LEAN_DEGREES if digits is None else max(LEAN_DEGREES, rounding_degrees(digits))


def _frame_of_reference_problems(frames: Sequence[Frame]) -> list[str]:
    references = {str(frame.header.get("FrameOfReferenceUID") or "") for frame in frames}
    if len(references) == 1:
        return []
    return [
        f"slices have {len(references)} frames of reference, so their positions may not compare"
    ]


def _vector(values: NDArray[np.float64]) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])
