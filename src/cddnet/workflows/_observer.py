"""A model observer that looks at slices with and without inserted lesions."""

# Shapes: H row, W column, L place, N image, S side of a region.

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
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
from cddnet.physics.kernel import SOFT_KERNEL, Kernel
from cddnet.physics.lesion import Lesion, lesion_image
from cddnet.volume import SliceHU

LOW_DOSE, FULL_DOSE = "low dose", "full dose"

# Width of the observer's channels in diameters.
_CHANNEL_DIAMETERS = 1.0


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


class Scene(NamedTuple):
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


def observed(
    scenes: Iterable[Scene], options: DetectionOptions, where: str
) -> tuple[LesionRow, ...]:
    """Rows of each lesion over all scenes.  where: they were measured, in words.

    Raises: CddnetError for pixels of several sizes, or no scene at all.
    """
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
    scene: Scene, options: DetectionOptions, seen: defaultdict[tuple[Lesion, str], _Seen]
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


def _disc(side: int, diameter_px: float) -> NDArray[np.bool_]:
    centred = np.arange(side) - side // 2
    inside: NDArray[np.bool_] = np.hypot(centred[:, None], centred) <= diameter_px / 2
    return inside
