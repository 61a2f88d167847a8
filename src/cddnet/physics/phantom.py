"""Phantoms with known truth: ellipses in HU, their images, exact line integrals and regions.

x grows along the columns, towards the patient's left; y grows down the rows, towards the back. Both
are in mm from the rotation axis, which is the image's centre. An ellipse replaces what lies below.
"""

# Shapes: N image side.

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.intensity.hu import AIR_HU
from cddnet.physics._anatomy import abdomen as abdomen
from cddnet.physics._anatomy import shoulder as shoulder
from cddnet.physics._anatomy import thorax as thorax
from cddnet.physics._ellipses import Ellipse as Ellipse
from cddnet.physics._ellipses import Phantom as Phantom
from cddnet.physics._ellipses import Vector
from cddnet.physics._ellipses import disc as disc

Floats = NDArray[np.float64]

# What a pixel of any orientation reaches from its centre, in pixels.
_HALF_DIAGONAL = 2**-0.5


class Region(NamedTuple):
    """A named ellipse and where its HU is known.

    background_hu: what its centre would show without it.  mask: (N, N) bool, the pixels that show
    nothing else, with a margin; empty for what is smaller than that.
    """

    ellipse: Ellipse
    background_hu: float
    mask: NDArray[np.bool_]


def names() -> tuple[str, ...]:
    """Every phantom that `build` knows."""
    return tuple(_BUILDERS)


def build(name: str) -> Phantom:
    """A phantom by its name.  Raises: ValueError for an unknown one."""
    if name not in _BUILDERS:
        raise ValueError(f"no phantom '{name}'; there are {', '.join(_BUILDERS)}")
    return replace(_BUILDERS[name](), name=name)


def centres_mm(size: int, pixel_mm: float) -> Floats:
    """Pixel centres from the axis (N,)."""
    return (np.arange(size, dtype=np.float64) - (size - 1) / 2) * pixel_mm


def hu_at(phantom: Phantom, x_mm: Floats, y_mm: Floats) -> Floats:
    """HU at points, of the common shape of both coordinates."""
    hu = np.full(np.broadcast_shapes(x_mm.shape, y_mm.shape), AIR_HU)
    for ellipse in phantom.ellipses:
        hu[_inside_mm(ellipse, x_mm, y_mm) > 0] = ellipse.hu
    return hu


def render(
    phantom: Phantom, size: int, pixel_mm: float, *, supersampling: int = 8
) -> NDArray[np.float32]:
    """Noise-free slice.

    Parameters: size N, even or odd; supersampling: points along each side of a pixel on a rim.
    Returns: (N, N) float32 HU, each pixel the mean over its area.
    """
    x_mm, y_mm = _grid(size, pixel_mm)
    reach_mm = pixel_mm * _HALF_DIAGONAL
    hu = np.full((size, size), AIR_HU)
    mixed = np.zeros((size, size), np.bool_)
    for ellipse in phantom.ellipses:
        inside_mm = _inside_mm(ellipse, x_mm, y_mm)
        hu[inside_mm > 0] = ellipse.hu
        mixed[inside_mm > reach_mm] = False
        mixed |= np.abs(inside_mm) <= reach_mm
    rows, columns = np.nonzero(mixed)
    x_rim_mm, y_rim_mm = x_mm[0, columns], y_mm[rows, 0]
    steps_mm = ((np.arange(supersampling) + 0.5) / supersampling - 0.5) * pixel_mm
    total = np.zeros(rows.size)
    for down_mm in steps_mm:
        for right_mm in steps_mm:
            total += hu_at(phantom, x_rim_mm + right_mm, y_rim_mm + down_mm)
    hu[mixed] = total / supersampling**2
    return hu.astype(np.float32)


def line_integrals(phantom: Phantom, angles: Floats, positions_mm: Floats) -> Floats:
    """Exact line integrals of HU / 1000 + 1, which is attenuation over that of water.

    Parameters: angles in radians and signed distances from the axis, of one common shape by
    broadcasting: rays along x cos(angle) + y sin(angle) = position, as in `projector` and for any
    fan.  Returns: that shape, mm of water.
    Source: the ellipse's chord (Kak and Slaney 1988, section 3.1); where ellipses overlap, each
    ray is cut at all rims and each piece belongs to the topmost one.
    """
    shape = np.broadcast_shapes(np.shape(angles), np.shape(positions_mm))
    rays = [np.broadcast_to(values, shape).reshape(-1) for values in (angles, positions_mm)]
    result = np.empty(rays[0].size)
    # As many rays at a time as keep the table of pieces in the cache.
    step = max(1, 2**17 // max(1, len(phantom.ellipses)))
    for start in range(0, result.size, step):
        part = slice(start, start + step)
        result[part] = _water_mm(phantom, rays[0][part], rays[1][part])
    return result.reshape(shape)


def truth(
    phantom: Phantom, size: int, pixel_mm: float, *, margin_pixels: float = 2.0
) -> tuple[Region, ...]:
    """The named regions, with their pixels at least a margin away from every visible rim.

    Raises: ValueError for a margin that pixels of two materials would fit into.
    """
    if margin_pixels < _HALF_DIAGONAL:
        raise ValueError(f"margin {margin_pixels} must be at least {_HALF_DIAGONAL:.3f} pixels")
    x_mm, y_mm = _grid(size, pixel_mm)
    margin_mm = margin_pixels * pixel_mm
    free = np.ones((size, size), np.bool_)
    found = []
    for number in reversed(range(len(phantom.ellipses))):
        ellipse = phantom.ellipses[number]
        inside_mm = _inside_mm(ellipse, x_mm, y_mm)
        if ellipse.name:
            below = replace(phantom, ellipses=phantom.ellipses[:number])
            x, y = (np.array([value]) for value in ellipse.centre_mm)
            background_hu = float(hu_at(below, x, y)[0])
            found.append(Region(ellipse, background_hu, free & (inside_mm >= margin_mm)))
        free &= inside_mm <= -margin_mm
    return tuple(reversed(found))


def _grid(size: int, pixel_mm: float) -> tuple[Floats, Floats]:
    axis_mm = centres_mm(size, pixel_mm)
    return axis_mm[None, :], axis_mm[:, None]


def _to_circle(ellipse: Ellipse, x_mm: Floats, y_mm: Floats) -> tuple[Floats, Floats]:
    """A vector in the frame where the ellipse is the unit circle."""
    angle = np.deg2rad(ellipse.angle_degrees)
    first, second = ellipse.half_axes_mm
    along = (x_mm * np.cos(angle) + y_mm * np.sin(angle)) / first
    across = (y_mm * np.cos(angle) - x_mm * np.sin(angle)) / second
    return along, across


def _inside_mm(ellipse: Ellipse, x_mm: Floats, y_mm: Floats) -> Floats:
    """Positive inside; in size never more than the distance from the rim, and equal for a circle.

    The map to the unit circle stretches no length by more than 1 / the shorter half axis.
    """
    along, across = _to_circle(ellipse, x_mm - ellipse.centre_mm[0], y_mm - ellipse.centre_mm[1])
    return (1.0 - np.hypot(along, across)) * min(ellipse.half_axes_mm)


def _water_mm(phantom: Phantom, angles: Floats, positions_mm: Floats) -> Floats:
    """Line integrals of rays (R,)."""
    chords = [_chord_mm(ellipse, angles, positions_mm) for ellipse in phantom.ellipses]
    cuts = np.sort(np.stack([end for chord in chords for end in chord]), axis=0)
    middles = (cuts[1:] + cuts[:-1]) / 2
    water = np.zeros(middles.shape)
    for ellipse, (enters, leaves) in zip(phantom.ellipses, chords, strict=True):
        water[(middles > enters) & (middles < leaves)] = ellipse.hu / 1000.0 + 1.0
    lengths = np.diff(cuts, axis=0)
    return np.asarray((water * lengths).sum(axis=0))


def _chord_mm(ellipse: Ellipse, angles: Floats, positions_mm: Floats) -> tuple[Floats, Floats]:
    """Where rays enter and leave, along their direction; equal for those that miss."""
    x, y = ellipse.centre_mm
    cosine, sine = np.cos(angles), np.sin(angles)
    start = _to_circle(ellipse, positions_mm * cosine - x, positions_mm * sine - y)
    along = _to_circle(ellipse, -sine, cosine)
    square = along[0] ** 2 + along[1] ** 2
    middle = -(start[0] * along[0] + start[1] * along[1]) / square
    nearest = (start[0] * along[1] - start[1] * along[0]) ** 2 / square
    half = np.sqrt(np.clip(1.0 - nearest, 0.0, None) / square)
    return middle - half, middle + half


def water(diameter_mm: float = 300.0) -> Phantom:
    """A cylinder of water."""
    return Phantom(
        name="water",
        field_mm=diameter_mm + 50,
        ellipses=(disc("water", (0.0, 0.0), diameter_mm, 0.0),),
        window_hu=(-200.0, 200.0),
    )


# Diameters, and contrasts from 3 to 14 HU, are those of the CCT189 phantom (MITA); 15 mm, 30 HU and
# the places are ours. Contrast 0 is where an observer is shown that there is nothing.
LOW_CONTRASTS_HU = (0.0, 3.0, 5.0, 7.0, 14.0, 30.0)
_LOW_CONTRAST_RINGS_MM = {3.0: 45.0, 5.0: 60.0, 7.0: 76.0, 10.0: 94.0, 15.0: 116.0}


def low_contrast() -> Phantom:
    """Discs of 3 to 15 mm and 0 to 30 HU in water; those of one size lie at one radius."""
    discs = []
    for turn, (diameter_mm, radius_mm) in enumerate(_LOW_CONTRAST_RINGS_MM.items()):
        places = _ring(len(LOW_CONTRASTS_HU), radius_mm, 24.0 * turn)
        for contrast_hu, place_mm in zip(LOW_CONTRASTS_HU, places, strict=True):
            name = f"disc {diameter_mm:g} mm {contrast_hu:g} HU"
            discs.append(disc(name, place_mm, diameter_mm, contrast_hu))
    base = water(300.0)
    return replace(base, ellipses=(*base.ellipses, *discs), window_hu=(-40.0, 60.0))


def rods() -> Phantom:
    """Five rods of 25 mm in 200 mm of water, edges far apart, for the transfer function (TTF).

    Contrasts are ours: near polyethylene, acrylic and bone, and one between.
    """
    contrasts_hu = (-35.0, -100.0, 120.0, 340.0, 1000.0)
    places = _ring(len(contrasts_hu), 60.0, 0.0)
    inside = [
        disc(f"rod {hu:+g} HU", place_mm, 25.0, hu)
        for hu, place_mm in zip(contrasts_hu, places, strict=True)
    ]
    base = water(200.0)
    return replace(base, ellipses=(*base.ellipses, *inside), window_hu=(-200.0, 400.0))


# Middles of the nominal ranges in the Catphan manual, except lung and bone, which are ours; air
# lies in its range of -1046 to -986.
INSERTS_HU = {
    "air": -1000.0,
    "lung": -800.0,
    "PMP": -196.0,
    "LDPE": -104.0,
    "polystyrene": -47.0,
    "water insert": 0.0,
    "acrylic": 115.0,
    "Delrin": 365.0,
    "bone": 700.0,
    "Teflon": 1000.0,
}


def inserts() -> Phantom:
    """Ten inserts of 20 mm from air to bone in 200 mm of water, for HU linearity."""
    places = _ring(len(INSERTS_HU), 68.0, 0.0)
    inside = [
        disc(name, place_mm, 20.0, hu)
        for (name, hu), place_mm in zip(INSERTS_HU.items(), places, strict=True)
    ]
    base = water(200.0)
    return replace(base, ellipses=(*base.ellipses, *inside), window_hu=(-1000.0, 1000.0))


def _ring(count: int, radius_mm: float, first_degrees: float) -> Iterator[Vector]:
    """Evenly spread places on a circle, the first at `first_degrees` past the top."""
    for angle in np.deg2rad(np.arange(count) * 360.0 / count + first_degrees):
        yield float(radius_mm * np.sin(angle)), float(-radius_mm * np.cos(angle))


_BUILDERS: dict[str, Callable[[], Phantom]] = {
    "water": water,
    "water-200": lambda: water(200.0),
    "water-400": lambda: water(400.0),
    "thorax": thorax,
    "abdomen": abdomen,
    "shoulder": shoulder,
    "low-contrast": low_contrast,
    "rods": rods,
    "inserts": inserts,
}
