"""A series before and after, slice by slice, as the viewer fetches it."""

# Shapes: D slice, H row, W column.

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from cddnet.errors import FormatError, GeometryError
from cddnet.formats import ReadOptions, dicom, head_of, read_volume
from cddnet.formats._parametric import PREDICTED_ERROR
from cddnet.formats._parametric_read import read_parametric_map
from cddnet.formats.arrays import NO_GEOMETRY
from cddnet.volume import CTVolume, SliceHU
from cddnet.workflows._pairing import (
    PIXEL_TOLERANCE,
    along_mm,
    differing_orientations,
    nearest,
    shifts_mm,
    tolerance_of,
)
from cddnet.workflows._upright import upright
from cddnet.workflows.acquisitions import labels_of, of_acquisition
from cddnet.workflows.fitness import why_not_hu

STORED_RANGE = (-32768, 32767)
# Stored units in one HU of the maps of noise and expected error.
NOISE_PER_HU = 10
_KEPT_SLICES = 64
_ALL_STATED = ReadOptions()
_UID = re.compile(r"\b[0-2](?:\.\d+){3,}\b")
_PATH = re.compile(r"(?:/[^\s:;,'\"]+)+")


class Layer(BaseModel):
    """A kind of slice. hu_per_unit: HU of one stored unit."""

    name: str
    label: str
    hu_per_unit: float


class Manifest(BaseModel):
    """What a viewer must know of a pair, or of one series: then `after` is its only layer.

    A slice is int16, little endian, rows x columns.
    """

    slices: int
    rows: int
    columns: int
    row_mm: float
    column_mm: float
    thickness_mm: float | None
    positions_mm: list[float] = Field(description="along the normal, from the first slice")
    layers: list[Layer]
    notes: list[str]


class Pair:
    """A series before and after, slice by slice, matched by position; or one of them alone."""

    def __init__(
        self,
        before: CTVolume | None,
        after: CTVolume,
        label: str = "after",
        error: CTVolume | None = None,
    ) -> None:
        """before: None where there is no original any more, or never was one to compare with.
        error: maps of the expected error in HU, a slice for each that both series have.

        Raises: GeometryError where the slices do not match; FormatError for a map of one series.
        """
        if error is not None and before is None:
            raise FormatError(
                "the expected error is shown with a series before and after; give both."
            )
        self._alone = before is None
        self._rows = _matched(before or after, after)
        self._error = error
        self._error_rows = {} if error is None else self._matched_error(before or after, error)
        self._before, self._after, self._label = before or after, after, label
        self._noise: Callable[[int], NDArray[np.float32]] | None = None
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock, self._kept_lock, self._noise_lock = Lock(), Lock(), Lock()

    def manifest(self) -> Manifest:
        volume = self._before
        along = volume.slice_positions_mm()
        return Manifest(
            slices=len(self._rows),
            rows=volume.shape[1],
            columns=volume.shape[2],
            row_mm=volume.spacing_mm[1],
            column_mm=volume.spacing_mm[2],
            thickness_mm=volume.thickness_mm,
            positions_mm=[round(along[row] - along[0], 3) for row, _ in self._rows],
            layers=self._layers(),
            notes=[plain(note) for note in volume.notes],
        )

    def _layers(self) -> list[Layer]:
        after = Layer(name="after", label=self._label, hu_per_unit=1)
        if self._alone:
            return [after]
        before = Layer(name="before", label="before", hu_per_unit=1)
        noise = Layer(name="noise", label="predicted noise", hu_per_unit=1 / NOISE_PER_HU)
        error = Layer(name="error", label="expected error", hu_per_unit=1 / NOISE_PER_HU)
        return [before, after, noise, *([error] if self._error else [])]

    def slice_bytes(self, layer: str, index: int) -> bytes:
        """A slice (H, W) as int16, little endian, in the layer's unit, rounded and clipped.

        Raises: KeyError for an unknown layer or slice; what reading and matching raise.
        """
        known = {one.name for one in self._layers()}
        if layer not in known or not 0 <= index < len(self._rows):
            raise KeyError(f"{layer} {index}")
        with self._kept_lock:
            if (layer, index) in self._kept:
                self._kept.move_to_end((layer, index))
                return self._kept[layer, index]
        values = self._values(layer, index)
        stored = np.clip(np.rint(values), *STORED_RANGE).astype("<i2").tobytes()
        with self._kept_lock:
            self._kept[layer, index] = stored
            while len(self._kept) > _KEPT_SLICES:
                self._kept.popitem(last=False)
        return stored

    def _matched_error(self, before: CTVolume, error: CTVolume) -> dict[int, int]:
        """Slice of `before` -> map.  Raises: GeometryError where a slice that is shown has none."""
        if NO_GEOMETRY in error.notes:
            error = replace(error, spacing_mm=before.spacing_mm)
        rows = dict(_matched(before, error, "the expected error"))
        missing = sum(row not in rows for row, _ in self._rows)
        if missing:
            raise GeometryError(
                f"the expected error lacks {missing} of the {len(self._rows)} slices before and "
                "after; give the file that was written with this series."
            )
        return rows

    def _values(self, layer: str, index: int) -> NDArray[np.float32]:
        """In units of the layer."""
        if layer == "noise":
            return self._noise_map(index)
        if layer != "error" or self._error is None:
            return self._slice(layer, index)
        with self._lock:
            error_hu = self._error.read_slice(self._error_rows[self._rows[index][0]])
        return error_hu * np.float32(NOISE_PER_HU)

    def _slice(self, layer: str, index: int) -> SliceHU:
        before, after = self._rows[index]
        # Readers of some formats seek in one open file.
        with self._lock:
            if layer == "before":
                return self._before.read_slice(before)
            return self._after.read_slice(after)

    def _noise_map(self, index: int) -> NDArray[np.float32]:
        """In units of the layer. Matching takes seconds; slices are read meanwhile."""
        with self._noise_lock:
            if self._noise is None:
                from cddnet.workflows.noise_map import noise_reader

                self._noise = noise_reader(replace(self._before, read_slice=self._locked))
            return self._noise(self._rows[index][0]) * np.float32(NOISE_PER_HU)

    def _locked(self, index: int) -> SliceHU:
        with self._lock:
            return self._before.read_slice(index)


def _matched(before: CTVolume, after: CTVolume, name: str = "after") -> list[tuple[int, int]]:
    """(slice before, slice after) at the same position; by order where a file states no places.

    name: of `after` in messages.

    Raises: GeometryError where grids or orientations differ or no slice is common.
    """
    pixels = [(v.shape[1:], np.round(v.spacing_mm[1:], 3).tolist()) for v in (before, after)]
    if pixels[0] != pixels[1]:
        found = " and ".join(f"{h} x {w} of {mm} mm" for (h, w), mm in pixels)
        raise GeometryError(f"before and {name} have different pixels: {found}; give one series.")
    if not (before.storage.placed and after.storage.placed):
        if before.shape[0] != after.shape[0]:
            raise GeometryError(
                f"before has {before.shape[0]} slices, {name} {after.shape[0]}, and their "
                "places are unknown; give the same slices."
            )
        return [(index, index) for index in range(before.shape[0])]
    orientations = differing_orientations(before, after)
    if orientations:
        one, other = orientations
        raise GeometryError(
            f"before and {name} have different orientations: {one} before, {other} in {name}; "
            "bring both into one orientation first."
        )
    limit_mm = tolerance_of(before)
    rows = nearest(along_mm(before), along_mm(after), limit_mm, labels_of(before, after))
    if not rows:
        apart_mm = np.abs(along_mm(before)[:, None] - along_mm(after)).min()
        raise GeometryError(
            f"no slice of {name} lies within {limit_mm:.2g} mm of one of before "
            f"(nearest {apart_mm:.1f} mm); give the same series."
        )
    shift_mm = float(shifts_mm(before, after, rows).max())
    if shift_mm > PIXEL_TOLERANCE * min(before.spacing_mm[1:]):
        raise GeometryError(
            f"before and {name} are shifted by {shift_mm:.1f} mm within the slices; give the same "
            "series."
        )
    return list(rows)


class Sources(Protocol):
    """Pairs to look at, each under a key. first: key that opens by itself, None for the queue."""

    first: str | None

    def open(self, key: str) -> Pair:
        """The pair of a key as it is now.  Raises: KeyError."""

    def pair(self, key: str) -> Pair:
        """The pair of a key as it was opened.  Raises: KeyError."""


class LocalPair:
    """Two series on this machine, or one alone, for `cddnet view`."""

    first: str | None = "pair"

    def __init__(
        self,
        before: Path,
        after: Path | None,
        reading: ReadOptions = _ALL_STATED,
        error: Path | None = None,
    ) -> None:
        """reading: what files may leave open.

        error: the file of `cddnet denoise --uncertainty`.
        """

        def read(path: Path) -> CTVolume:
            return read_volume(path, window_hu=reading.window_hu, slice_axis=reading.slice_axis)

        paths = [path for path in (before, after) if path is not None]
        series = of_acquisition([(path, read(path)) for path in paths], reading.acquisition)
        first, second = series[0], series[1] if len(series) > 1 else None
        doubts = [why_not_hu(first)]
        if second is not None and (reason := why_not_hu(second)):
            doubts.append(f"after: {reason}")
        first = replace(first, notes=(*first.notes, *filter(None, doubts)))
        maps = None if error is None else _read_error(error, read)
        if maps is not None and reading.acquisition is not None and _share_places(maps):
            raise FormatError(
                f"{error}: holds the expected error of several acquisitions; write it with the "
                "same --acquisition, or leave that out here."
            )
        present = [one for one in (first, second, maps) if one is not None]
        # What states no orientation lies as the other does, which then stays as it is stored.
        if all(one.storage.placed for one in present):
            first = upright(first)
            second, maps = (one if one is None else upright(one) for one in (second, maps))
        self._pair = (
            Pair(None, first, "series", maps) if second is None else Pair(first, second, error=maps)
        )

    def open(self, key: str) -> Pair:
        return self.pair(key)

    def pair(self, key: str) -> Pair:
        if key != self.first:
            raise KeyError(key)
        return self._pair


def _share_places(volume: CTVolume) -> bool:
    return len(set(volume.slice_positions_mm())) < volume.shape[0]


def _read_error(path: Path, read: Callable[[Path], CTVolume]) -> CTVolume:
    try:
        is_dicom = dicom.recognises(head_of(path))
    except OSError:
        # Said by the reader of everything else.
        is_dicom = False
    return read_parametric_map(path, PREDICTED_ERROR) if is_dicom else read(path)


def plain(text: str) -> str:
    """A message for the page, without paths and UIDs."""
    return _PATH.sub("(file)", _UID.sub("(uid)", text))
