"""Export: every slice as a grey picture of one window, for looking at and for slides."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from cddnet import __version__
from cddnet.errors import FormatError
from cddnet.formats import raster, read_volume, write_volume
from cddnet.formats._atomic import new_folder
from cddnet.formats._sidecar import FOLDER_RECORD, record
from cddnet.volume import CTVolume, Derivation
from cddnet.workflows.fitness import why_not_hu

SUFFIXES = {"png": ".png", "jpeg": ".jpg"}
BITS = {"png": (8, 16), "jpeg": (8,)}

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """window_hu: black and white, and what pictures as a source stand for.  picture: png or jpeg.
    bits: 8 or 16 (png).  series: of a folder that holds several.  acquisition: of a series that
    holds several at its places.
    """

    window_hu: tuple[float, float]
    picture: str = "png"
    bits: int = 8
    series: str | None = None
    acquisition: str | None = None
    slice_axis: int | None = None
    """Axis of the slices (0, 1 or 2) in arrays that state no orientation."""


class ExportResult(NamedTuple):
    """level_hu: HU from one grey level to the next.  lost: what the pictures do not hold."""

    slices: int
    level_hu: float
    lost: str
    notes: tuple[str, ...]


def export_file(
    source: Path, target: Path, options: ExportOptions, progress: Progress
) -> ExportResult:
    """Write a new folder of pictures 0001.png, ... in slice order, and derivation.json.

    Levels are rounded to the nearest. The pictures carry no text; the record names neither patient
    nor file, and the source series only by a hash of its UID.
    progress: called with (slices done, slices in all).
    Raises: FormatError for a window or bits that cannot be, or a target that exists.
    """
    _require_possible(options)
    volume = read_volume(
        source,
        series=options.series,
        window_hu=options.window_hu,
        acquisition=options.acquisition,
        slice_axis=options.slice_axis,
    )
    count = volume.shape[0]
    suffix, digits = SUFFIXES[options.picture], max(4, len(str(count)))
    step = _step(volume, options)
    with new_folder(target) as folder:
        for index in range(count):
            write_volume(
                _alone(volume, index),
                folder / f"{index + 1:0{digits}}{suffix}",
                window_hu=options.window_hu,
                bits=options.bits,
            )
            progress(index + 1, count)
        (folder / FOLDER_RECORD).write_text(record((*volume.derivation, step)), "utf-8")
    notes = [note for note in volume.notes if note != raster.WINDOW_UNUSED]
    notes += filter(None, [why_not_hu(volume)])
    return ExportResult(
        slices=count,
        level_hu=_level_hu(options),
        lost=_lost(options),
        notes=tuple(notes),
    )


def _require_possible(options: ExportOptions) -> None:
    """Before anything is read or made."""
    low, high = options.window_hu
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise FormatError(
            f"the window {low:g} to {high:g} HU should be low, then high; give it as "
            "--window -160 240."
        )
    if options.bits not in BITS[options.picture]:
        possible = " or ".join(map(str, BITS[options.picture]))
        raise FormatError(
            f"{options.bits} bits were asked for, {options.picture} has {possible}; change --bits."
        )


def _alone(volume: CTVolume, index: int) -> CTVolume:
    """One slice; its record stands once in the folder."""
    return replace(
        volume,
        shape=(1, *volume.shape[1:]),
        read_slice=lambda _: volume.read_slice(index),
        derivation=(),
    )


def _level_hu(options: ExportOptions) -> float:
    low, high = options.window_hu
    return float((high - low) / (2**options.bits - 1))


def _lost(options: ExportOptions) -> str:
    low, high = options.window_hu
    lost = (
        f"values outside {low:g} to {high:g} HU, differences below {_level_hu(options):.3g} HU, "
        "spacing and position"
    )
    if options.picture == "jpeg":
        lost += (
            f"; JPEG of quality {raster.JPEG_QUALITY} is lossy and changes grey levels besides: "
            "not for measurement"
        )
    return lost


def _step(volume: CTVolume, options: ExportOptions) -> Derivation:
    low, high = options.window_hu
    series = hashlib.sha256(volume.series_uid.encode()).hexdigest() if volume.series_uid else ""
    return Derivation(
        label=f"{options.picture} pictures",
        description=(
            f"Grey pictures, {options.bits} bits, black {low:g} HU, white {high:g} HU, rounded to "
            f"the nearest level. Lost: {_lost(options)}. Research use only."
        ),
        parameters=(
            ("bits", str(options.bits)),
            ("format", options.picture),
            ("source_series_uid_sha256", series),
            ("window_hu", f"{low!r} {high!r}"),
        ),
        version=__version__,
    )
