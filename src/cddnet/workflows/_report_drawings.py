"""Charts of an evaluation, and panels of the slices a report shows."""

# Shapes: H row, W column.

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cddnet.metrics._body import body_mask
from cddnet.volume import SliceHU
from cddnet.workflows import _figures, _tables
from cddnet.workflows._evaluation import Evaluation, Interval, Protocol
from cddnet.workflows._figures import Ink, Measured, PatientLine, Tile
from cddnet.workflows._panel import Region
from cddnet.workflows._report_content import Content, ShownSlice
from cddnet.workflows._tables import caption, number, with_unit
from cddnet.workflows.evaluate import REFERENCE

DIFFERENCE_WINDOW_HU = (-100.0, 100.0)
_CROP_MARGIN = 8
_BIAS = "bias"
# What rows of evaluations and of physics call what the others are compared with.
_REFERENCES = (REFERENCE, "full dose")
_ABBREVIATIONS = {
    "NPS": "Noise power spectrum (NPS)",
    "TTF": "Task transfer function (TTF):",
}


class Crop(NamedTuple):
    """Rectangle of a slice, pixels."""

    row: int
    column: int
    height: int
    width: int

    def of(self, hu: SliceHU) -> SliceHU:
        return hu[self.row : self.row + self.height, self.column : self.column + self.width]


def body_crop(hu: SliceHU) -> Crop:
    """The body in a slice (H, W), with a margin."""
    rows, columns = (np.flatnonzero(body_mask(hu).any(axis=axis)) for axis in (1, 0))
    height, width = hu.shape
    top, left = max(0, int(rows[0]) - _CROP_MARGIN), max(0, int(columns[0]) - _CROP_MARGIN)
    bottom = min(height, int(rows[-1]) + 1 + _CROP_MARGIN)
    right = min(width, int(columns[-1]) + 1 + _CROP_MARGIN)
    return Crop(top, left, bottom - top, right - left)


def region_of(item: ShownSlice, crop: Crop, protocol: Protocol, asked: Region | None) -> Region:
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


class Drawings(NamedTuple):
    """Every figure of a report."""

    patients: list[_Chart]
    curves: list[_Chart]
    bias: list[_Chart]
    comparisons: list[_Pictures]
    differences: list[_Pictures]

    def files(self) -> Iterable[tuple[str, bytes]]:
        """Name and content of each file in figures/."""
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


def drawings_of(content: Content) -> Drawings:
    """Charts of the evaluation and panels of the slices shown."""
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
    return Drawings(
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
    crop = body_crop(item.images[REFERENCE])
    tiles = tuple(
        Tile(
            name,
            (", ".join(scores_below(content.evaluation, name, item)),),
            crop.of(hu),
            protocol.window_hu,
        )
        for name, hu in item.images.items()
    )
    title = f"{place(item)}. {caption(content.evaluation)} Research use only."
    region = region_of(item, crop, protocol, content.region)
    sheet = _figures.lay_out(_figures.Panel(tiles, region, item.pixel_mm, title))
    alt = f"{', '.join(item.images)}, side by side. {title}"
    return _Pictures(f"comparison_{order}", alt, sheet.png(), sheet.svg())


def _difference(content: Content, item: ShownSlice, order: int) -> _Pictures:
    crop = body_crop(item.images[REFERENCE])
    reference = item.images[REFERENCE]
    tiles = tuple(
        Tile(f"{name} - reference", (), crop.of(hu - reference), DIFFERENCE_WINDOW_HU)
        for name, hu in item.images.items()
        if name != REFERENCE
    )
    low, high = DIFFERENCE_WINDOW_HU
    title = f"{place(item)}. Difference, window [{low:g}, {high:g}] HU. Research use only."
    region = region_of(item, crop, content.evaluation.protocol, content.region)
    sheet = _figures.lay_out(_figures.Panel(tiles, region, item.pixel_mm, title))
    alt = f"{', '.join(tile.caption for tile in tiles)}, side by side. {title}"
    return _Pictures(f"difference_{order}", alt, sheet.png(), sheet.svg())


def place(item: ShownSlice) -> str:
    """Patient, slice and position, in words."""
    return f"{item.patient}, slice {item.slice_number} at {item.position_mm:.1f} mm"


def scores_below(evaluation: Evaluation, name: str, item: ShownSlice) -> list[str]:
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
