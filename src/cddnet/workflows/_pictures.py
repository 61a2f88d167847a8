"""Flat folders of pictures, as the published project keeps them: pairs and results by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cddnet.errors import FormatError
from cddnet.files import list_folder
from cddnet.formats import head_of, raster, write_volume
from cddnet.formats._atomic import new_folder
from cddnet.formats._sidecar import FOLDER_RECORD, record
from cddnet.volume import CTVolume

LOW_DOSE_FOLDER, FULL_DOSE_FOLDER = "IN", "GT"
_LISTED = 6


class Sides(NamedTuple):
    """Folders of pictures. full_dose: None where there is no ground truth."""

    low_dose: Path
    full_dose: Path | None


def sides(path: Path) -> Sides | None:
    """`IN/` and, if it is there, `GT/` of a folder without pictures of its own; else None."""
    low_dose, full_dose = path / LOW_DOSE_FOLDER, path / FULL_DOSE_FOLDER
    if not _holds_pictures(low_dose) or _holds_pictures(path):
        return None
    return Sides(low_dose, full_dose if _holds_pictures(full_dose) else None)


def picture_names(path: Path, volume: CTVolume) -> tuple[str, ...]:
    """Names without suffix of the pictures that the volume was read from, one per slice.

    Returns: () where its slices are no pictures with a name each.
    Raises: FormatError where two pictures are named alike.
    """
    if volume.headers is not None or not (path.is_dir() or raster.recognises(head_of(path))):
        return ()
    files, _ = raster.picture_files(path)
    if len(files) != volume.shape[0]:
        return ()
    # Some file systems take names that differ in capitals alone for one.
    counts = Counter(file.stem.casefold() for file in files)
    alike = [file.name for file in files if counts[file.stem.casefold()] > 1]
    if alike:
        raise FormatError(f"{path}: pictures named alike: {listed(alike)}; keep one of each name.")
    return tuple(file.stem for file in files)


def write_named(
    volume: CTVolume, target: Path, names: tuple[str, ...], window_hu: tuple[float, float] | None
) -> None:
    """A new folder with a 16-bit PNG of the window per slice, and the record of what was done.

    window_hu: None writes TIFF in HU instead.
    Raises: FormatError where the folder exists or cannot be written.
    """
    suffix = ".tif" if window_hu is None else ".png"
    with new_folder(target) as folder:
        for index, name in enumerate(names):
            write_volume(_alone(volume, index), folder / f"{name}{suffix}", window_hu=window_hu)
        (folder / FOLDER_RECORD).write_text(record(volume.derivation), "utf-8")


def listed(names: list[str]) -> str:
    """The first of many names."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _alone(volume: CTVolume, index: int) -> CTVolume:
    """One slice; its record stands once in the folder."""
    return replace(
        volume,
        shape=(1, *volume.shape[1:]),
        read_slice=lambda _: volume.read_slice(index),
        derivation=(),
    )


def _holds_pictures(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    files = (file for file in list_folder(folder) if not file.name.startswith("."))
    return any(file.is_file() and raster.recognises(head_of(file)) for file in files)
