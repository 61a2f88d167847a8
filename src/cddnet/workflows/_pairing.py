"""Which low-dose slice belongs to which full-dose slice: by position, after the grids agree."""

# Shapes: D slice, H row, W column. Positions are DICOM patient coordinates (LPS), mm.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import CddnetError, GeometryError
from cddnet.formats.dicom import DicomHeaders
from cddnet.grid import orientation_words
from cddnet.volume import CTVolume
from cddnet.workflows._layouts import Entry, LeftOut
from cddnet.workflows.acquisitions import Labels, labels_of

# Of the slice spacing: how far apart the two slices of a pair may lie.
POSITION_TOLERANCE = 0.1
# Of a pixel: how far apart their corners may be, on either side of the image.
PIXEL_TOLERANCE = 0.1
_DIRECTION_TOLERANCE = 1e-3
_THICKNESS_TOLERANCE = 0.01


class LeftOutError(CddnetError):
    """A series that is left out; `kind` is for the count by reason."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Twin(NamedTuple):
    """The low dose of a series. rows: (full-dose slice, low-dose slice), by position."""

    entry: Entry
    volume: CTVolume
    rows: tuple[tuple[int, int], ...]
    left_out: tuple[LeftOut, ...]


def twin_of(full: tuple[Entry, CTVolume], candidates: Sequence[tuple[Entry, CTVolume]]) -> Twin:
    """The candidate with the most slices at the positions of the full dose.

    Raises: LeftOutError where no candidate lies on the same grid, or none has a slice in common.
    """
    reasons, twins, kind = [], [], ""
    for low_entry, low in candidates:
        try:
            twins.append(_matched(full, (low_entry, low)))
        except LeftOutError as error:
            reasons.append(f"{low_entry.name}: {error}")
            kind = error.kind
    if not twins:
        raise LeftOutError(kind, "; ".join(reasons))
    best = max(twins, key=lambda twin: len(twin.rows))
    if not best.rows:
        raise LeftOutError(
            "missing twin",
            f"no low-dose slice lies within {tolerance_of(full[1]):g} mm of any of its own",
        )
    return best


def positions_of(volume: CTVolume) -> NDArray[np.float64]:
    """Corner of each slice (D, 3) in mm; along the normal only where nothing else is known."""
    told = _corners(volume.headers) if isinstance(volume.headers, DicomHeaders) else None
    if told is not None:
        return told
    along = np.array(volume.slice_positions_mm())
    corners = np.array(volume.origin_mm) + along[:, None] * np.array(volume.direction[0])
    return np.asarray(corners, np.float64)


def _corners(headers: DicomHeaders) -> NDArray[np.float64] | None:
    """Of every slice (D, 3) as its header states it; None where a lone slice does not."""
    corners = [frame.position_mm for frame in headers.frames]
    return None if None in corners else np.array(corners, np.float64)


def along_mm(volume: CTVolume) -> NDArray[np.float64]:
    """Position of each slice along the normal (D,), in mm of the patient's coordinates."""
    along: NDArray[np.float64] = positions_of(volume) @ _normal(volume)
    return along


def nearest(
    full_mm: NDArray[np.float64],
    low_mm: NDArray[np.float64],
    tolerance_mm: float,
    labels: Labels | None = None,
) -> tuple[tuple[int, int], ...]:
    """Indices (full, low) of positions that are each other's nearest and within the tolerance.

    labels: of both; slices with different ones are no pair.
    """
    apart = np.abs(full_mm[:, None] - low_mm[None, :])
    if labels is not None:
        apart[np.array(labels[0])[:, None] != np.array(labels[1])[None]] = np.inf
    low_of_full, full_of_low = apart.argmin(axis=1), apart.argmin(axis=0)
    return tuple(
        (index, int(other))
        for index, other in enumerate(low_of_full)
        if full_of_low[other] == index and apart[index, other] <= tolerance_mm
    )


def shifts_mm(
    one: CTVolume, other: CTVolume, rows: Sequence[tuple[int, int]]
) -> NDArray[np.float64]:
    """How far the corners of paired slices lie apart within their plane, mm, one for each pair."""
    indices = np.array(rows)
    apart = positions_of(one)[indices[:, 0]] - positions_of(other)[indices[:, 1]]
    normal = _normal(one)
    shifts: NDArray[np.float64] = np.linalg.norm(apart - np.outer(apart @ normal, normal), axis=1)
    return shifts


def differing_orientations(one: CTVolume, other: CTVolume) -> tuple[str, str] | None:
    """Both in words where rows or columns run differently; None where they run alike."""
    if np.abs(np.subtract(one.direction[1:], other.direction[1:])).max() <= _DIRECTION_TOLERANCE:
        return None
    words = orientation_words(one.direction), orientation_words(other.direction)
    if words[0] != words[1]:
        return words
    cosines = [np.dot(a, b) for a, b in zip(one.direction[1:], other.direction[1:], strict=True)]
    degrees = float(np.degrees(np.arccos(min(cosines))))
    return words[0], f"{words[1]}, but turned by {degrees:.1f} degrees"


def tolerance_of(volume: CTVolume) -> float:
    """How far apart the slices of a pair may lie, mm."""
    return POSITION_TOLERANCE * volume.spacing_mm[0]


def _matched(full: tuple[Entry, CTVolume], low: tuple[Entry, CTVolume]) -> Twin:
    (full_entry, full_volume), (low_entry, low_volume) = full, low
    _require_one_grid(full_volume, low_volume)
    for dose, volume in (("full", full_volume), ("low", low_volume)):
        if isinstance(volume.headers, DicomHeaders) and _corners(volume.headers) is None:
            raise LeftOutError("geometry", f"the {dose} dose does not say where it lies")
    full_mm, low_mm = along_mm(full_volume), along_mm(low_volume)
    tolerance_mm = tolerance_of(full_volume)
    try:
        labels = labels_of(full_volume, low_volume)
    except GeometryError as error:
        raise LeftOutError("geometry", str(error)) from error
    rows = nearest(full_mm, low_mm, tolerance_mm, labels)
    _require_no_shift(full_volume, low_volume, rows)
    left_out = []
    for used, places, entry, other in (
        ({index for index, _ in rows}, full_mm, full_entry, "low-dose"),
        ({index for _, index in rows}, low_mm, low_entry, "full-dose"),
    ):
        reason = f"has no {other} slice within {tolerance_mm:g} mm"
        left_out += [
            LeftOut("missing twin", entry.name, 1, f"{place:.3f}", reason)
            for index, place in enumerate(places)
            if index not in used
        ]
    return Twin(low_entry, low_volume, rows, tuple(left_out))


def _require_one_grid(full: CTVolume, low: CTVolume) -> None:
    if full.shape[1:] != low.shape[1:]:
        raise _differing("rows and columns", full.shape[1:], low.shape[1:])
    for one, other, pixels in zip(
        full.spacing_mm[1:], low.spacing_mm[1:], full.shape[1:], strict=True
    ):
        if abs(one - other) * pixels > PIXEL_TOLERANCE * one:
            raise _differing("pixel spacing (mm)", full.spacing_mm[1:], low.spacing_mm[1:])
    orientations = differing_orientations(full, low)
    if orientations:
        raise _differing("orientation", *orientations)
    thick, other_thick = full.thickness_mm, low.thickness_mm
    if thick and other_thick and abs(thick - other_thick) > _THICKNESS_TOLERANCE * thick:
        raise _differing("slice thickness (mm)", thick, other_thick)
    kernel, other_kernel = full.acquisition.kernel, low.acquisition.kernel
    if kernel and other_kernel and kernel != other_kernel:
        raise _differing("kernel", kernel, other_kernel)


def _require_no_shift(full: CTVolume, low: CTVolume, rows: tuple[tuple[int, int], ...]) -> None:
    if not rows:
        return
    shift_mm = float(shifts_mm(full, low, rows).max())
    if shift_mm > PIXEL_TOLERANCE * min(full.spacing_mm[1:]):
        raise LeftOutError("geometry", f"the two doses are shifted by {shift_mm:.2f} mm")


def _normal(volume: CTVolume) -> NDArray[np.float64]:
    normal: NDArray[np.float64] = np.cross(volume.direction[2], volume.direction[1])
    return normal


def _differing(what: str, full: object, low: object) -> LeftOutError:
    return LeftOutError(
        "geometry", f"the {what} differs, {full} at full dose but {low} at low dose"
    )
