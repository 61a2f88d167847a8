"""HU of tissues, contrast and detectability of inserted lesions, gain at other doses."""

# Shapes: H row, W column, N image.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from _trust import (
    DOSE_FRACTION,
    FULL_DOSE,
    LOW_DOSE,
    WINDOW_HU,
    Image,
    Line,
    Methods,
    Patients,
    images_of,
)
from cddnet.errors import CddnetError
from cddnet.metrics._body import body_mask
from cddnet.metrics.bias import TISSUES_HU, tissue_means
from cddnet.metrics.fidelity import psnr
from cddnet.metrics.noise import (
    flat_corners,
)
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.lesion import lesion_image
from cddnet.training.pairs import FullDoseSlice
from cddnet.workflows._detection import detect_in_slices, detect_in_water
from cddnet.workflows._observer import DetectionOptions

_APART_MM = 24.0
_FEWEST_PIXELS = 2000
_DOSES = (0.10, 0.50)


def bias(patients: Patients, methods: Methods) -> list[Line]:
    """Mean of each tissue less that of the full dose: over all pixels, and the largest of a patient
    that shows at least _FEWEST_PIXELS of it.
    """
    names = [LOW_DOSE, *methods, FULL_DOSE]
    found = {
        patient: tissue_means(_stacked(slices, methods)) for patient, slices in patients.items()
    }
    lines = []
    for tissue in TISSUES_HU:
        own = [means[tissue] for means in found.values() if tissue in means]
        pixels = np.array([means.pixels for means in own])
        level = np.average([means.reference_hu for means in own], weights=pixels)
        unit, scale = ("%", 100 / level) if tissue == "bone" else ("HU", 1.0)
        each = scale * np.stack([means.bias_hu for means in own])
        mean = np.average(each, axis=0, weights=pixels)
        seen = each[pixels >= _FEWEST_PIXELS]
        over = f"{pixels.sum():,} pixels"
        lines.append(Line(f"bias, {tissue}", unit, _by_name(names, mean), over))
        if len(seen):
            worst = np.take_along_axis(seen, np.abs(seen).argmax(axis=0)[None], axis=0)[0]
            over = f"{len(seen)} patients"
            lines.append(Line(f"bias, {tissue}, largest", unit, _by_name(names, worst), over))
    return lines


def _stacked(
    slices: Sequence[FullDoseSlice], methods: Methods
) -> Iterator[tuple[Image, NDArray[np.float32]]]:
    for source in slices:
        yield source.hu, np.stack(list(images_of(source, methods).values()))


def _by_name(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))


def contrast(patients: Patients, methods: Methods) -> list[Line]:
    """Mean over the disc of inserted lesions, over what was inserted, all over the soft tissue."""
    found: dict[str, dict[str, list[float]]] = {}
    for slices in patients.values():
        own: dict[str, dict[str, list[float]]] = {}
        for source in slices:
            centres = _lesion_places(source)
            before = images_of(source, methods) if len(centres) else {}
            for lesion in DetectionOptions().lesions if len(centres) else ():
                pixel_mm = source.geometry.pixel_mm
                signal = lesion_image(_sides(source.hu), centres, lesion, pixel_mm=pixel_mm)
                discs = _discs(source.hu, centres, lesion.diameter_mm / pixel_mm)
                # The very same noise: so small a lesion does not change it.
                low = before[LOW_DOSE] + signal
                after = {LOW_DOSE: low, **{name: method(low) for name, method in methods.items()}}
                for name, image in after.items():
                    left = (image - before[name])[discs].sum() / signal[discs].sum()
                    own.setdefault(lesion.described, {}).setdefault(name, []).append(float(left))
        for described, values in own.items():
            for name, shares in values.items():
                found.setdefault(described, {}).setdefault(name, []).append(float(np.mean(shares)))
    lines = []
    for described, values in found.items():
        over = f"{len(values[LOW_DOSE])} patients"
        mean = {name: float(np.mean(shares)) for name, shares in values.items()}
        least = {name: min(shares) for name, shares in values.items()}
        lines.append(Line(f"contrast kept, {described}", "", mean, over))
        lines.append(Line(f"contrast kept, {described}, least", "", least, over))
    return lines


def detectability(patients: Patients, methods: Methods) -> list[Line]:
    """d' of the channelised Hotelling observer less that in the low dose, by series with enough
    flat places, with the interval over these, and in water.
    """
    options = DetectionOptions(dose_fraction=DOSE_FRACTION)
    found = {"water": detect_in_water(SliceGeometry(0.9), 281, methods, options)}
    for patient, slices in patients.items():
        with suppress(CddnetError):
            found[patient] = detect_in_slices(slices, methods, options)
    lines = []
    for over, rows in found.items():
        for lesion in dict.fromkeys(row.lesion for row in rows):
            own = {row.row: row for row in rows if row.lesion == lesion}
            about = f"{over}, low dose {own[LOW_DOSE].detection.d_prime.value:.2f}"
            title = f"d' less low dose, {lesion.described}"
            for end in ("value", "low", "high"):
                values = {name: float(getattr(row.change, end)) for name, row in own.items()}
                label = title if end == "value" else f"{title}, {end} end"
                lines.append(Line(label, "", values, about))
    return lines


def doses(patients: Patients, methods: Methods) -> list[Line]:
    """PSNR over the low dose at other doses: the mean of the patients, and the least."""
    lines = []
    for dose in _DOSES:
        gains: dict[str, list[float]] = {}
        for slices in patients.values():
            own: dict[str, list[float]] = {}
            for source in slices:
                mask = body_mask(source.hu)
                made = images_of(source, methods, dose)
                scores = {
                    name: psnr(source.hu, image, window_hu=WINDOW_HU, mask=mask)
                    for name, image in made.items()
                    if name != FULL_DOSE
                }
                for name, score in scores.items():
                    own.setdefault(name, []).append(score - scores[LOW_DOSE])
            for name, values in own.items():
                gains.setdefault(name, []).append(float(np.mean(values)))
        over = f"{len(gains[LOW_DOSE])} patients"
        title = f"PSNR over the input at {dose:.0%} of the dose"
        lines.append(Line(title, "dB", {n: float(np.mean(v)) for n, v in gains.items()}, over))
        lines.append(Line(f"{title}, least", "dB", {n: min(v) for n, v in gains.items()}, over))
    return lines


def _sides(hu: Image) -> tuple[int, int]:
    return hu.shape[0], hu.shape[1]


def _lesion_places(source: FullDoseSlice) -> NDArray[np.intp]:
    """Centres (N, 2) on a grid of _APART_MM, where the smoothed slice is soft tissue."""
    apart = int(_APART_MM / source.geometry.pixel_mm)
    side = 2 * (apart // 4) + 1
    places = flat_corners(source.hu, side, step=apart) + side // 2
    inside = (places >= apart) & (places < np.array(source.hu.shape) - apart)
    return np.asarray(places[inside.all(axis=1)])


def _discs(hu: Image, centres: NDArray[np.intp], diameter_px: float) -> NDArray[np.bool_]:
    points = np.ones(hu.shape, np.bool_)
    points[tuple(centres.T)] = False
    near: NDArray[np.bool_] = ndimage.distance_transform_edt(points) <= diameter_px / 2
    return near
