"""Phantoms with known truth: ellipses in HU, their images, exact line integrals and regions.

x grows along the columns, towards the patient's left; y grows down the rows, towards the back. Both
are in mm from the rotation axis, which is the image's centre. An ellipse replaces what lies below.
"""

# Shapes: N image side.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.intensity.hu import AIR_HU

Vector = tuple[float, float]
Floats = NDArray[np.float64]

# What a pixel of any orientation reaches from its centre, in pixels.
_HALF_DIAGONAL = 2**-0.5


@dataclass(frozen=True, kw_only=True)
class Ellipse:
    """centre_mm (x, y); half_axes_mm along its own two directions, the first of which is turned by
    angle_degrees from x towards y; hu replaces what lies below.  name: of a truth region, "" where
    it is none.
    """

    centre_mm: Vector
    half_axes_mm: Vector
    angle_degrees: float = 0.0
    hu: float
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """field_mm: side of a square field of view that holds it with a margin.  ellipses: painted in
    order, upon air.  window_hu: (low, high) that shows it.
    """

    name: str
    field_mm: float
    ellipses: tuple[Ellipse, ...]
    window_hu: Vector


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


def disc(name: str, centre_mm: Vector, diameter_mm: float, hu: float) -> Ellipse:
    """A circle as a truth region."""
    radius_mm = diameter_mm / 2
    return Ellipse(centre_mm=centre_mm, half_axes_mm=(radius_mm, radius_mm), hu=hu, name=name)


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


# HU of the organs at 120 kVp in the portal-venous phase and all their shapes are ours, round values
# inside the usual ranges: lung -950 to -700, fat -130 to -70, soft tissue 30 to 75, organs with
# contrast agent 80 to 150, bone 180 to 1000.
_SKIN, _FAT, _MUSCLE = 20.0, -100.0, 55.0
_LUNG, _VESSEL, _BLOOD, _MYOCARDIUM = -850.0, 40.0, 150.0, 95.0
_LIVER, _SPLEEN, _KIDNEY, _WATERY = 110.0, 120.0, 160.0, 8.0
_SPONGY, _COMPACT, _CORD, _DISTANT_AIR = 220.0, 700.0, 35.0, -980.0


def _oval(
    hu: float, centre_mm: Vector, half_axes_mm: Vector, angle_degrees: float = 0.0, name: str = ""
) -> Ellipse:
    return Ellipse(
        centre_mm=centre_mm,
        half_axes_mm=half_axes_mm,
        angle_degrees=angle_degrees,
        hu=hu,
        name=name,
    )


def _both(ellipses: Sequence[Ellipse]) -> list[Ellipse]:
    """Ellipses of the patient's left with their mirror images on the right."""
    pairs = []
    for ellipse in ellipses:
        x, y = ellipse.centre_mm
        left = replace(ellipse, name=ellipse.name and f"left {ellipse.name}")
        right = replace(
            ellipse,
            centre_mm=(-x, y),
            angle_degrees=-ellipse.angle_degrees,
            name=ellipse.name and f"right {ellipse.name}",
        )
        pairs += [left, right]
    return pairs


def _layers(half_axes_mm: Vector, y_mm: float, fat_mm: float) -> list[Ellipse]:
    """Skin of 2 mm, fat, muscle."""
    first, second = half_axes_mm
    return [
        _oval(_SKIN, (0.0, y_mm), half_axes_mm),
        _oval(_FAT, (0.0, y_mm), (first - 2, second - 2), name="fat"),
        _oval(_MUSCLE, (0.0, y_mm), (first - 2 - fat_mm, second - 2 - fat_mm), name="muscle"),
    ]


def _bone(
    centre_mm: Vector, half_axes_mm: Vector, angle_degrees: float, shell_mm: float, name: str = ""
) -> list[Ellipse]:
    """A compact shell around spongy bone, which is what the name means."""
    inner_mm = (half_axes_mm[0] - shell_mm, half_axes_mm[1] - shell_mm)
    return [
        _oval(_COMPACT, centre_mm, half_axes_mm, angle_degrees),
        _oval(_SPONGY, centre_mm, inner_mm, angle_degrees, name),
    ]


def _vertebra(y_mm: float, half_axes_mm: Vector) -> list[Ellipse]:
    """Body with its front at the top, arch, canal; y_mm is the body's centre."""
    first, second = half_axes_mm
    canal_mm = y_mm + second + 8
    return [
        *_both(
            [
                _oval(_SPONGY, (22.0, canal_mm + 2), (17.0, 5.0), 18.0),
                _oval(_COMPACT, (9.0, canal_mm + 13), (10.0, 3.5), 125.0),
            ]
        ),
        _oval(_COMPACT, (0.0, canal_mm + 24), (4.0, 15.0)),
        _oval(_SPONGY, (0.0, canal_mm + 25), (2.0, 12.0)),
        _oval(_COMPACT, (0.0, canal_mm), (14.0, 12.0)),
        _oval(_COMPACT, (0.0, y_mm), half_axes_mm),
        _oval(_SPONGY, (0.0, y_mm), (first - 2, second - 2), name="vertebra"),
        _oval(_CORD, (0.0, canal_mm), (10.0, 8.5)),
    ]


def _ribs(centre_mm: Vector, half_axes_mm: Vector, degrees: Sequence[float]) -> list[Ellipse]:
    """Ribs cut obliquely, along an oval wall on the left, and their mirror images.

    degrees: places along the wall, from the patient's left towards the back.
    """
    left: list[Ellipse] = []
    for angle in np.deg2rad(np.asarray(degrees)):
        x = centre_mm[0] + half_axes_mm[0] * np.cos(angle)
        y = centre_mm[1] + half_axes_mm[1] * np.sin(angle)
        tangent = np.arctan2(half_axes_mm[1] * np.cos(angle), -half_axes_mm[0] * np.sin(angle))
        left += _bone((float(x), float(y)), (14.0, 5.0), float(np.rad2deg(tangent)), 1.5)
    return _both(left)


def _scaled(ellipses: Sequence[Ellipse], factor: float) -> Iterator[Ellipse]:
    for ellipse in ellipses:
        (x, y), (first, second) = ellipse.centre_mm, ellipse.half_axes_mm
        yield replace(
            ellipse,
            centre_mm=(factor * x, factor * y),
            half_axes_mm=(factor * first, factor * second),
        )


def thorax() -> Phantom:
    """Chest at the level of the heart."""
    vessels = [
        _oval(_VESSEL, place, (radius, radius * 0.8), 30.0)
        for place, radius in (
            ((-48.0, 8.0), 6.5),
            ((-62.0, -12.0), 4.0),
            ((-66.0, 26.0), 4.5),
            ((-84.0, 2.0), 3.0),
            ((-90.0, 40.0), 2.5),
            ((-80.0, -40.0), 2.5),
            ((-104.0, -14.0), 2.0),
            ((-112.0, 22.0), 1.8),
            ((-60.0, 58.0), 2.5),
            ((82.0, 34.0), 4.5),
            ((94.0, 10.0), 3.0),
            ((108.0, 34.0), 2.0),
            ((76.0, 60.0), 2.5),
            ((112.0, -14.0), 2.0),
            ((98.0, -38.0), 2.0),
        )
    ]
    ellipses = [
        *_layers((188.0, 124.0), 0.0, 14.0),
        *_both([_oval(_FAT, (60.0, -108.0), (58.0, 10.0), 14.0)]),
        # Fat in the armpit's direction, and the shoulder blade's tip with its muscles behind.
        *_both(
            [
                _oval(_FAT, (152.0, 6.0), (5.0, 46.0)),
                _oval(_FAT, (96.0, 88.0), (44.0, 3.0), -34.0),
            ]
        ),
        *_both(_bone((112.0, 88.0), (24.0, 4.0), -38.0, 1.2)),
        _oval(_FAT, (0.0, -2.0), (139.0, 92.0)),
        *_ribs((0.0, -2.0), (142.0, 93.0), (-62.0, -38.0, -14.0, 12.0, 36.0, 58.0)),
        *_bone((0.0, -95.0), (17.0, 6.0), 0.0, 1.5),
        _oval(_LUNG, (-72.0, 2.0), (60.0, 84.0), 6.0, "right lung"),
        _oval(_LUNG, (74.0, 4.0), (57.0, 83.0), -6.0, "left lung"),
        # The mediastinum: fat from the breastbone to the spine, with the heart towards the left.
        _oval(_FAT, (2.0, -40.0), (32.0, 52.0)),
        _oval(_MUSCLE, (0.0, 44.0), (26.0, 40.0)),
        _oval(_FAT, (20.0, -26.0), (68.0, 47.0), 32.0),
        _oval(_MYOCARDIUM, (21.0, -25.0), (64.0, 43.0), 32.0, "myocardium"),
        _oval(_BLOOD, (46.0, -6.0), (31.0, 19.0), 34.0, "left ventricle"),
        _oval(_BLOOD, (6.0, -44.0), (34.0, 14.0), 26.0, "right ventricle"),
        _oval(_BLOOD, (-22.0, -24.0), (13.0, 24.0), 20.0, "right atrium"),
        _oval(_BLOOD, (0.0, 12.0), (25.0, 13.0), 6.0, "left atrium"),
        _oval(_BLOOD, (22.0, 42.0), (12.5, 12.5), 0.0, "aorta"),
        _oval(_MUSCLE, (0.0, 34.0), (9.0, 6.0)),
        _oval(_DISTANT_AIR, (1.0, 34.0), (2.5, 1.5)),
        *vessels,
        *_vertebra(60.0, (19.0, 15.0)),
        disc("nodule 8 mm", (-96.0, -28.0), 8.0, 30.0),
        disc("nodule 5 mm", (96.0, 58.0), 5.0, 30.0),
    ]
    return Phantom(
        name="thorax", field_mm=420.0, ellipses=tuple(ellipses), window_hu=(-1000.0, 400.0)
    )


def abdomen() -> Phantom:
    """Belly at the level of liver, spleen and kidneys."""
    loops = [
        ((34.0, -62.0), (17.0, 12.0), 20.0),
        ((64.0, -48.0), (16.0, 13.0), -30.0),
        ((8.0, -70.0), (14.0, 10.0), 0.0),
        ((92.0, -30.0), (13.0, 19.0), 10.0),
        ((44.0, -28.0), (15.0, 11.0), 35.0),
        ((70.0, -12.0), (14.0, 10.0), 60.0),
    ]
    bowel = [_oval(45.0, place, axes, angle) for place, axes, angle in loops]
    filled = [_oval(15.0, place, (axes[0] - 4, axes[1] - 4), angle) for place, axes, angle in loops]
    ellipses = [
        *_layers((180.0, 126.0), 0.0, 18.0),
        _oval(_FAT, (0.0, -10.0), (146.0, 92.0), name="visceral fat"),
        *_ribs((0.0, -4.0), (150.0, 98.0), (-20.0, 2.0, 24.0, 46.0)),
        *_both(
            [
                _oval(_FAT, (38.0, 86.0), (42.0, 24.0), 12.0),
                _oval(_MUSCLE, (38.0, 88.0), (36.0, 20.0), 12.0, "back muscle"),
                _oval(_MUSCLE, (34.0, 54.0), (15.0, 19.0), -12.0),
            ]
        ),
        *bowel,
        *filled,
        _oval(_DISTANT_AIR, (64.0, -54.0), (9.0, 5.0), 0.0),
        _oval(_DISTANT_AIR, (92.0, -40.0), (7.0, 7.0)),
        _oval(_DISTANT_AIR, (8.0, -73.0), (8.0, 4.0)),
        # The liver of two ovals; the small one is its left lobe.
        _oval(_LIVER, (-26.0, -54.0), (52.0, 25.0), -12.0),
        _oval(_LIVER, (-88.0, -10.0), (52.0, 72.0), 12.0, "liver"),
        _oval(_FAT, (-32.0, -24.0), (12.0, 5.0), -30.0),
        _oval(_WATERY, (-50.0, -40.0), (11.0, 17.0), 25.0, "gallbladder"),
        _oval(_BLOOD, (-104.0, -34.0), (4.0, 12.0), 50.0),
        _oval(_BLOOD, (-76.0, 4.0), (11.0, 4.5), -30.0),
        _oval(_BLOOD, (-112.0, 18.0), (9.0, 3.0), 40.0),
        _oval(_SPLEEN, (110.0, 24.0), (22.0, 44.0), 18.0, "spleen"),
        _oval(95.0, (18.0, -14.0), (34.0, 9.0), 12.0, "pancreas"),
        *_both(
            [
                _oval(_KIDNEY, (68.0, 48.0), (24.0, 31.0), -25.0, "kidney"),
                _oval(_FAT, (57.0, 41.0), (11.0, 7.0), 30.0),
            ]
        ),
        _oval(_BLOOD, (10.0, 22.0), (11.0, 11.0), 0.0, "aorta"),
        _oval(_BLOOD - 20.0, (-18.0, 22.0), (14.0, 9.5), -10.0, "vena cava"),
        _oval(_BLOOD, (-6.0, -4.0), (6.0, 6.0)),
        _oval(_BLOOD, (14.0, 4.0), (4.0, 4.0)),
        *_vertebra(52.0, (23.0, 17.0)),
    ]
    lesions = (
        disc("cyst 12 mm", (-102.0, -7.5), 12.0, _WATERY),
        disc("lesion 10 mm", (-109.5, 36.0), 10.0, _LIVER - 40.0),
        disc("lesion 6 mm", (-79.5, -38.0), 6.0, _LIVER - 40.0),
    )
    # 340 x 238 mm, the size for which the scanner is calibrated.
    return Phantom(
        name="abdomen",
        field_mm=373.0,
        ellipses=(*_scaled(ellipses, 17 / 18), *lesions),
        window_hu=(-160.0, 240.0),
    )


def shoulder() -> Phantom:
    """Both shoulders at the humeral heads, 460 mm wide, 240 mm deep: rays from the side starve."""
    ellipses = [
        *_both([_oval(_SKIN, (152.0, 8.0), (78.0, 78.0))]),
        _oval(_SKIN, (0.0, 0.0), (190.0, 120.0)),
        *_both([_oval(_FAT, (152.0, 8.0), (76.0, 76.0), 0.0, "deltoid fat")]),
        _oval(_FAT, (0.0, 0.0), (188.0, 118.0)),
        # Deltoid and the muscles of the shoulder blade, then trapezius and breast muscles.
        *_both(
            [
                _oval(_MUSCLE, (162.0, 6.0), (56.0, 62.0), 0.0, "deltoid"),
                _oval(_FAT, (150.0, 6.0), (38.0, 44.0)),
                _oval(_MUSCLE, (98.0, 42.0), (58.0, 30.0), -20.0),
                _oval(_MUSCLE, (84.0, 68.0), (72.0, 26.0), -14.0, "back muscle"),
                _oval(_MUSCLE, (82.0, -62.0), (70.0, 24.0), 16.0, "breast muscle"),
            ]
        ),
        _oval(_MUSCLE, (0.0, 72.0), (70.0, 36.0)),
        _oval(_FAT, (0.0, 2.0), (88.0, 76.0)),
        _oval(_MUSCLE, (0.0, -2.0), (82.0, 70.0)),
        *_both(
            [
                *_bone((78.0, 0.0), (16.0, 5.0), 86.0, 1.5),
                *_bone((66.0, 40.0), (15.0, 5.0), 122.0, 1.5),
                *_bone((56.0, -50.0), (16.0, 5.0), 38.0, 1.5),
                _oval(_FAT, (96.0, -14.0), (14.0, 26.0), 20.0),
                _oval(_BLOOD, (98.0, -20.0), (5.5, 5.5), 0.0, "axillary artery"),
                _oval(_BLOOD - 20.0, (92.0, -34.0), (7.0, 5.0), 30.0),
                _oval(_LUNG, (44.0, 14.0), (27.0, 38.0), -10.0, "lung apex"),
                _oval(_VESSEL, (42.0, 6.0), (2.5, 2.5)),
                _oval(_VESSEL, (52.0, 26.0), (2.0, 1.5)),
                # Head of the humerus; the socket and blade of the shoulder blade; the collar bone.
                *_bone((156.0, 2.0), (24.0, 24.0), 0.0, 2.0, "humeral head"),
                *_bone((122.0, 14.0), (17.0, 5.5), 100.0, 1.5),
                *_bone((100.0, 44.0), (32.0, 4.5), -48.0, 1.2),
                *_bone((130.0, 34.0), (16.0, 4.5), -8.0, 1.2),
                *_bone((60.0, -76.0), (42.0, 7.0), -14.0, 2.0),
            ]
        ),
        # Between the lungs: vessels of neck and arms, windpipe, gullet.
        _oval(_FAT, (0.0, -20.0), (22.0, 34.0)),
        *_both(
            [
                _oval(_BLOOD, (22.0, -18.0), (5.0, 5.0), 0.0, "carotid"),
                _oval(_BLOOD - 20.0, (28.0, -42.0), (9.0, 6.0), 25.0),
            ]
        ),
        _oval(_MUSCLE, (0.0, -10.0), (12.0, 12.0)),
        _oval(_DISTANT_AIR, (0.0, -10.0), (9.5, 9.5), 0.0, "trachea"),
        _oval(_MUSCLE, (4.0, 9.0), (8.0, 5.5)),
        *_bone((0.0, -80.0), (13.0, 6.0), 0.0, 1.5),
        *_both([_oval(_MUSCLE, (20.0, 74.0), (17.0, 20.0), -10.0)]),
        *_vertebra(36.0, (17.0, 13.0)),
    ]
    return Phantom(
        name="shoulder",
        field_mm=500.0,
        ellipses=tuple(ellipses),
        window_hu=(-250.0, 450.0),
    )


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
