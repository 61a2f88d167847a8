"""What a report is made of: the evaluation, a few slices, and pictures of an explanation."""

# Shapes: D slice, H row, W column.

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from cddnet.errors import FormatError
from cddnet.training.slices import filled
from cddnet.volume import SliceHU
from cddnet.workflows._cases import Case
from cddnet.workflows._complexity import Complexity
from cddnet.workflows._evaluation import Evaluation, ImageScores
from cddnet.workflows._figures import png_bytes
from cddnet.workflows._panel import Region
from cddnet.workflows.evaluate import REFERENCE

_PATIENTS_SHOWN = 3
_SLICES_SHOWN = (0.5, 0.25, 0.75)
_EXPLAINED_SHOWN = 4
_EXPLAINED_SIDE = 1800
_EXPLANATION = "explanation.json"


class ShownSlice(NamedTuple):
    """One slice of every row.  images: "reference" and the rows -> (H, W) HU, on one grid.
    pixel_mm: (row, column).
    """

    patient: str
    series: str
    slice_number: int
    position_mm: float
    pixel_mm: tuple[float, float]
    images: dict[str, SliceHU]


class Explained(NamedTuple):
    """A picture that `cddnet explain` made."""

    caption: str
    png: bytes


class Content(NamedTuple):
    """Everything a report is made of; the same content gives the same bytes."""

    evaluation: Evaluation
    shown: tuple[ShownSlice, ...] = ()
    complexity: tuple[Complexity, ...] = ()
    explained: tuple[Explained, ...] = ()
    region: Region | None = None


def read_explained(folder: Path) -> tuple[Explained, ...]:
    """Pictures (PNG) of a folder that `cddnet explain` wrote, at most four, in order of name."""
    if not folder.is_dir():
        raise FormatError(f"{folder}: no such folder; give the folder that `cddnet explain` wrote.")
    found = sorted(folder.glob("*.png"))[:_EXPLAINED_SHOWN]
    if not found:
        raise FormatError(f"{folder}: holds no .png; give the folder that `cddnet explain` wrote.")
    about = _explanation(folder / _EXPLANATION)
    pictures = []
    for path in found:
        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise FormatError(f"{path}: cannot be read as a picture; make it again.") from error
        picture.thumbnail((_EXPLAINED_SIDE, _EXPLAINED_SIDE))
        pictures.append(Explained(about or path.stem, png_bytes(picture)))
    return tuple(pictures)


def _explanation(path: Path) -> str:
    """What was explained, in words; "" where no record lies beside the pictures."""
    if not path.is_file():
        return ""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        row, column, height, width = (
            record["region"][key] for key in ("row", "column", "height", "width")
        )
        return (
            f"{record['model']} at strength {record['strength']}, slice {record['slice']}, region "
            f"of {height} x {width} pixels at row {row}, column {column}; compared with "
            f"{record['compared_with']}"
        )
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: is no record of `cddnet explain`; run it again.") from error


def shown_slices(evaluation: Evaluation, cases: Sequence[Case]) -> tuple[ShownSlice, ...]:
    """A few slices of a few patients, all rows on the grid of the reference."""
    by_name = {(case.patient, case.series): case for case in cases}
    shown = []
    for image in chosen_slices(evaluation):
        case, index = by_name[image.patient, image.series], image.slice_number - 1
        images = {REFERENCE: filled(case.reference, index)}
        for name, volume in case.rows.items():
            images[name] = filled(volume, case.slices[name][index])
        shown.append(
            ShownSlice(
                image.patient,
                image.series,
                image.slice_number,
                image.position_mm,
                case.reference.spacing_mm[1:],
                images,
            )
        )
    return tuple(shown)


def chosen_slices(evaluation: Evaluation) -> list[ImageScores]:
    """The middle slice of the first patients, then slices at a quarter and three quarters."""
    if not evaluation.rows:
        return []
    by_patient: dict[str, list[ImageScores]] = {}
    for image in evaluation.rows[0].images:
        by_patient.setdefault(image.patient, []).append(image)
    patients = list(by_patient.values())[:_PATIENTS_SHOWN]
    chosen: dict[tuple[str, str, int], ImageScores] = {}
    for share in _SLICES_SHOWN:
        for images in patients:
            image = images[min(len(images) - 1, int(share * len(images)))]
            chosen.setdefault((image.patient, image.series, image.slice_number), image)
    return list(chosen.values())
