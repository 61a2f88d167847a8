"""Detectability of inserted lesions before and after denoising, in real slices and in water."""

# Shapes: H row, W column, L place, N image, S side of a region.

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import CddnetError
from cddnet.metrics.detectability import (
    Detection,
    Estimate,
    Resampling,
    Trials,
    change,
    channelised_hotelling,
    resampling,
)
from cddnet.metrics.noise import detrended_std, flat_corners, flat_regions
from cddnet.physics import phantom
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.dose import SCANNER_FLOOR_HU, add_noise, insert_noise, rng_for
from cddnet.physics.kernel import SOFT_KERNEL, Kernel
from cddnet.physics.lesion import Lesion, lesion_image
from cddnet.training.pairs import Learnable
from cddnet.volume import SliceHU
from cddnet.workflows._evaluation import Finding, Interval

LOW_DOSE, FULL_DOSE = "low dose", "full dose"

Denoise = Callable[[SliceHU], SliceHU]

# Widths in diameters, of the observer's channels and of the regions. A blur carries what lies
# outside a region into it; with these a linear filter changes d' by a percent or two, and one as
# wide as the lesion by up to six.
_CHANNEL_DIAMETERS = 1.0
_REGION_IN_SLICES, _REGION_IN_WATER = 2.0, 4.0
# A gain of less than this share of d', that of a tenth more dose, counts as none.
_LEAST_GAIN = 0.05
_NOISY = 1.25
# Places in water lie on a ring, where the noise is the same by symmetry, and this far apart.
_RING_MM = 60.0
_APART = 1.05


@dataclass(frozen=True, kw_only=True)
class DetectionOptions:
    """dose_fraction: simulated from the full dose.  kernel: its noise and the lesions' blur.
    realisations: of the noise at each place.  most_places: slices are left out, evenly, above it.
    """

    lesions: tuple[Lesion, ...] = (
        Lesion(diameter_mm=5.0, contrast_hu=30.0),
        Lesion(diameter_mm=10.0, contrast_hu=12.0),
    )
    dose_fraction: float = 0.25
    kernel: Kernel = SOFT_KERNEL
    realisations: int = 1
    most_places: int = 300
    seed: int = 0


class LesionRow(NamedTuple):
    """row: low dose, a method or full dose.  change: of d' to the low dose, at the same places and
    noise.  recovery: contrast of the inserted lesion that is left, 1 for all of it.
    within: where it was measured, in words.
    """

    row: str
    lesion: Lesion
    detection: Detection
    change: Estimate
    recovery: Estimate
    within: str


class _Scene(NamedTuple):
    """One slice under two noises.  hu: (H, W) without lesions.  side: of the regions.
    centres: (L, 2).  place: (L,).
    noises: numbers, of the images with and of those without lesions.
    rows: the images of a slice with or without lesions under the noise of a number.
    """

    hu: SliceHU
    pixel_mm: float
    side: int
    centres: NDArray[np.intp]
    place: NDArray[np.intp]
    noises: tuple[int, int]
    rows: Callable[[SliceHU, int], dict[str, SliceHU]]


class _Seen(NamedTuple):
    present: list[NDArray[np.float32]]
    absent: list[NDArray[np.float32]]
    place: list[NDArray[np.intp]]
    recovery: list[NDArray[np.float64]]


def detect_in_slices(
    slices: Sequence[Learnable], methods: Mapping[str, Denoise], options: DetectionOptions
) -> tuple[LesionRow, ...]:
    """Lesions inserted into flat soft tissue of full-dose slices before the low dose is simulated.

    methods: name -> what it makes of a low-dose slice (H, W) in HU.
    Returns: for each lesion the low dose, the methods and the full dose.
    With and without lesion at the same places, with independent inserted noise; the full dose has
    one noise only, and its pairs share it. The interval is over places of these slices and says
    nothing on other patients.
    Raises: CddnetError where too few flat places are found.
    """
    width_mm = _REGION_IN_SLICES * max(lesion.diameter_mm for lesion in options.lesions)
    sides = [_side(width_mm, source.geometry.pixel_mm) for source in slices]
    centres = [flat_places(s.hu, side) for s, side in zip(slices, sides, strict=True)]
    step = max(1, math.ceil(sum(map(len, centres)) / options.most_places))
    chosen = list(zip(slices, centres, sides, strict=True))[::step]
    used = sum(len(found) > 0 for _, found, _ in chosen)
    firsts = np.cumsum([0, *(len(found) for _, found, _ in chosen)])
    scenes = (
        _Scene(
            hu=source.hu,
            pixel_mm=source.geometry.pixel_mm,
            side=side,
            centres=found,
            place=np.arange(first, first + len(found), dtype=np.intp),
            noises=(2 * realisation, 2 * realisation + 1),
            rows=partial(_rows_of_slice, source, methods, options),
        )
        for (source, found, side), first in zip(chosen, firsts[:-1], strict=True)
        for realisation in range(options.realisations)
        if len(found)
    )
    where = (
        f"lesions inserted before {options.dose_fraction:.0%} of the dose was simulated, "
        f"flat soft tissue in {used} of {len(slices)} slices; interval over places"
    )
    return _observed(scenes, options, where)


def detect_in_water(
    geometry: SliceGeometry, size: int, methods: Mapping[str, Denoise], options: DetectionOptions
) -> tuple[LesionRow, ...]:
    """As `detect_in_slices`, on a ring in a water phantom of 200 mm with new noise each time.

    Parameters: size of the square slice in pixels.
    The noise is that of bare water: these lesions change it by less than a percent.
    Raises: CddnetError where the slice does not hold the phantom.
    """
    made = phantom.build("water-200")
    if size * geometry.pixel_mm < made.field_mm:
        raise CddnetError(
            f"{size} pixels of {geometry.pixel_mm:g} mm do not hold the phantom; "
            f"{made.field_mm:g} mm are needed; choose larger pixels or more of them."
        )
    water = phantom.render(made, size, geometry.pixel_mm)
    width_mm = _REGION_IN_WATER * max(lesion.diameter_mm for lesion in options.lesions)
    side = _side(width_mm, geometry.pixel_mm)
    count = int(2 * np.pi * _RING_MM / (side * geometry.pixel_mm * _APART))
    angles = 2 * np.pi * np.arange(count) / count
    ring = np.stack([np.sin(angles), np.cos(angles)], axis=1) * _RING_MM / geometry.pixel_mm
    centres = np.rint(ring + (size - 1) / 2).astype(np.intp)

    # Both noises of a realisation at both doses are asked for once by each lesion.
    @lru_cache(maxsize=4)
    def noise(number: int, dose_fraction: float) -> SliceHU:
        rng = rng_for(f"water {dose_fraction}", number, options.seed)
        measured = add_noise(
            water, geometry, rng, dose_fraction=dose_fraction, kernel=options.kernel
        )
        return measured.hu - water

    def rows(hu: SliceHU, number: int) -> dict[str, SliceHU]:
        low = hu + noise(number, options.dose_fraction)
        denoised = {name: denoise(low) for name, denoise in methods.items()}
        return {LOW_DOSE: low, **denoised, FULL_DOSE: hu + noise(number, 1.0)}

    scenes = (
        _Scene(
            hu=water,
            pixel_mm=geometry.pixel_mm,
            side=side,
            centres=centres,
            place=np.arange(count, dtype=np.intp) + number * count,
            noises=(2 * number, 2 * number + 1),
            rows=rows,
        )
        for number in range(math.ceil(options.most_places / count))
    )
    where = (
        f"water phantom of 200 mm at {options.dose_fraction:.0%} of the dose, "
        f"{_RING_MM:g} mm from the axis; interval over noise"
    )
    return _observed(scenes, options, where)


def flat_places(hu: NDArray[np.floating], side: int) -> NDArray[np.intp]:
    """Centres (L, 2) of regions of odd `side` in flat soft tissue of a slice (H, W), none of which
    overlap; those noisier than 1.25 times their median hold vessels and edges and are left out.
    """
    corners = flat_corners(hu, side, step=max(1, side // 4))
    if not len(corners):
        return corners
    noise = detrended_std(flat_regions(hu, corners, side))
    taken: list[NDArray[np.intp]] = []
    free = np.ones(hu.shape, np.bool_)
    for corner in corners[noise <= _NOISY * np.median(noise)]:
        region = np.s_[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
        if free[region].all():
            free[region] = False
            taken.append(corner)
    return np.array(taken) + side // 2


def statement(
    name: str, psnr_gain_db: float, *, low_dose: Estimate, d_prime: Estimate, change: Estimate
) -> str | None:
    """What to say where PSNR rises over the low dose and d' is not seen to: None otherwise.

    Parameters: name of the row and its lesion; d' of both; change: d' less that of the low dose,
    with its own interval, which is the narrower where both were seen under the same noise.
    A rise counts where its interval lies above 5 % of d'; a fall that is certain is called one.
    """
    if not psnr_gain_db > 0 or change.low > _LEAST_GAIN * low_dose.value:
        return None
    verdict = "down" if change.high < 0 else "not"
    return (
        f"PSNR up, detectability {verdict}: {name} gains {psnr_gain_db:.2f} dB over the low dose, "
        f"d' is {_text(d_prime)} against {_text(low_dose)} (change {_text(change, sign='+')})"
    )


def statements(rows: Sequence[LesionRow], psnr_gain_db: Mapping[str, float]) -> tuple[str, ...]:
    """A sentence for each row and lesion that deserves one; psnr_gain_db: row -> gain."""
    low = {row.lesion: row.detection.d_prime for row in rows if row.row == LOW_DOSE}
    said = (
        statement(
            f"{row.row}, {row.lesion.described}",
            psnr_gain_db[row.row],
            low_dose=low[row.lesion],
            d_prime=row.detection.d_prime,
            change=row.change,
        )
        for row in rows
        if row.row in psnr_gain_db and row.row != LOW_DOSE
    )
    return tuple(text for text in said if text)


def findings(rows: Sequence[LesionRow]) -> tuple[Finding, ...]:
    """Figures of the rows for an evaluation; their intervals are those named in `within`."""
    return tuple(
        Finding(
            row=row.row,
            family="detectability",
            name=f"{name}, {row.lesion.described}",
            value=Interval(value=value.value, low=value.low, high=value.high),
            unit="",
            within=row.within,
        )
        for row in rows
        for name, value in (
            ("d' (LG-CHO)", row.detection.d_prime),
            ("d' over low dose (LG-CHO)", row.change),
            ("AUC (LG-CHO)", row.detection.auc),
            ("contrast recovery", row.recovery),
        )
        if row.row != LOW_DOSE or name != "d' over low dose (LG-CHO)"
    )


def _rows_of_slice(
    source: Learnable,
    methods: Mapping[str, Denoise],
    options: DetectionOptions,
    hu: SliceHU,
    number: int,
) -> dict[str, SliceHU]:
    rng = rng_for(source.series_uid, source.slice_index, options.seed * 10**6 + number)
    inserted = insert_noise(
        hu, source.geometry, rng, dose_fraction=options.dose_fraction, kernel=options.kernel
    )
    low = np.maximum(inserted.hu, np.float32(SCANNER_FLOOR_HU))
    return {
        LOW_DOSE: low,
        **{name: denoise(low) for name, denoise in methods.items()},
        FULL_DOSE: hu,
    }


def _observed(
    scenes: Iterable[_Scene], options: DetectionOptions, where: str
) -> tuple[LesionRow, ...]:
    seen: defaultdict[tuple[Lesion, str], _Seen] = defaultdict(lambda: _Seen([], [], [], []))
    pixel_mm = 0.0
    for scene in scenes:
        pixel_mm = pixel_mm or scene.pixel_mm
        if scene.pixel_mm != pixel_mm:
            raise CddnetError(
                f"slices with pixels of {pixel_mm:g} and {scene.pixel_mm:g} mm cannot share an "
                "observer; give slices of one series."
            )
        _look(scene, options, seen)
    if not seen:
        raise CddnetError(
            "no flat place of soft tissue is large enough for the lesions; choose other slices."
        )
    first = next(iter(seen.values()))
    samples = resampling(np.concatenate(first.place), np.random.default_rng(options.seed))
    return tuple(
        row
        for lesion in options.lesions
        for row in _rows_of_lesion(lesion, seen, samples, (pixel_mm, where))
    )


def _look(
    scene: _Scene, options: DetectionOptions, seen: defaultdict[tuple[Lesion, str], _Seen]
) -> None:
    """Add what one slice shows to the rows of each lesion."""
    with_number, without_number = scene.noises
    absent, same_noise = (scene.rows(scene.hu, n) for n in (without_number, with_number))

    def regions(image: SliceHU) -> NDArray[np.float32]:
        half = scene.side // 2
        return np.stack(
            [image[r - half : r + half + 1, c - half : c + half + 1] for r, c in scene.centres]
        )

    for lesion in options.lesions:
        signal = lesion_image(
            (scene.hu.shape[0], scene.hu.shape[1]),
            scene.centres,
            lesion,
            pixel_mm=scene.pixel_mm,
            kernel=options.kernel,
        )
        disc = _disc(scene.side, lesion.diameter_mm / scene.pixel_mm)
        inserted = regions(signal)[:, disc].mean(axis=1, dtype=np.float64)
        for row, present in scene.rows(scene.hu + signal, with_number).items():
            left = regions(present - same_noise[row])[:, disc].mean(axis=1, dtype=np.float64)
            into = seen[lesion, row]
            into.present.append(regions(present))
            into.absent.append(regions(absent[row]))
            into.place.append(scene.place)
            into.recovery.append(left / inserted)


def _rows_of_lesion(
    lesion: Lesion,
    seen: Mapping[tuple[Lesion, str], _Seen],
    samples: Resampling,
    measured: tuple[float, str],
) -> Iterator[LesionRow]:
    pixel_mm, where = measured
    width_px = _CHANNEL_DIAMETERS * lesion.diameter_mm / pixel_mm
    low_dose: Detection | None = None
    for (of, row), found in seen.items():
        if of != lesion:
            continue
        place = np.concatenate(found.place)
        trials = Trials(np.concatenate(found.present), np.concatenate(found.absent), place)
        detection = channelised_hotelling(trials, width_px, samples)
        low_dose = low_dose or detection
        yield LesionRow(
            row=row,
            lesion=lesion,
            detection=detection,
            change=change(detection, low_dose),
            recovery=_mean(np.concatenate(found.recovery), place),
            within=f"{detection.within}, {where}",
        )


def _mean(values: NDArray[np.float64], place: NDArray[np.intp]) -> Estimate:
    """Mean over places with the interval of a mean of independent places."""
    _, number = np.unique(place, return_inverse=True)
    means = np.bincount(number, values) / np.bincount(number)
    reach = 1.959964 * float(means.std(ddof=1)) / math.sqrt(len(means))
    return Estimate(float(means.mean()), float(means.mean()) - reach, float(means.mean()) + reach)


def _side(width_mm: float, pixel_mm: float) -> int:
    """Odd number of pixels that is at least so wide."""
    return 2 * math.ceil(width_mm / (2 * pixel_mm)) + 1


def _disc(side: int, diameter_px: float) -> NDArray[np.bool_]:
    centred = np.arange(side) - side // 2
    inside: NDArray[np.bool_] = np.hypot(centred[:, None], centred) <= diameter_px / 2
    return inside


def _text(estimate: Estimate, *, sign: str = "") -> str:
    value, low, high = (format(number, f"{sign}.2f") for number in estimate)
    return f"{value} [{low}, {high}]"
