"""Charts and panels: every value lies where its axis says, and nothing breaks out of the SVG."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cddnet.intensity.window import to_grey
from cddnet.workflows._evaluation import Curve, Interval
from cddnet.workflows._figures import (
    Measured,
    Panel,
    PatientLine,
    Tile,
    axis,
    curve_chart,
    inks,
    interval_chart,
    lay_out,
    patient_chart,
)
from cddnet.workflows._panel import Region

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert("1")</script>&'


def points(element):
    return np.array([pair.split(",") for pair in element.get("points").split()], float)


def scale_of(root, place):
    """Value of a coordinate, from the tick labels of the chart: (slope, offset)."""
    labels = [(float(text.get(place)), text.text) for text in root.iter(f"{SVG}text")]
    anchor = "end" if place == "y" else "middle"
    ticks = [
        (at, float(text))
        for (at, text), item in zip(labels, root.iter(f"{SVG}text"), strict=True)
        if item.get("text-anchor") == anchor and re.fullmatch(r"-?[\d.e+-]+", text)
    ]
    coordinates, values = np.array(ticks).T
    return np.polyfit(coordinates, values, 1)


@pytest.mark.parametrize(
    "values",
    [[0.0, 1.0], [25.05, 31.2], [-38.0, 6.2], [1e-7, 3e-7], [5.0, 5.0], [0.0], [1e5, 7e5]],
)
def test_an_axis_holds_its_values_between_few_round_ticks(values):
    found = axis(values)
    assert found.low <= min(values) <= max(values) <= found.high
    assert 3 <= len(found.ticks) <= 9
    steps = np.diff(found.ticks)
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:.1e}"[:3] in {"1.0", "2.0", "2.5", "5.0"}


def test_an_axis_of_nothing_finite_still_stands():
    assert len(axis([float("nan"), float("inf")]).ticks) >= 2


def test_curves_lie_where_the_axes_say():
    x = (0.0, 0.1, 0.35, 0.61)
    y = (0.0, 44.0, 17.0, 3.0)
    curve = Curve(name="a", x=x, y=y, x_label="frequency (1/mm)", y_label="NPS (HU2 mm2)")
    root = ElementTree.fromstring(
        curve_chart([curve], inks(["a"], reference="r", low_dose=None), "t")
    )
    drawn = points(list(root.iter(f"{SVG}polyline"))[-1])
    for column, place, expected in ((0, "x", x), (1, "y", y)):
        slope, offset = scale_of(root, place)
        if place == "y":
            # The label's baseline is 4 below its tick.
            offset += 4 * slope
        assert np.allclose(slope * drawn[:, column] + offset, expected, atol=abs(slope) * 0.2)
    assert "frequency (1/mm)" in "".join(root.itertext())


def test_every_patient_has_a_line_and_missing_values_none():
    drawn = inks(["b"], reference="r", low_dose="a")
    drawn = {"a": drawn["a"], "b": drawn["b"]}
    lines = [
        PatientLine("p1", (25.0, 30.0)),
        PatientLine("p2", (26.0, 29.0)),
        PatientLine("p3", (26.0, None)),
    ]
    means = [Interval(value=25.5, low=25.0, high=26.0), Interval(value=float("inf"))]
    root = ElementTree.fromstring(patient_chart(lines, means, drawn, "PSNR (dB)"))
    lines = [
        points(line) for line in root.iter(f"{SVG}polyline") if line.find(f"{SVG}title") is not None
    ]
    assert len(lines) == 2
    slope, offset = scale_of(root, "y")
    values = [slope * (line[:, 1] + 4) + offset for line in lines]
    assert np.allclose(values, [[25, 30], [26, 29]], atol=abs(slope) * 0.2)


def test_intervals_lie_around_their_values():
    groups = [Measured("bone", {"a": Interval(value=-4.0, low=-6.0, high=-1.0)})]
    root = ElementTree.fromstring(
        interval_chart(groups, inks(["a"], reference="r", low_dose=None), "bias (HU)")
    )
    slope, offset = scale_of(root, "x")
    bars = [points(line)[:, 0] for line in root.iter(f"{SVG}polyline")]
    bars = [slope * bar + offset for bar in bars[1:]]
    assert any(np.allclose(bar, [-6, -1], atol=abs(slope) * 0.2) for bar in bars)


def test_rows_differ_without_colour():
    drawn = inks(["low", *"abcdef"], reference="r", low_dose="low")
    assert len({(ink.dash, ink.marker) for ink in drawn.values()}) == len(drawn)
    for ink in drawn.values():
        red, green, blue = (int(ink.colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        linear = [
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
        ]
        luminance = float(np.dot([0.2126, 0.7152, 0.0722], linear))
        # WCAG 2.1, contrast on white.
        assert 1.05 / (luminance + 0.05) >= 4.5


def test_hostile_names_stay_text():
    curve = Curve(name=HOSTILE, x=(0, 1), y=(0, 1), x_label=HOSTILE, y_label=HOSTILE)
    chart = curve_chart([curve], inks([HOSTILE], reference="r", low_dose=None), HOSTILE)
    root = ElementTree.fromstring(chart)
    assert root.find(f".//{SVG}script") is None
    assert root.find(f"{SVG}title").text == HOSTILE


def test_a_panel_shows_the_slices_at_their_window_and_aspect(rng):
    hu = rng.normal(40, 100, (2, 31, 47)).astype(np.float32)
    window, region = (-100.0, 200.0), Region(row=5, column=9, side=12)
    tiles = tuple(
        Tile(name, (f"PSNR {name}",), image, window) for name, image in zip("ab", hu, strict=True)
    )
    sheet = lay_out(Panel(tiles, region, (2.0, 1.0), "a title"))
    picture = Image.open(io.BytesIO(sheet.png()))
    assert picture.size == sheet.size
    root = ElementTree.fromstring(sheet.svg())
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"a title", "a", "b", "PSNR a", "PSNR b"} == set(texts)
    images = list(root.iter(f"{SVG}image"))
    assert len(images) == 4
    for item, image in zip(images[::2], hu, strict=True):
        width, height = int(item.get("width")), int(item.get("height"))
        assert abs(height / width - 31 * 2.0 / 47) < 1 / width
        data = base64.b64decode(item.get("href").split(",")[1])
        shown = Image.open(io.BytesIO(data)).resize((47, 31), Image.Resampling.BOX)
        expected = to_grey(image, window, 8).astype(float)
        assert np.corrcoef(np.asarray(shown, float).ravel(), expected.ravel())[0, 1] > 0.9
    zoomed = images[1]
    assert zoomed.get("height") == str(2 * int(zoomed.get("width")))
