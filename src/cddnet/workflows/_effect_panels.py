"""The picture of an explanation: slice, effects and weights over it, each enlarged below."""

# Shapes: H row, W column; colours (H, W, 3).

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cddnet.intensity.window import hu_to_window
from cddnet.workflows._causal import Box

_TEXT = 14
_LINE = 20
_BAR = 12
_MARGIN = 8
_NARROWEST = 384
_ZOOM = 3

# Ends of a diverging scale that most colour-blind people tell apart (Brewer, RdBu).
_BELOW, _ABOVE = np.array([5.0, 113.0, 176.0]), np.array([202.0, 0.0, 32.0])
_OUTLINE = (0, 170, 0)

Map = NDArray[np.float32]
Picture = NDArray[np.floating]


class Overlay(NamedTuple):
    """caption: one line.  values: (H, W) drawn from -limit to limit, nothing where not finite.
    ends: of the scale, in words.
    """

    caption: str
    values: Map
    limit: float
    ends: tuple[str, str]


class Shown(NamedTuple):
    """hu: (H, W) in grey of window_hu.  region: outlined and enlarged.  title, note: one line."""

    hu: Map
    window_hu: tuple[float, float]
    region: Box
    title: str
    note: str


def draw(shown: Shown, overlays: list[Overlay]) -> Image.Image:
    """The slice, then each overlay on it; below, the same around the region."""
    grey: Picture = np.repeat(
        (255.0 * hu_to_window(shown.hu, shown.window_hu))[..., None], 3, axis=-1
    )
    low, high = shown.window_hu
    ramp = np.linspace(-1, 1, 256, dtype=np.float32)[None]
    greys: Picture = np.linspace(0, 255, 256)[None, :, None].repeat(3, axis=2)
    panels: list[tuple[str, Picture, Picture]] = [("slice", grey, greys)]
    ends = [(f"{low:g} HU", f"{high:g} HU")]
    for overlay in overlays:
        coloured = _blended(grey, overlay.values / overlay.limit)
        panels.append((overlay.caption, coloured, _blended(np.full((1, 256, 3), 128.0), ramp)))
        ends.append(overlay.ends)
    height, width = shown.hu.shape
    times = -(-_NARROWEST // width)
    height, width = height * times, width * times
    near = _around(shown.region, (shown.hu.shape[0], shown.hu.shape[1]))
    zoomed_height = round(width * near.height / near.width)
    sheet = Image.new(
        "RGB",
        (
            (width + _MARGIN) * len(panels) - _MARGIN,
            height + zoomed_height + 4 * _LINE + _BAR + 2 * _MARGIN,
        ),
        "white",
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    pen.text((_MARGIN, 1), shown.title, fill="black", font=font)
    pen.text((_MARGIN, sheet.height - _LINE), shown.note, fill="black", font=font)
    top = 2 * _LINE
    below = top + height + _MARGIN
    bar_at = below + zoomed_height + _MARGIN // 2
    for number, ((caption, colours, bar), (first, last)) in enumerate(
        zip(panels, ends, strict=True)
    ):
        left = number * (width + _MARGIN)
        pen.text((left + _MARGIN, _LINE), caption, fill="black", font=font)
        whole = Box(0, 0, *shown.hu.shape)
        for part, place, size in (
            (whole, (left, top), (width, height)),
            (near, (left, below), (width, zoomed_height)),
        ):
            picture = Image.fromarray(np.rint(colours[part.inside]).astype(np.uint8))
            sheet.paste(picture.resize(size, Image.Resampling.NEAREST), place)
            _outline(pen, shown.region.within(part), place, size[0] / part.width)
        scale = Image.fromarray(np.rint(bar).astype(np.uint8))
        sheet.paste(scale.resize((width, _BAR)), (left, bar_at))
        pen.text((left + _MARGIN, bar_at + _BAR), first, fill="black", font=font)
        pen.text((left + width, bar_at + _BAR), last, fill="black", font=font, anchor="ra")
    return sheet


def _blended(grey: Picture, share: Map) -> Picture:
    """The grey image, coloured as strongly as the share of the scale's end; none is grey."""
    share = np.clip(np.nan_to_num(share), -1, 1)[..., None]
    colour = np.where(share < 0, _BELOW, _ABOVE)
    blended: Picture = grey + np.abs(share) * (colour - grey)
    return blended


def _around(region: Box, shape: tuple[int, int]) -> Box:
    """The region with as much again on each side, and more, inside the slice."""
    height, width = (
        min(size, max(_ZOOM * side, size // 3))
        for side, size in zip(region[2:], shape, strict=True)
    )
    row = int(np.clip(region.row + region.height // 2 - height // 2, 0, shape[0] - height))
    column = int(np.clip(region.column + region.width // 2 - width // 2, 0, shape[1] - width))
    return Box(row, column, height, width)


def _outline(pen: ImageDraw.ImageDraw, region: Box, place: tuple[int, int], times: float) -> None:
    left, top = place[0] + region.column * times, place[1] + region.row * times
    corner = left + region.width * times, top + region.height * times
    pen.rectangle(((left - 1, top - 1), corner), outline=_OUTLINE)
