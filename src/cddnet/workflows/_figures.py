"""Figures of a report: charts as SVG, pictures of slices as PNG and SVG; no plotting library.

Above 300 lines: it stands for a plotting library.
"""

# Shapes: H row, W column.

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cddnet.intensity.window import to_grey
from cddnet.workflows._evaluation import Curve, Interval
from cddnet.workflows._panel import Region

Window = tuple[float, float]

_FONT = "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
_TEXT_COLOUR = "#1b1f24"
_AXIS_COLOUR = "#5b636d"
_GRID_COLOUR = "#e3e6ea"
_CHART_WIDTH = 430
_CHART_HEIGHT = 290


class Ink(NamedTuple):
    """How one row is drawn in every chart: never by colour alone."""

    colour: str
    dash: str
    marker: str


# Okabe and Ito's colours, darkened to a contrast of 4.5 on white.
_REFERENCE_INK = Ink("#111111", "", "diamond")
_LOW_DOSE_INK = Ink("#6a6f76", "5 3", "square")
_METHOD_INKS = (
    Ink("#005f9e", "", "circle"),
    Ink("#b84a00", "9 3", "triangle"),
    Ink("#007a58", "3 2", "cross"),
    Ink("#a2467f", "9 3 2 3", "diamond"),
    Ink("#7a6200", "1.5 2.5", "square"),
    Ink("#3a3fb0", "6 2 1.5 2 1.5 2", "circle"),
)


def inks(methods: Sequence[str], *, reference: str, low_dose: str | None) -> dict[str, Ink]:
    """Ink of every row, the reference and the low dose always the same."""
    chosen = {reference: _REFERENCE_INK}
    if low_dose is not None:
        chosen[low_dose] = _LOW_DOSE_INK
    others = [name for name in methods if name not in chosen]
    for number, name in enumerate(others):
        chosen[name] = _METHOD_INKS[number % len(_METHOD_INKS)]
    return chosen


class Axis(NamedTuple):
    """low and high: of the data range shown.  ticks: round values inside it."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float, start: float, end: float) -> float:
        return start + (value - self.low) / (self.high - self.low) * (end - start)


def axis(values: Iterable[float], *, include: float | None = None, count: int = 5) -> Axis:
    """An axis over the finite values, with about `count` round ticks at its ends and between."""
    finite = [value for value in values if math.isfinite(value)]
    finite += [] if include is None else [include]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-30):
        pad = abs(high) * 0.05 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{number * step:.12g}") for number in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def _trimmed(values: Sequence[float]) -> Axis:
    """An axis from a round tick to where the values end."""
    whole = axis(values)
    high = max((value for value in values if math.isfinite(value)), default=whole.high)
    if high <= whole.low:
        return whole
    return Axis(whole.low, high, tuple(tick for tick in whole.ticks if tick <= high))


def curve_chart(curves: Sequence[Curve], drawn: dict[str, Ink], title: str) -> str:
    """Curves over one pair of axes, y from zero where nothing lies below."""
    x_axis = _trimmed([x for curve in curves for x in curve.x])
    y_axis = axis((y for curve in curves for y in curve.y), include=0.0)
    chart = _Chart(title, legend=[(curve.name, drawn[curve.name]) for curve in curves])
    chart.frame_y(y_axis, curves[0].y_label)
    chart.frame_x(x_axis, curves[0].x_label)
    for curve in curves:
        points = [
            (x_axis.place(x, chart.left, chart.right), y_axis.place(y, chart.bottom, chart.top))
            for x, y in zip(curve.x, curve.y, strict=True)
            if math.isfinite(x) and math.isfinite(y)
        ]
        chart.line(points, drawn[curve.name], width=2.0)
    return chart.svg()


class PatientLine(NamedTuple):
    """values: of every row in its order, None where it was not measured."""

    patient: str
    values: tuple[float | None, ...]


def patient_chart(
    lines: Sequence[PatientLine],
    means: Sequence[Interval | None],
    drawn: dict[str, Ink],
    label: str,
) -> str:
    """One thin line per patient from row to row, and each row's mean with its interval.

    drawn: name -> ink of the rows, in the order of the values.
    """
    flat = [value for line in lines for value in line.values if value is not None]
    flat += [
        bound
        for mean in means
        if mean is not None
        for bound in (mean.value, mean.low, mean.high)
        if bound is not None
    ]
    y_axis = axis(flat)
    chart = _Chart(f"{label}, one line per patient", legend=[])
    chart.frame_y(y_axis, label)
    names = list(drawn)
    step = (chart.right - chart.left) / len(names)
    places = [chart.left + (number + 0.5) * step for number in range(len(names))]
    for name, place in zip(names, places, strict=True):
        chart.text(place, chart.bottom + 16, _shortened(name, step - 6, 12), anchor="middle")
    for line in lines:
        points = [
            (place, y_axis.place(value, chart.bottom, chart.top))
            for place, value in zip(places, line.values, strict=True)
            if value is not None and math.isfinite(value)
        ]
        chart.line(points, Ink("#8a919a", "", ""), width=1.0, tip=line.patient)
        for place, y in points:
            chart.marker(place, y, Ink("#8a919a", "", "circle"), size=2.5)
    for name, place, mean in zip(names, places, means, strict=True):
        if mean is not None and math.isfinite(mean.value):
            chart.whisker(mean, (y_axis, place + min(16, step / 4)), drawn[name], upright=True)
    return chart.svg()


class Measured(NamedTuple):
    """One group of an interval chart, such as a tissue: row -> value with its interval."""

    label: str
    rows: dict[str, Interval]


def interval_chart(groups: Sequence[Measured], drawn: dict[str, Ink], label: str) -> str:
    """A dot with its interval for every row of every group, around a line at zero."""
    bounds = [
        bound
        for group in groups
        for item in group.rows.values()
        for bound in (item.value, item.low, item.high)
        if bound is not None
    ]
    x_axis = axis(bounds, include=0.0)
    names = [name for name in drawn if any(name in group.rows for group in groups)]
    row_height = 15
    group_height = row_height * len(names) + 14
    chart = _Chart(
        label,
        legend=[(name, drawn[name]) for name in names],
        plot_height=group_height * len(groups),
        left=104,
    )
    chart.frame_x(x_axis, label)
    zero = x_axis.place(0.0, chart.left, chart.right)
    chart.rule((zero, chart.top), (zero, chart.bottom), _AXIS_COLOUR)
    for number, group in enumerate(groups):
        top = chart.top + number * group_height
        middle = top + group_height / 2 + 4
        chart.text(chart.left - 10, middle, _shortened(group.label, 92, 12), "end", 12)
        if number:
            chart.rule((chart.left, top), (chart.right, top), _GRID_COLOUR)
        for order, name in enumerate(names):
            if name in group.rows:
                y = top + 7 + (order + 0.5) * row_height
                chart.whisker(group.rows[name], (x_axis, y), drawn[name], upright=False)
    return chart.svg()


class _Chart:
    """Collects SVG elements inside a frame; y grows downwards."""

    def __init__(
        self,
        title: str,
        *,
        legend: Sequence[tuple[str, Ink]],
        plot_height: float | None = None,
        left: float = 62,
    ) -> None:
        self.parts: list[str] = []
        self.title = title
        self.left, self.right = left, _CHART_WIDTH - 14.0
        self.top = 10.0 + self._legend(legend)
        self.bottom = (
            _CHART_HEIGHT - 46.0 if plot_height is None else self.top + max(plot_height, 60)
        )
        self.height = self.bottom + 24

    def _legend(self, entries: Sequence[tuple[str, Ink]]) -> float:
        x, y = 12.0, 14.0
        for name, ink in entries:
            shown = _shortened(name, _CHART_WIDTH - 70, 12)
            width = 40 + _text_width(shown, 12)
            if x + width > _CHART_WIDTH and x > 12:
                x, y = 12.0, y + 18
            self.line([(x, y), (x + 26, y)], ink, width=2)
            self.marker(x + 13, y, ink, size=3.5)
            self.text(x + 31, y + 4, shown, size=12)
            x += width + 8
        return y + 8 if entries else 0.0

    def frame_y(self, y_axis: Axis, label: str) -> None:
        for tick in y_axis.ticks:
            y = y_axis.place(tick, self.bottom, self.top)
            self.rule((self.left, y), (self.right, y), _GRID_COLOUR)
            self.text(self.left - 6, y + 4, _tick(tick), "end")
        self.rule((self.left, self.top), (self.left, self.bottom), _AXIS_COLOUR)
        self.rule((self.left, self.bottom), (self.right, self.bottom), _AXIS_COLOUR)
        middle = (self.top + self.bottom) / 2
        self.parts.append(
            f'<text x="13" y="{middle:.1f}" transform="rotate(-90 13 {middle:.1f})" '
            f'text-anchor="middle" font-size="12" fill="{_TEXT_COLOUR}">{escape(label)}</text>'
        )

    def frame_x(self, x_axis: Axis, label: str) -> None:
        self.height = self.bottom + 46
        for tick in x_axis.ticks:
            x = x_axis.place(tick, self.left, self.right)
            self.rule((x, self.top), (x, self.bottom), _GRID_COLOUR)
            self.text(x, self.bottom + 16, _tick(tick), "middle")
        self.rule((self.left, self.bottom), (self.right, self.bottom), _AXIS_COLOUR)
        self.text((self.left + self.right) / 2, self.bottom + 36, label, "middle", 12)

    def rule(self, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
        self.parts.append(
            f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
            f'stroke="{colour}"/>'
        )

    def line(
        self, points: Sequence[tuple[float, float]], ink: Ink, *, width: float, tip: str = ""
    ) -> None:
        if len(points) < 2:
            return
        dash = f' stroke-dasharray="{ink.dash}"' if ink.dash else ""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        hint = f"<title>{escape(tip)}</title>" if tip else ""
        self.parts.append(
            f'<polyline points="{places}" fill="none" stroke="{ink.colour}" '
            f'stroke-width="{width}" stroke-linejoin="round"{dash}>{hint}</polyline>'
        )

    def marker(self, x: float, y: float, ink: Ink, *, size: float) -> None:
        self.parts.append(f'<path d="{_marker(x, y, ink.marker, size)}" {_marker_paint(ink)}/>')

    def whisker(
        self, item: Interval, where: tuple[Axis, float], ink: Ink, *, upright: bool
    ) -> None:
        """A marker at the value and a bar over the interval, `where` across the axis."""
        along, across = where

        def point(value: float) -> tuple[float, float]:
            if upright:
                return across, along.place(value, self.bottom, self.top)
            return along.place(value, self.left, self.right), across

        if item.low is not None and item.high is not None:
            start, end = point(item.low), point(item.high)
            self.line([start, end], Ink(ink.colour, "", ""), width=2.2)
            for x, y in (start, end):
                dx, dy = (4, 0) if upright else (0, 4)
                self.line([(x - dx, y - dy), (x + dx, y + dy)], Ink(ink.colour, "", ""), width=1.6)
        if math.isfinite(item.value):
            self.marker(*point(item.value), ink, size=4.5)

    def text(self, x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'fill="{_TEXT_COLOUR}">{escape(text)}</text>'
        )

    def svg(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {_CHART_WIDTH} '
            f'{self.height:.0f}" font-family="{_FONT}"><title>{escape(self.title)}</title>'
            + "".join(self.parts)
            + "</svg>"
        )


def _marker(x: float, y: float, kind: str, size: float) -> str:
    if kind == "square":
        side = 1.7 * size
        return f"M{x - side / 2:.1f} {y - side / 2:.1f}h{side:.1f}v{side:.1f}h{-side:.1f}z"
    if kind == "triangle":
        return f"M{x:.1f} {y - size:.1f}l{size:.1f} {1.8 * size:.1f}h{-2 * size:.1f}z"
    if kind == "diamond":
        s = 1.2 * size
        return f"M{x:.1f} {y - s:.1f}l{s:.1f} {s:.1f}l{-s:.1f} {s:.1f}l{-s:.1f} {-s:.1f}z"
    if kind == "cross":
        s = size
        return (
            f"M{x - s:.1f} {y - s:.1f}l{2 * s:.1f} {2 * s:.1f}"
            f"M{x - s:.1f} {y + s:.1f}l{2 * s:.1f} {-2 * s:.1f}"
        )
    arc = f"a{size:.1f} {size:.1f} 0 1 0"
    return f"M{x - size:.1f} {y:.1f}{arc} {2 * size:.1f} 0{arc} {-2 * size:.1f} 0z"


def _marker_paint(ink: Ink) -> str:
    if ink.marker == "cross":
        return f'fill="none" stroke="{ink.colour}" stroke-width="2"'
    return f'fill="{ink.colour}" stroke="#ffffff" stroke-width="0.7"'


def _tick(value: float) -> str:
    return f"{value:g}"


def _text_width(text: str, size: float) -> float:
    """An estimate that holds for the usual sans-serif fonts."""
    return 0.56 * size * len(text)


def _shortened(text: str, width: float, size: float) -> str:
    fits = max(1, int(width / (0.56 * size)))
    return text if len(text) <= fits else text[: max(1, fits - 1)] + "…"


class Tile(NamedTuple):
    """One picture of a panel. lines: printed below, such as its scores.  hu: (H, W)."""

    caption: str
    lines: tuple[str, ...]
    hu: NDArray[np.floating]
    window_hu: Window


class Panel(NamedTuple):
    """Tiles in rows of at most `across`, each with the region enlarged below it.

    pixel_mm: (row, column).
    """

    tiles: tuple[Tile, ...]
    region: Region
    pixel_mm: tuple[float, float]
    title: str


_TILE = 384
_GAP = 10
_LINE = 27
_TEXT = 20
_ACROSS = 5


class Sheet(NamedTuple):
    """A drawing that can be written as pixels or as vectors around them.

    pictures: (left, top, picture).  boxes: (left, top, right, bottom) outlines.
    texts: (left, top, text).
    """

    size: tuple[int, int]
    pictures: list[tuple[int, int, Image.Image]]
    boxes: list[tuple[int, int, int, int]]
    texts: list[tuple[int, int, str]]

    def png(self) -> bytes:
        sheet = Image.new("L", self.size, 255)
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
        for left, top, picture in self.pictures:
            sheet.paste(picture, (left, top))
        for box in self.boxes:
            pen.rectangle(box, outline=255, width=2)
        for left, top, text in self.texts:
            pen.text((left, top), text, fill=0, font=font)
        return png_bytes(sheet)

    def svg(self) -> str:
        width, height = self.size
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="{_FONT}" font-size="{_TEXT}">'
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
        ]
        for left, top, picture in self.pictures:
            parts.append(
                f'<image x="{left}" y="{top}" width="{picture.width}" height="{picture.height}" '
                f'href="{data_url(png_bytes(picture))}"/>'
            )
        for left, top, right, bottom in self.boxes:
            parts.append(
                f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" '
                'fill="none" stroke="#ffffff" stroke-width="2"/>'
            )
        for left, top, text in self.texts:
            parts.append(f'<text x="{left}" y="{top + _TEXT}">{escape(text)}</text>')
        return "".join(parts) + "</svg>"


def lay_out(panel: Panel) -> Sheet:
    """Where everything of a panel goes; pixels are shown in their true aspect."""
    height, width = panel.tiles[0].hu.shape
    row_mm, column_mm = panel.pixel_mm
    tall = max(1, round(_TILE * height * row_mm / (width * column_mm)))
    zoom_tall = max(1, round(_TILE * row_mm / column_mm))
    lines = max(len(tile.lines) for tile in panel.tiles)
    band = _LINE + tall + 4 + zoom_tall + lines * _LINE + _GAP
    across = min(_ACROSS, len(panel.tiles))
    bands = -(-len(panel.tiles) // across)
    sheet_width = across * (_TILE + _GAP) - _GAP
    title = _wrapped(panel.title, sheet_width)
    head = _LINE * len(title) + 4
    sheet = Sheet((sheet_width, head + bands * band), [], [], [])
    for number, text in enumerate(title):
        sheet.texts.append((0, number * _LINE, text))
    for number, tile in enumerate(panel.tiles):
        left = number % across * (_TILE + _GAP)
        top = head + number // across * band
        sheet.texts.append((left, top, _fitted(tile.caption)))
        grey = grey_picture(tile.hu, tile.window_hu)
        sheet.pictures.append((left, top + _LINE, grey.resize((_TILE, tall), _SMOOTH)))
        row, column, side = panel.region
        sheet.boxes.append(
            (
                left + round(column * _TILE / width),
                top + _LINE + round(row * tall / height),
                left + round((column + side) * _TILE / width),
                top + _LINE + round((row + side) * tall / height),
            )
        )
        zoomed = grey.crop((column, row, column + side, row + side))
        below = top + _LINE + tall + 4
        sheet.pictures.append((left, below, zoomed.resize((_TILE, zoom_tall), _SMOOTH)))
        for order, text in enumerate(tile.lines):
            sheet.texts.append((left, below + zoom_tall + 2 + order * _LINE, _fitted(text)))
    return sheet


_SMOOTH = Image.Resampling.BICUBIC


def grey_picture(hu: NDArray[np.floating], window_hu: Window) -> Image.Image:
    """Slice (H, W) in HU as 8-bit grey of a window."""
    return Image.fromarray(to_grey(hu, window_hu, 8).astype(np.uint8))


def png_bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _fitted(text: str) -> str:
    font = ImageFont.load_default(_TEXT)
    if font.getlength(text) <= _TILE:
        return text
    while text and font.getlength(text + "...") > _TILE:
        text = text[:-1]
    return text + "..."


def _wrapped(text: str, width: int) -> list[str]:
    font = ImageFont.load_default(_TEXT)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
