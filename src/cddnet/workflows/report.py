"""Report: what an evaluation found, as one HTML file, Markdown, JSON and figures for a paper."""

# Shapes: D slice, H row, W column.

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel
from scipy import ndimage

from cddnet.errors import FormatError, GeometryError
from cddnet.formats._atomic import new_folder
from cddnet.metrics._body import body_mask
from cddnet.training.slices import filled
from cddnet.volume import SliceHU
from cddnet.workflows import _figures, _tables
from cddnet.workflows._cases import Case, find_cases
from cddnet.workflows._complexity import Complexity, measure
from cddnet.workflows._evaluation import (
    Evaluation,
    ImageScores,
    Interval,
    Protocol,
)
from cddnet.workflows._figures import Ink, Measured, PatientLine, Tile
from cddnet.workflows._panel import Region
from cddnet.workflows._tables import caption, markdown, number, with_unit
from cddnet.workflows.evaluate import (
    LOW_DOSE,
    REFERENCE,
    EvaluateOptions,
    evaluate,
    full_and_low_dose,
)

DIFFERENCE_WINDOW_HU = (-100.0, 100.0)
PRESETS_HU = {
    "lung": (-1350.0, 150.0),
    "soft tissue": (-160.0, 240.0),
    "bone": (-450.0, 1050.0),
}
_PATIENTS_SHOWN = 3
_SLICES_SHOWN = (0.5, 0.25, 0.75)
_CHARACTERS_EMBEDDED = 3_700_000
_SLICE_ROWS_SHOWN = 3000
_CROP_MARGIN = 8
_EXPLAINED_SHOWN = 4
_EXPLAINED_SIDE = 1800
_EXPLANATION = "explanation.json"
_BIAS = "bias"
# What rows of evaluations and of physics call what the others are compared with.
_REFERENCES = (REFERENCE, "full dose")
_ABBREVIATIONS = {
    "NPS": "Noise power spectrum (NPS)",
    "TTF": "Task transfer function (TTF):",
}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """protocol, mask, evaluation: as in `evaluate`.  low_dose: None where there is none.
    models: whose cost is measured.  explained: folder of `cddnet explain`.
    region: row, column and side of what is enlarged at first, pixels of the whole slice; None for
    the place with most structure.
    """

    protocol: str
    mask: str = "none"
    low_dose: Path | None = None
    evaluation: EvaluateOptions = field(default_factory=EvaluateOptions)
    models: tuple[str, ...] = ()
    explained: Path | None = None
    region: tuple[int, int, int] | None = None


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


class Record(BaseModel, frozen=True, extra="forbid"):
    """What report.json holds."""

    evaluation: Evaluation
    complexity: tuple[Complexity, ...]


class ReportResult(NamedTuple):
    evaluation: Evaluation
    page: Path
    page_bytes: int
    slices_shown: int


def report_file(
    out: Path,
    reference: Path,
    methods: Mapping[str, Path],
    options: ReportOptions,
    progress: Progress,
) -> ReportResult:
    """Evaluate methods against a reference and write the new folder `out`.

    progress: called with (what is done, steps done, steps in all).
    Raises: FormatError where `out` exists, else what evaluating, reading or measuring raises.
    """
    region = None if options.region is None else Region(*options.region)
    if region is not None and (min(region) < 0 or region.side < 1):
        raise GeometryError(
            f"the region is {options.region}; give row and column of its corner from 0 and a side "
            "above 0, in pixels."
        )
    reference, low_dose = full_and_low_dose(reference, options.low_dose)
    with new_folder(out) as folder:
        evaluation = evaluate(
            reference,
            methods,
            protocol=options.protocol,
            low_dose=low_dose,
            mask=options.mask,
            options=options.evaluation._replace(progress=progress),
        )
        rows = {} if low_dose is None else {LOW_DOSE: low_dose}
        cases = find_cases(reference, rows | dict(methods), window_hu=options.evaluation.window_hu)
        content = Content(
            evaluation=evaluation,
            shown=shown_slices(evaluation, cases),
            complexity=tuple(measure(model) for model in options.models),
            explained=() if options.explained is None else read_explained(options.explained),
            region=region,
        )
        page_bytes = write_report(folder, content)
    return ReportResult(evaluation, out / "report.html", page_bytes, len(content.shown))


def write_report(folder: Path, content: Content) -> int:
    """Write report.html, .md, .json and figures/ into an empty folder; returns the page's bytes."""
    record = Record(evaluation=content.evaluation, complexity=content.complexity)
    (folder / "report.json").write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(
        markdown(content.evaluation, content.complexity), encoding="utf-8"
    )
    drawings = _drawings(content)
    pictures = folder / "figures"
    pictures.mkdir()
    for name, data in drawings.files():
        (pictures / name).write_bytes(data)
    page = html(content, drawings).encode("utf-8")
    (folder / "report.html").write_bytes(page)
    return len(page)


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
        pictures.append(Explained(about or path.stem, _figures.png_bytes(picture)))
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


# What is shown of the slices.


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


class _Crop(NamedTuple):
    row: int
    column: int
    height: int
    width: int

    def of(self, hu: SliceHU) -> SliceHU:
        return hu[self.row : self.row + self.height, self.column : self.column + self.width]


def _body_crop(hu: SliceHU) -> _Crop:
    rows, columns = (np.flatnonzero(body_mask(hu).any(axis=axis)) for axis in (1, 0))
    height, width = hu.shape
    top, left = max(0, int(rows[0]) - _CROP_MARGIN), max(0, int(columns[0]) - _CROP_MARGIN)
    bottom = min(height, int(rows[-1]) + 1 + _CROP_MARGIN)
    right = min(width, int(columns[-1]) + 1 + _CROP_MARGIN)
    return _Crop(top, left, bottom - top, right - left)


def _region(item: ShownSlice, crop: _Crop, protocol: Protocol, asked: Region | None) -> Region:
    """The enlarged square inside the crop: the one asked for, or where most structure is."""
    side = max(1, min(crop.height, crop.width) // 3)
    if asked is not None:
        side = min(asked.side, crop.height, crop.width)
        row = min(max(asked.row - crop.row, 0), crop.height - side)
        return Region(row, min(max(asked.column - crop.column, 0), crop.width - side), side)
    hu = item.images[REFERENCE]
    # Noise is smoothed away first, so that structure is sought and not the noisiest place.
    seen = ndimage.gaussian_filter(crop.of(np.clip(hu, *protocol.window_hu)), 2.0)
    inside = crop.of(body_mask(hu).astype(np.float32))
    mean, square = (ndimage.uniform_filter(values, side) for values in (seen, seen * seen))
    covered = ndimage.uniform_filter(inside, side)
    detail = (square - mean * mean) * covered**4
    half = side // 2
    middle = detail[half : crop.height - side + half + 1, half : crop.width - side + half + 1]
    row, column = divmod(int(np.argmax(middle)), middle.shape[1])
    return Region(row, column, side)


def encode_slice(hu: SliceHU) -> str:
    """Slice (H, W) as whole HU in 16 bits: base64 of deflated differences along the rows.

    The first column differs from the pixel above it; signs are folded into the lowest bit; all low
    bytes come before all high bytes.
    """
    whole = np.clip(np.rint(hu), -32768, 32767).astype(np.int16)
    left = np.zeros_like(whole)
    left[:, 1:] = whole[:, :-1]
    left[1:, 0] = whole[:-1, 0]
    step = whole - left
    folded = ((step << 1) ^ (step >> 15)).astype("<u2")
    planes = folded.reshape(-1, 1).view(np.uint8).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")


# Figures.


class _Chart(NamedTuple):
    """file: without its ending.  hint: how it is read."""

    file: str
    title: str
    hint: str
    svg: str


class _Pictures(NamedTuple):
    """A panel as pixels and as vectors.  alt: for those who do not see it."""

    file: str
    alt: str
    png: bytes
    svg: str


class _Drawings(NamedTuple):
    patients: list[_Chart]
    curves: list[_Chart]
    bias: list[_Chart]
    comparisons: list[_Pictures]
    differences: list[_Pictures]

    def files(self) -> Iterable[tuple[str, bytes]]:
        for chart in (*self.patients, *self.curves, *self.bias):
            yield f"{chart.file}.svg", chart.svg.encode("utf-8")
        for panel in (*self.comparisons, *self.differences):
            yield f"{panel.file}.png", panel.png
            yield f"{panel.file}.svg", panel.svg.encode("utf-8")


def _inks(evaluation: Evaluation) -> dict[str, Ink]:
    low_dose = next((row.name for row in evaluation.rows if row.is_low_dose), None)
    names = [row.name for row in evaluation.rows]
    names += [item.row for item in evaluation.physics.findings]
    names += [curve.name for family in evaluation.physics.curves.values() for curve in family]
    names = [name for name in dict.fromkeys(names) if name not in _REFERENCES]
    drawn = _figures.inks(names, reference=REFERENCE, low_dose=low_dose)
    return drawn | dict.fromkeys((*_REFERENCES, evaluation.reference), drawn[REFERENCE])


def _drawings(content: Content) -> _Drawings:
    evaluation = content.evaluation
    drawn = _inks(evaluation)
    curves = [
        _Chart(
            f"curve_{_slug(family)}",
            _spelt_out(family),
            "Read each against the reference: equal shape, equal texture or sharpness.",
            _figures.curve_chart(found, drawn, f"{_spelt_out(family)} of every row"),
        )
        for family, found in evaluation.physics.curves.items()
        if found
    ]
    return _Drawings(
        patients=_patient_charts(evaluation, drawn),
        curves=curves,
        bias=_bias_charts(evaluation, drawn),
        comparisons=[_comparison(content, item, order) for order, item in _numbered(content.shown)],
        differences=[_difference(content, item, order) for order, item in _numbered(content.shown)],
    )


def _spelt_out(family: str) -> str:
    """NPS and TTF in full, with what follows them."""
    short, _, rest = family.partition(" ")
    return f"{_ABBREVIATIONS.get(short, short)} {rest}".strip()


def _numbered(shown: Sequence[ShownSlice]) -> Iterable[tuple[int, ShownSlice]]:
    return enumerate(shown, start=1)


def _patient_charts(evaluation: Evaluation, drawn: Mapping[str, Ink]) -> list[_Chart]:
    rows = _tables.ordered(evaluation)
    patients = list(dict.fromkeys(patient for row in rows for patient in row.per_patient))
    charts = []
    for metric in evaluation.metrics:
        lines = [
            PatientLine(
                patient,
                tuple(row.per_patient.get(patient, {}).get(metric.name) for row in rows),
            )
            for patient in patients
        ]
        if any(value is not None for line in lines for value in line.values):
            better = "Higher" if metric.higher_is_better else "Lower"
            charts.append(
                _Chart(
                    f"patients_{_slug(metric.name)}",
                    with_unit(metric.name, metric.unit),
                    f"{better} is better. A grey line for each patient, a marker for the mean.",
                    _figures.patient_chart(
                        lines,
                        [row.mean.get(metric.name) for row in rows],
                        {row.name: drawn[row.name] for row in rows},
                        with_unit(metric.name, metric.unit),
                    ),
                )
            )
    return charts


def _bias_charts(evaluation: Evaluation, drawn: dict[str, Ink]) -> list[_Chart]:
    """One chart of the tissues, or none: the linearity beside them has another scale."""
    tissues: dict[str, dict[str, Interval]] = {}
    for item in evaluation.physics.findings:
        if item.family == "bias" and item.unit == "HU" and item.name.endswith(_BIAS):
            tissue = item.name.removesuffix(_BIAS).strip() or item.name
            tissues.setdefault(tissue, {})[item.row] = item.value
    if not tissues:
        return []
    chart = _figures.interval_chart(
        [Measured(tissue, rows) for tissue, rows in tissues.items()],
        drawn,
        "HU bias: test minus reference (HU)",
    )
    hint = "Right of zero: the tissue became denser. Bars, if any: 95 % interval over patients."
    return [_Chart("bias", "HU bias by tissue", hint, chart)]


def _comparison(content: Content, item: ShownSlice, order: int) -> _Pictures:
    protocol = content.evaluation.protocol
    crop = _body_crop(item.images[REFERENCE])
    tiles = tuple(
        Tile(
            name,
            (", ".join(_scores_below(content.evaluation, name, item)),),
            crop.of(hu),
            protocol.window_hu,
        )
        for name, hu in item.images.items()
    )
    title = f"{_place(item)}. {caption(content.evaluation)} Research use only."
    region = _region(item, crop, protocol, content.region)
    sheet = _figures.lay_out(_figures.Panel(tiles, region, item.pixel_mm, title))
    alt = f"{', '.join(item.images)}, side by side. {title}"
    return _Pictures(f"comparison_{order}", alt, sheet.png(), sheet.svg())


def _difference(content: Content, item: ShownSlice, order: int) -> _Pictures:
    crop = _body_crop(item.images[REFERENCE])
    reference = item.images[REFERENCE]
    tiles = tuple(
        Tile(f"{name} - reference", (), crop.of(hu - reference), DIFFERENCE_WINDOW_HU)
        for name, hu in item.images.items()
        if name != REFERENCE
    )
    low, high = DIFFERENCE_WINDOW_HU
    title = f"{_place(item)}. Difference, window [{low:g}, {high:g}] HU. Research use only."
    region = _region(item, crop, content.evaluation.protocol, content.region)
    sheet = _figures.lay_out(_figures.Panel(tiles, region, item.pixel_mm, title))
    alt = f"{', '.join(tile.caption for tile in tiles)}, side by side. {title}"
    return _Pictures(f"difference_{order}", alt, sheet.png(), sheet.svg())


def _place(item: ShownSlice) -> str:
    return f"{item.patient}, slice {item.slice_number} at {item.position_mm:.1f} mm"


def _scores_below(evaluation: Evaluation, name: str, item: ShownSlice) -> list[str]:
    """PSNR and SSIM of this slice, as far as they were measured."""
    row = next((row for row in evaluation.rows if row.name == name), None)
    if row is None:
        return ["what the others are compared with" if name == REFERENCE else ""]
    key = (item.patient, item.series, item.slice_number)
    values = next(
        (i.values for i in row.images if (i.patient, i.series, i.slice_number) == key), {}
    )
    texts = []
    for wanted in ("PSNR", "SSIM"):
        metric = next((m for m in evaluation.metrics if m.name.startswith(wanted)), None)
        if metric is not None and metric.name in values:
            text = f"{metric.name} {number(values[metric.name], metric.unit)} {metric.unit}"
            texts.append(text.strip())
    return texts


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "unnamed"


# The page.


def html(content: Content, drawings: _Drawings | None = None) -> str:
    """The page as one file: no other file, no network; scripts other than its own may not run."""
    drawings = _drawings(content) if drawings is None else drawings
    folder = files("cddnet") / "data" / "report"
    environment = Environment(
        loader=FileSystemLoader(str(folder)),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    script = (folder / "viewer.js").read_text(encoding="utf-8")
    evaluation = content.evaluation
    slices = _embedded(content)
    images = [
        (image, row.name, [number(image.values.get(m.name), m.unit) for m in evaluation.metrics])
        for row in _tables.ordered(evaluation)
        for image in row.images
    ]
    return environment.get_template("report.html.j2").render(
        e=evaluation,
        t=_tables,
        complexity=content.complexity,
        data_url=_figures.data_url,
        drawings=drawings,
        embedded={
            "reference": REFERENCE,
            "presets": _presets(evaluation.protocol),
            "difference": DIFFERENCE_WINDOW_HU,
            "slices": slices,
        },
        explained=content.explained,
        images=images[:_SLICE_ROWS_SHOWN],
        images_left_out=max(0, len(images) - _SLICE_ROWS_SHOWN),
        markup=Markup,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),
    )


def _presets(protocol: Protocol) -> list[dict[str, object]]:
    """The protocol's window first, under its own name and that of the preset it equals."""
    equal = [name for name, window in PRESETS_HU.items() if window == protocol.window_hu]
    windows = {" = ".join([f"protocol {protocol.name}", *equal]): protocol.window_hu}
    windows |= {name: window for name, window in PRESETS_HU.items() if name not in equal}
    return [{"name": name, "window": window} for name, window in windows.items()]


def _embedded(content: Content) -> list[dict[str, object]]:
    """Slices for the page's own viewer: whole HU, cropped to the body, as many as are not heavy."""
    slices: list[dict[str, object]] = []
    characters = 0
    for item in content.shown:
        crop = _body_crop(item.images[REFERENCE])
        images = [
            {
                "name": name,
                "data": encode_slice(crop.of(hu)),
                "scores": ", ".join(_scores_below(content.evaluation, name, item)),
            }
            for name, hu in item.images.items()
        ]
        characters += sum(len(image["data"]) for image in images)
        if slices and characters > _CHARACTERS_EMBEDDED:
            break
        slices.append(
            {
                "place": _place(item),
                "row": crop.row,
                "column": crop.column,
                "height": crop.height,
                "width": crop.width,
                "pixel_mm": item.pixel_mm,
                "region": _region(item, crop, content.evaluation.protocol, content.region),
                "images": images,
            }
        )
    return slices
