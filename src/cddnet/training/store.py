"""A prepared training set: slices on disk as int16 HU, read without decoding DICOM.

A slice is mapped, copied and unmapped at each reading, so that memory does not grow with the set.
"""

# Shapes: D slice, H row, W column.

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cddnet.errors import FormatError
from cddnet.training.leaks import require_apart
from cddnet.training.manifest import (
    MANIFEST,
    SLICES,
    UNFINISHED,
    Manifest,
    PreparedSeries,
    StoredFile,
    file_sha256,
    load_manifest,
    slice_sha256,
)
from cddnet.volume import Acquisition, CTVolume, SliceHU

# What pictures do not say; body CT has 0.6 to 0.9 mm.
PICTURE_PIXEL_MM = 0.7


def is_prepared(folder: Path) -> bool:
    """Whether a folder is a prepared set, or was begun as one."""
    return (folder / MANIFEST).is_file() or (folder / UNFINISHED).is_dir()


class PreparedSet(NamedTuple):
    """A prepared set that was checked for leaks when it was opened."""

    folder: Path
    manifest: Manifest
    sha256: str  # of the manifest

    @classmethod
    def open(cls, folder: Path) -> PreparedSet:
        """The set in a folder.

        Raises: LeakError; FormatError where it is unfinished, or a file is missing or cut short.
        """
        manifest = load_manifest(folder)
        require_apart(manifest)
        for series in manifest.series:
            for file in series.files:
                _require_whole(folder / SLICES / file.name, series.shape)
        return cls(folder, manifest, file_sha256(folder / MANIFEST))

    def patients(self, side: str) -> dict[str, tuple[PreparedSeries, ...]]:
        """Patient digest -> series, of one side."""
        every = self.manifest.of_side(side)
        return {
            patient: tuple(item for item in every if item.patient_digest == patient)
            for patient in dict.fromkeys(item.patient_digest for item in every)
        }

    def full_dose(self, series: PreparedSeries) -> CTVolume:
        """The full-dose series over its file."""
        return self._volume(series, series.full_file)

    def low_dose(self, series: PreparedSeries) -> CTVolume:
        """The real low dose at the same positions.  Raises FormatError where there is none."""
        if series.low_file is None:
            raise FormatError(f"series {series.name[:12]} has no real low dose; simulate it.")
        return self._volume(series, series.low_file)

    def _volume(self, series: PreparedSeries, file: StoredFile) -> CTVolume:
        pixel_mm = series.pixel_mm or PICTURE_PIXEL_MM
        first = series.positions_mm[0]
        return CTVolume(
            shape=series.shape,
            spacing_mm=(series.spacing_mm, pixel_mm, pixel_mm),
            read_slice=partial(read_stored, self.folder / SLICES / file.name),
            thickness_mm=series.thickness_mm,
            positions_mm=tuple(position - first for position in series.positions_mm),
            series_uid=series.name,
            acquisition=Acquisition(
                manufacturer=series.manufacturer,
                model=series.scanner,
                kernel=series.kernel,
                collection=series.collection,
            ),
            notes=series.notes,
            volume_problems=series.volume_problems,
        )


def read_stored(path: Path, index: int) -> SliceHU:
    """Slice (H, W) in HU of a file of a prepared set."""
    hu: SliceHU = np.load(path, mmap_mode="r")[index].astype(np.float32)
    return hu


def verify(folder: Path) -> PreparedSet:
    """The set with every file and slice hashed again, as `cddnet prepare OUT --check` does.

    Raises: as `PreparedSet.open`, and FormatError naming what changed, was lost or added.
    """
    opened = PreparedSet.open(folder)
    wrong = []
    expected = {file.name: file for series in opened.manifest.series for file in series.files}
    for name, file in expected.items():
        path = folder / SLICES / name
        if file_sha256(path) != file.sha256:
            wrong.append(f"{name} was changed")
            continue
        stack = np.load(path, mmap_mode="r")
        if tuple(slice_sha256(stack[index]) for index in range(len(stack))) != file.slices:
            wrong.append(f"{name} holds other slices than the manifest says")
    found = {path.name for path in (folder / SLICES).iterdir()}
    wrong += [f"{name} was added" for name in sorted(found - expected.keys())]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise FormatError(f"{folder}: {'; '.join(wrong[:5])}{more}. Prepare the set again.")
    return opened


def _require_whole(path: Path, shape: tuple[int, int, int]) -> None:
    try:
        stack = np.load(path, mmap_mode="r")
        held = f"{stack.dtype} {stack.shape}"
    except (OSError, ValueError, EOFError) as error:
        held = type(error).__name__
    if held != f"int16 {shape}":
        raise FormatError(f"{path}: expected int16 {shape}, found {held}; prepare the set again.")
