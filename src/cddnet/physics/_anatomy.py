"""Phantoms of a patient: thorax, abdomen and shoulder.  x, y: as in `physics.phantom`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from cddnet.physics._ellipses import Ellipse, Phantom, Vector, disc

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
