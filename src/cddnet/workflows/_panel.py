"""One picture of a result: slices side by side at one window, with a zoomed region."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cddnet.intensity.window import to_grey

_TEXT = 18
_MARGIN = 8


class Panel(NamedTuple):
    """caption: ASCII; hu: (H, W); window_hu: (low, high) shown."""

    caption: str
    hu: NDArray[np.floating]
    window_hu: tuple[float, float]


class Region(NamedTuple):
    """Top-left corner and side of the zoomed square, pixels."""

    row: int
    column: int
    side: int


def draw(panels: list[Panel], region: Region, title: str) -> Image.Image:
    """Panels in a row, each with the region enlarged below it."""
    height, width = panels[0].hu.shape
    font = ImageFont.load_default(_TEXT)
    line = _TEXT + _MARGIN
    sheet = Image.new(
        "L", ((width + _MARGIN) * len(panels) - _MARGIN, height + width + 2 * line + _MARGIN), 255
    )
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN // 2), title, fill=0, font=font)
    for number, panel in enumerate(panels):
        left, top = number * (width + _MARGIN), line
        pen.text((left + _MARGIN, top), panel.caption, fill=0, font=font)
        grey = Image.fromarray(to_grey(panel.hu, panel.window_hu, 8).astype(np.uint8))
        row, column, side = region
        zoomed = grey.crop((column, row, column + side, row + side))
        sheet.paste(grey, (left, top + line))
        corner = (left + column, top + line + row)
        pen.rectangle((corner, (corner[0] + side, corner[1] + side)), outline=255)
        sheet.paste(
            zoomed.resize((width, width), Image.Resampling.BICUBIC),
            (left, top + line + height + _MARGIN),
        )
    return sheet
