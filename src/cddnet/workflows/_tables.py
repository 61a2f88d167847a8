"""The numbers of a report as they are printed: one rounding for HTML, Markdown and figures.

Above 300 lines: every table shares the rounding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cddnet.workflows._complexity import Complexity
from cddnet.workflows._evaluation import Comparison, Evaluation, Finding, Interval, Metric, Row

RESEARCH = "Research use only."
_DECIMALS = {"dB": 2, "HU": 2, "%": 1, "mm": 2, "/mm": 3, "1/mm": 3}


def number(value: float | None, unit: str = "") -> str:
    """Decimals by unit, none of them lost to a tiny number; a dash where nothing was measured."""
    if value is None:
        return "-"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if math.isnan(value):
        return "undefined"
    if abs(value) >= 1000:
        return f"{value:.6g}"
    if value and abs(value) < 0.001:
        return f"{value:.3g}"
    return f"{value:.{_DECIMALS.get(unit, 4 if abs(value) < 1 else 3)}f}"


def bounds(item: Interval | None, unit: str = "") -> str:
    """The interval in brackets, "" where there is none."""
    if item is None or item.low is None or item.high is None:
        return ""
    return f"[{number(item.low, unit)}, {number(item.high, unit)}]"


def with_unit(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def sizes(evaluation: Evaluation) -> str:
    """n, in words."""
    images = evaluation.rows[0].images if evaluation.rows else ()
    patients = len({image.patient for image in images})
    return f"{counted(patients, 'patient')}, {counted(len(images), 'slice')}"


def caption(evaluation: Evaluation) -> str:
    """Under which every figure of fidelity stands; repeated wherever one is printed."""
    if evaluation.mode != "paired":
        return f"{evaluation.mode}, no full dose, so no fidelity; n = {sizes(evaluation)}."
    return f"{evaluation.protocol.described}; mask: {evaluation.mask}; n = {sizes(evaluation)}."


def ordered(evaluation: Evaluation) -> list[Row]:
    """Rows as evaluated, the low dose before all others."""
    return sorted(evaluation.rows, key=lambda row: not row.is_low_dose)


class Cell(NamedTuple):
    """worse: than the low dose."""

    value: str
    bounds: str
    best: bool
    worse: bool


class TableRow(NamedTuple):
    """flagged: metrics in which it is worse than the low dose, in words."""

    name: str
    is_low_dose: bool
    flagged: str
    cells: list[Cell]


def table(evaluation: Evaluation) -> list[TableRow]:
    """Mean and interval of every metric and row."""
    rows = ordered(evaluation)
    best = {metric.name: _best(metric, rows) for metric in evaluation.metrics}
    return [
        TableRow(
            row.name,
            row.is_low_dose,
            ", ".join(row.flagged),
            [_cell(row, metric, best[metric.name]) for metric in evaluation.metrics],
        )
        for row in rows
    ]


def _cell(row: Row, metric: Metric, best: float | None) -> Cell:
    mean = row.mean.get(metric.name)
    return Cell(
        number(None if mean is None else mean.value, metric.unit),
        bounds(mean, metric.unit),
        mean is not None and mean.value == best,
        metric.name in row.flagged,
    )


def _best(metric: Metric, rows: Sequence[Row]) -> float | None:
    """None where a single row was measured: nothing is best alone."""
    values = [row.mean[metric.name].value for row in rows if metric.name in row.mean]
    values = [value for value in values if not math.isnan(value)]
    if len(values) < 2:
        return None
    return max(values) if metric.higher_is_better else min(values)


class Compared(NamedTuple):
    """favours: the row that the difference speaks for, "" where its interval holds zero."""

    metric: str
    pair: str
    difference: str
    bounds: str
    p_value: str
    test: str
    patients: int
    favours: str


def compared(evaluation: Evaluation) -> list[Compared]:
    """Paired differences between rows."""
    metrics = {metric.name: metric for metric in evaluation.metrics}
    return [_compared(item, metrics.get(item.metric)) for item in evaluation.comparisons]


def _compared(item: Comparison, metric: Metric | None) -> Compared:
    unit = "" if metric is None else metric.unit
    difference = item.difference
    favours = ""
    low, high = difference.low, difference.high
    if metric is not None and low is not None and high is not None and low * high > 0:
        favours = item.first if (low > 0) == metric.higher_is_better else item.second
    return Compared(
        with_unit(item.metric, unit),
        f"{item.first} - {item.second}",
        number(difference.value, unit),
        bounds(difference, unit),
        "-" if item.p_value is None else f"{item.p_value:.3g}",
        item.test,
        item.patients,
        favours,
    )


def compared_by_pair(evaluation: Evaluation) -> list[tuple[str, list[Compared | None]]]:
    """(pair, its difference in every metric of the evaluation)."""
    found = {(item.pair, item.metric): item for item in compared(evaluation)}
    names = [with_unit(metric.name, metric.unit) for metric in evaluation.metrics]
    pairs = list(dict.fromkeys(pair for pair, _ in found))
    return [(pair, [found.get((pair, name)) for name in names]) for pair in pairs]


def tests(evaluation: Evaluation) -> str:
    """Which paired test, over how many patients, in words."""
    said = [f"{item.test} ({counted(item.patients, 'patient')})" for item in evaluation.comparisons]
    return "; ".join(dict.fromkeys(said))


def patient_rows(evaluation: Evaluation) -> list[tuple[str, str, list[str]]]:
    """(patient, row, values) of every mean over a patient."""
    return [
        (patient, row.name, [number(values.get(m.name), m.unit) for m in evaluation.metrics])
        for row in ordered(evaluation)
        for patient, values in row.per_patient.items()
    ]


def warnings(evaluation: Evaluation) -> list[str]:
    """Which method is worse than the low dose, and in what."""
    return [
        f"{row.name} is worse than the low dose in {', '.join(row.flagged)}."
        for row in evaluation.rows
        if row.flagged
    ]


class FindingRow(NamedTuple):
    """cells: (value, bounds) of each row of the evaluation."""

    name: str
    unit: str
    within: str
    cells: list[tuple[str, str]]


class FindingTable(NamedTuple):
    title: str
    hint: str
    rows: list[str]
    findings: list[FindingRow]


_FAMILIES = {
    "noise": (
        "Noise",
        "Lower noise at an unchanged peak frequency keeps the texture; a lower peak is coarser.",
    ),
    "resolution": ("Resolution", "f50 is the frequency at which half of the contrast is left."),
    "bias": ("HU bias", "Test minus reference; 0 is right."),
    "detectability": (
        "Detectability",
        "d' of 0 is guessing; area under the curve: 0.5 is guessing, 1 is certain.",
    ),
    "structure": ("Structure", "What was removed should hold noise and no anatomy."),
    "uniformity": ("Uniformity and linearity", "Against the phantom's known truth."),
}


def finding_tables(evaluation: Evaluation) -> list[FindingTable]:
    """Figures of physics, one table per family, one column per row."""
    tables = []
    for family, (title, hint) in _FAMILIES.items():
        found = [item for item in evaluation.physics.findings if item.family == family]
        if found:
            names = list(dict.fromkeys(item.row for item in found))
            tables.append(FindingTable(title, hint, names, _pivot(found, names)))
    return tables


def _pivot(found: Sequence[Finding], names: Sequence[str]) -> list[FindingRow]:
    groups: dict[tuple[str, str, str], dict[str, Interval]] = {}
    for item in found:
        groups.setdefault((item.name, item.unit, item.within), {})[item.row] = item.value
    return [
        FindingRow(name, unit, within, [_finding_cell(values.get(row), unit) for row in names])
        for (name, unit, within), values in groups.items()
    ]


def _finding_cell(item: Interval | None, unit: str) -> tuple[str, str]:
    return number(None if item is None else item.value, unit), bounds(item, unit)


def cost(item: Complexity) -> list[tuple[str, str]]:
    """What a network costs: (what, how much)."""
    unused = f"; {item.unused_parameters:,} more without part in the image"
    return [
        ("network", f"{item.name} ({item.network}), inference graph only"),
        ("parameters", f"{item.parameters:,}{unused if item.unused_parameters else ''}"),
        ("multiply-accumulates", f"{item.macs / 1e9:.3f} G" if item.macs else "not counted"),
        ("floating-point operations", f"{item.flops / 1e9:.3f} G (torch's counter)"),
        ("weights file", f"{item.weights_bytes / 1e6:.3f} MB"),
        (
            "time per slice",
            f"{item.seconds_per_slice:.3f} s (median of {item.runs}, batch 1, "
            f"{item.height} x {item.width} pixels, {item.dtype}, "
            f"{counted(item.threads, 'thread')})",
        ),
        ("machine", item.machine),
    ]


def markdown(evaluation: Evaluation, complexity: Sequence[Complexity]) -> str:
    """The report's tables in Markdown, with the numbers of the page."""
    e = evaluation
    lines = ["# CT denoising report", "", f"{RESEARCH} cddnet {_plain(e.version)}.", ""]
    lines += [f"Reference: {_plain(e.reference)}; mode: {e.mode}.", "", _plain(caption(e)), ""]
    says = [*e.physics.statements, *warnings(e)]
    if says:
        lines += ["## What the figures say", "", *(f"- {_plain(text)}" for text in says), ""]
    if e.metrics and e.rows:
        lines += ["## Scores", "", _plain(caption(e)), ""]
        lines += _grid(
            ["", *(with_unit(m.name, m.unit) for m in e.metrics)],
            [[row.name, *map(_marked, row.cells)] for row in table(e)],
        )
    if e.comparisons:
        lines += ["## Paired comparisons", "", _plain(caption(e)), ""]
        lines += _grid(
            ["metric", "pair", "difference", "95 % interval", "p", "test", "patients", "favours"],
            [list(map(str, item)) for item in compared(e)],
        )
    for found in finding_tables(e):
        lines += [f"## {found.title}", "", found.hint, ""]
        lines += _grid(
            ["", *found.rows, "measured in"],
            [
                [
                    with_unit(item.name, item.unit),
                    *(" ".join(filter(None, cell)) for cell in item.cells),
                    item.within,
                ]
                for item in found.findings
            ],
        )
    for item in complexity:
        lines += [f"## Cost of {_plain(item.name)}", ""]
        lines += _grid(["", ""], [list(pair) for pair in cost(item)])
    if e.metrics and e.rows:
        lines += ["## Means over patients", "", _plain(caption(e)), ""]
        lines += _grid(
            ["patient", "", *(with_unit(m.name, m.unit) for m in e.metrics)],
            [[patient, name, *values] for patient, name, values in patient_rows(e)],
        )
    notes = [*e.notes, *(f"{name} is unavailable: {why}" for name, why in e.unavailable.items())]
    if notes:
        lines += ["## Notes", "", *(f"- {_plain(text)}" for text in notes), ""]
    return "\n".join(lines)


def _marked(cell: Cell) -> str:
    value = f"{cell.value} (best)" if cell.best else cell.value
    return " ".join(filter(None, (value, cell.bounds, "worse than low dose" * cell.worse)))


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [_line(head), "|" + "---|" * len(head), *(_line(row) for row in rows)]
    return [*lines, ""]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    """Text that Markdown and the HTML made of it show as it is, on one line."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_|<>&~#]|(?<=\])\()", r"\\\1", one_line)
