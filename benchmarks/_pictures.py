"""Pictures of a comparison: validation curves, and one slice as every method gives it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cddnet.intensity.window import to_grey

MOST_BYTES = 400_000
_WINDOW_HU = (-110.0, 190.0)
_REGION, _CELLS, _COLUMNS = 128, (256, 224, 192, 160, 128), 4
_TEXT, _GREYS = 13, 64
_SHOWN_BELOW_DB = 1.0


class Curves(NamedTuple):
    """trainings: row -> its trainings, each (crops, dB).  low_dose_db: of the same patients."""

    trainings: Mapping[str, Sequence[Sequence[tuple[int, float]]]]
    low_dose_db: float


def draw_curves(curves: Curves, path: Path) -> None:
    """Over the crops seen so far; what stays far below the low dose is not shown."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=100, layout="constrained")
    # Colours come again after ten rows; the dashes then differ.
    for number, (name, trainings) in enumerate(curves.trainings.items()):
        colour, dash = f"C{number % 10}", ("-", "--", ":")[number // 10 % 3]
        for index, one in enumerate(trainings):
            crops, values = np.array(one, float).T
            label = None if index else name
            axes.plot(crops, values, dash, color=colour, label=label, lw=1.2)
    axes.axhline(curves.low_dose_db, color="black", lw=0.8, ls="-.", label="low dose")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], curves.low_dose_db - _SHOWN_BELOW_DB))
    axes.set_xlabel("crops seen")
    axes.set_ylabel("PSNR of the validation patients (dB), [-160, 240] HU")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)
    pyplot.close(figure)


def draw_panel(images: Mapping[str, NDArray[np.floating]], path: Path) -> None:
    """Caption -> slice (H, W) in HU, the full dose first: it is shown whole, the others' region."""
    for cell in _CELLS:
        written = io.BytesIO()
        sheet = _sheet(images, cell).quantize(_GREYS, dither=Image.Dither.NONE)
        sheet.save(written, "PNG", optimize=True)
        if written.tell() <= MOST_BYTES:
            break
    path.write_bytes(written.getvalue())


def _sheet(images: Mapping[str, NDArray[np.floating]], cell: int) -> Image.Image:
    first = next(iter(images.values()))
    corner = _fullest(first)
    region = np.s_[corner[0] : corner[0] + _REGION, corner[1] : corner[1] + _REGION]
    overview = _grey(first)
    ImageDraw.Draw(overview).rectangle(
        (corner[1], corner[0], corner[1] + _REGION, corner[0] + _REGION), outline=255, width=3
    )
    cells = {"full dose, whole": overview}
    cells |= {name: _grey(hu[region]) for name, hu in images.items()}
    rows = -(-len(cells) // _COLUMNS)
    line = _TEXT + 6
    sheet = Image.new("L", (_COLUMNS * (cell + 4), rows * (cell + line)), 255)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for number, (name, grey) in enumerate(cells.items()):
        left, top = number % _COLUMNS * (cell + 4), number // _COLUMNS * (cell + line)
        pen.text((left + 2, top + 2), _cut(name, font, cell), fill=0, font=font)
        small = grey.resize((cell, cell), Image.Resampling.BICUBIC)
        sheet.paste(small, (left, top + line))
    return sheet


def _cut(name: str, font: ImageFont.ImageFont, width: int) -> str:
    """A caption that stays over its own cell."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(f"{name}...") > width:
        name = name[:-1]
    return f"{name.rstrip()}..."


def _grey(hu: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(to_grey(hu, _WINDOW_HU, 8).astype(np.uint8))


def _fullest(hu: NDArray[np.floating]) -> tuple[int, int]:
    """Corner of the region with the most soft tissue."""
    tissue = np.pad(((hu > -20) & (hu < 180)).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    side = _REGION
    inside = tissue[side:, side:] - tissue[:-side, side:] - tissue[side:, :-side]
    inside += tissue[:-side, :-side]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(row), int(column)
