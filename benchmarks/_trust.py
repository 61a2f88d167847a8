"""Measures of trust: what methods do to texture, HU, lesions, clean images and plain water.

A method makes a slice (H, W) in HU of another. Each function gives Lines, one figure a method; the
input and the reference are methods of their own, named LOW_DOSE and FULL_DOSE.
"""

# Shapes: H row, W column, N image.

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddnet.errors import CddnetError
from cddnet.metrics._body import body_mask
from cddnet.metrics.bias import tissue_means
from cddnet.metrics.fidelity import psnr, rmse_hu
from cddnet.metrics.noise import (
    ensemble_noise,
    flat_corners,
    flat_regions,
    mean_frequency_per_mm,
    noise_power_spectrum,
    radial_power,
)
from cddnet.metrics.structure import residual_structure
from cddnet.physics import phantom
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.dose import add_noise, rng_for
from cddnet.physics.kernel import SHARP_KERNEL, SOFT_KERNEL, Kernel
from cddnet.physics.lesion import lesion_image
from cddnet.training.pairs import FullDoseSlice, calibrated_low_dose
from cddnet.volume import CTVolume
from cddnet.workflows._detection import (
    DetectionOptions,
    detect_in_slices,
    detect_in_water,
)

Image = NDArray[np.float32]
Method = Callable[[Image], Image]
Methods = Mapping[str, Method]
Patients = Mapping[str, Sequence[FullDoseSlice]]

LOW_DOSE, FULL_DOSE = "low dose", "full dose"
WINDOW_HU = (-160.0, 240.0)
DOSE_FRACTION = 0.25
_DOSES = (0.10, 0.50)
_KERNELS = {"soft": SOFT_KERNEL, "sharp": SHARP_KERNEL}
_REGION = 33
_SIDE, _PIXEL_MM, _NOISES = 512, 0.8, 8
_WATER_MM = 300.0
# Half of the contrast of the small lesion, as a disc of its size sees it.
_FALSE_MM, _FALSE_HU = 5.0, 15.0
_APART_MM = 24.0


class Line(NamedTuple):
    """One measure.  values: method -> figure.  over: what it was measured on."""

    measure: str
    unit: str
    values: dict[str, float]
    over: str


def texture(patients: Patients, methods: Methods) -> list[Line]:
    """Mean frequency of the noise power in flat soft tissue, less that of the full dose."""
    shifts: dict[str, list[float]] = {}
    for slices in patients.values():
        means = _mean_frequencies(slices, methods)
        for name, mean in means.items():
            shifts.setdefault(name, []).append(mean - means[FULL_DOSE])
    over = f"flat tissue, {len(shifts[FULL_DOSE])} patients"
    title = "NPS mean frequency less full dose"
    return [
        Line(title, "1/mm", {name: float(np.mean(v)) for name, v in shifts.items()}, over),
        Line(f"{title}, largest", "1/mm", {n: max(v, key=abs) for n, v in shifts.items()}, over),
    ]


def texture_in_water(methods: Methods) -> list[Line]:
    """The same from repeated noise in the middle of a water phantom."""
    middle = slice(_SIDE // 2 - 64, _SIDE // 2 + 64)
    lines = []
    for kernel_name, kernel in _KERNELS.items():
        means = {}
        for name, images in _stacks(kernel, methods).items():
            noise = ensemble_noise(images[:, middle, middle])
            spectrum = noise_power_spectrum(noise, _PIXEL_MM).mean(axis=0)
            means[name] = float(mean_frequency_per_mm(radial_power(spectrum, _PIXEL_MM)))
        values = {name: mean - means[FULL_DOSE] for name, mean in means.items()}
        over = f"water, {kernel_name} kernel, {_NOISES} noises"
        lines.append(Line("NPS mean frequency less full dose", "1/mm", values, over))
    return lines


def false_structures(methods: Methods) -> list[Line]:
    """What looks like a lesion in plain water: places where a disc sees half its contrast."""
    radius = _FALSE_MM / 2 / _PIXEL_MM
    axis = np.arange(-int(radius), int(radius) + 1)
    disc = (np.hypot(axis[:, None], axis) <= radius).astype(np.float32)
    disc /= disc.sum()
    centre = (np.arange(_SIDE) - (_SIDE - 1) / 2) * _PIXEL_MM
    inside = np.hypot(centre[:, None], centre) < _WATER_MM / 2 - 10
    area_cm2 = inside.sum() * (_PIXEL_MM / 10) ** 2 * _NOISES
    lines = []
    for kernel_name, kernel in _KERNELS.items():
        values = {}
        for name, images in _stacks(kernel, methods).items():
            seen = [np.abs(ndimage.convolve(image, disc)) > _FALSE_HU for image in images]
            values[name] = sum(ndimage.label(s & inside)[1] for s in seen) / area_cm2 * 100
        over = f"water, {kernel_name} kernel, {area_cm2:.0f} cm2"
        lines.append(Line("false structures in 100 cm2", "", values, over))
    return lines


def bias(patients: Patients, methods: Methods) -> list[Line]:
    """Mean of each tissue less that of the full dose: over the patients, and the largest of one."""
    found: dict[str, dict[str, list[float]]] = {}
    for slices in patients.values():
        names: list[str] = []

        def images(slices: Sequence[FullDoseSlice] = slices, names: list[str] = names) -> Iterable:
            for source in slices:
                made = _images(source, methods)
                names[:] = made
                yield source.hu, np.stack(list(made.values()))

        for tissue, means in tissue_means(images()).items():
            share = 100 / abs(means.reference_hu) if tissue == "bone" else 1.0
            for name, value in zip(names, means.bias_hu, strict=True):
                found.setdefault(tissue, {}).setdefault(name, []).append(float(value) * share)
    lines = []
    for tissue, by_name in found.items():
        unit = "%" if tissue == "bone" else "HU"
        over = f"{len(by_name[FULL_DOSE])} patients"
        mean = {name: float(np.mean(values)) for name, values in by_name.items()}
        worst = {name: max(values, key=abs) for name, values in by_name.items()}
        lines.append(Line(f"bias, {tissue}", unit, mean, over))
        lines.append(Line(f"bias, {tissue}, largest", unit, worst, over))
    return lines


def contrast(patients: Patients, methods: Methods) -> list[Line]:
    """Mean over the disc of inserted lesions, over what was inserted, all over the soft tissue."""
    found: dict[str, dict[str, list[float]]] = {}
    for slices in patients.values():
        own: dict[str, dict[str, list[float]]] = {}
        for source in slices:
            centres = _lesion_places(source)
            before = _images(source, methods) if len(centres) else {}
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


def _sides(hu: Image) -> tuple[int, int]:
    return hu.shape[0], hu.shape[1]


def _lesion_places(source: FullDoseSlice) -> NDArray[np.intp]:
    """Centres (N, 2) on a grid of _APART_MM, where the smoothed slice is soft tissue."""
    apart = int(_APART_MM / source.geometry.pixel_mm)
    return flat_corners(source.hu, 2 * (apart // 4) + 1, step=apart) + apart // 4


def _discs(hu: Image, centres: NDArray[np.intp], diameter_px: float) -> NDArray[np.bool_]:
    points = np.ones(hu.shape, np.bool_)
    points[tuple(centres.T)] = False
    near: NDArray[np.bool_] = ndimage.distance_transform_edt(points) <= diameter_px / 2
    return near


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
                made = _images(source, methods, dose)
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


def full_dose_phantoms(methods: Methods) -> list[Line]:
    """Root mean square error at full dose over the input's; below 1 is no harm."""
    lines = []
    geometry = SliceGeometry(_PIXEL_MM)
    for name in ("abdomen", "thorax", "shoulder"):
        clean = phantom.render(phantom.build(name), _SIDE, _PIXEL_MM)
        for kernel_name, kernel in _KERNELS.items():
            rng = rng_for(f"full dose {name}", 0, seed=0)
            noisy = add_noise(clean, geometry, rng, dose_fraction=1.0, kernel=kernel).hu
            values = _error_ratios(clean, noisy, methods)
            lines.append(
                Line("RMSE over input at full dose", "", values, f"{name}, {kernel_name} kernel")
            )
    return lines


def full_dose_slabs(volumes: Sequence[CTVolume], methods: Methods) -> list[Line]:
    """The same on real slices, against the mean of both neighbours: their noise is their own."""
    ratios: dict[str, list[float]] = {}
    for volume in volumes:
        gaps = np.diff(volume.slice_positions_mm())
        for index in range(1, volume.shape[0] - 1):
            if max(abs(gaps[index - 1 : index + 1] - volume.spacing_mm[0])) > 0.01:
                continue
            before, middle, after = (volume.read_slice(index + step) for step in (-1, 0, 1))
            reference = ((before + after) / 2).astype(np.float32)
            for name, value in _error_ratios(reference, middle, methods).items():
                ratios.setdefault(name, []).append(value)
    if not ratios:
        return []
    over = f"{len(next(iter(ratios.values())))} slices, neighbours as reference"
    return [
        Line(
            "RMSE over input at full dose",
            "",
            {n: float(np.mean(v)) for n, v in ratios.items()},
            over,
        ),
        Line(
            "RMSE over input at full dose, worst", "", {n: max(v) for n, v in ratios.items()}, over
        ),
    ]


def structure(patients: Patients, methods: Methods) -> list[Line]:
    """Correlation of what was removed with the edges of the full dose; 0 for pure noise."""
    found: dict[str, list[float]] = {}
    for slices in patients.values():
        source = slices[len(slices) // 2]
        made, mask = _images(source, methods), body_mask(source.hu)
        for name in methods:
            result = residual_structure(source.hu, made[LOW_DOSE], made[name], mask=mask)
            found.setdefault(name, []).append(result.correlation)
    values = {name: float(np.mean(correlations)) for name, correlations in found.items()}
    return [Line("structure of the residual", "", values, f"{len(patients)} slices")]


def consistency(patients: Patients, methods: Methods) -> list[Line]:
    """Root mean square change of the output, over the noise removed, when the input is mirrored or
    moved by half a pixel and the output brought back."""
    moves: dict[str, tuple[Method, Method]] = {
        "mirrored": (_mirrored, _mirrored),
        "moved by half a pixel": (lambda hu: _moved(hu, 0.5), lambda hu: _moved(hu, -0.5)),
    }
    lines = []
    for title, (move, back) in moves.items():
        found: dict[str, list[float]] = {}
        for slices in patients.values():
            source = slices[len(slices) // 2]
            low, mask = calibrated_low_dose(source, DOSE_FRACTION), body_mask(source.hu)
            # Interpolation is no part of the answer: both ways start from what it leaves.
            start = back(move(low))
            for name, method in methods.items():
                straight, around = method(start), back(method(move(low)))
                removed = np.sqrt(np.mean((straight - start)[mask] ** 2))
                changed = np.sqrt(np.mean((straight - around)[mask] ** 2))
                found.setdefault(name, []).append(float(changed / removed))
        values = {name: float(np.mean(v)) for name, v in found.items()}
        lines.append(
            Line(f"change where {title}, of what is removed", "", values, f"{len(patients)} slices")
        )
    return lines


def between_slices(patients: Patients, methods: Methods) -> list[Line]:
    """Correlation between neighbours of what was removed: 0, for inserted noise is new in each."""
    found: dict[str, list[float]] = {}
    for slices in patients.values():
        for one, other in pairwise(slices):
            if one.series_uid != other.series_uid or one.hu.shape != other.hu.shape:
                continue
            mask = body_mask(one.hu) & body_mask(other.hu)
            lows = [calibrated_low_dose(source, DOSE_FRACTION) for source in (one, other)]
            for name, method in methods.items():
                removed = [(low - method(low))[mask] for low in lows]
                found.setdefault(name, []).append(float(np.corrcoef(*removed)[0, 1]))
    if not found:
        return []
    count = len(next(iter(found.values())))
    values = {name: float(np.mean(v)) for name, v in found.items()}
    return [Line("correlation of what is removed between neighbours", "", values, f"{count} pairs")]


def _images(
    source: FullDoseSlice, methods: Methods, dose: float = DOSE_FRACTION
) -> dict[str, Image]:
    low = calibrated_low_dose(source, dose)
    made = {name: method(low) for name, method in methods.items()}
    return {LOW_DOSE: low, **made, FULL_DOSE: source.hu}


def _mean_frequencies(slices: Sequence[FullDoseSlice], methods: Methods) -> dict[str, float]:
    """Of the power of all flat regions of a patient; without any, nothing."""
    power: dict[str, NDArray[np.float64]] = {}
    for source in slices:
        corners = flat_corners(source.hu, _REGION, step=_REGION // 3)
        pixel_mm = source.geometry.pixel_mm
        for name, image in _images(source, methods).items() if len(corners) else ():
            spectrum = noise_power_spectrum(flat_regions(image, corners, _REGION), pixel_mm)
            radial = radial_power(spectrum.sum(axis=0), pixel_mm)
            power[name] = power.get(name, 0.0) + radial.power
    return {
        name: float(mean_frequency_per_mm(radial._replace(power=total)))
        for name, total in power.items()
    }


_WATER: dict[Kernel, tuple[Image, Image]] = {}


def _water(kernel: Kernel) -> tuple[Image, Image]:
    """Water at low and at full dose, (N, H, W) each."""
    if kernel not in _WATER:
        clean = phantom.render(phantom.water(_WATER_MM), _SIDE, _PIXEL_MM)
        _WATER[kernel] = tuple(
            np.stack(
                [
                    add_noise(
                        clean,
                        SliceGeometry(_PIXEL_MM),
                        rng_for(f"water {dose}", number, seed=0),
                        dose_fraction=dose,
                        kernel=kernel,
                    ).hu
                    for number in range(_NOISES)
                ]
            )
            for dose in (DOSE_FRACTION, 1.0)
        )
    return _WATER[kernel]


def _stacks(kernel: Kernel, methods: Methods) -> dict[str, Image]:
    low, full = _water(kernel)
    made = {name: np.stack([method(image) for image in low]) for name, method in methods.items()}
    return {LOW_DOSE: low, **made, FULL_DOSE: full}


def _error_ratios(reference: Image, noisy: Image, methods: Methods) -> dict[str, float]:
    mask = body_mask(reference)

    def error(image: Image) -> float:
        return rmse_hu(reference, image, window_hu=WINDOW_HU, mask=mask)

    before = error(noisy)
    return {name: error(method(noisy)) / before for name, method in methods.items()}


def _mirrored(hu: Image) -> Image:
    return np.ascontiguousarray(hu[:, ::-1])


def _moved(hu: Image, pixels: float) -> Image:
    """By its spectrum, both ways, without loss but at the Nyquist frequency."""
    moved = ndimage.fourier_shift(np.fft.fft2(hu), (pixels, pixels))
    return np.fft.ifft2(moved).real.astype(np.float32)
