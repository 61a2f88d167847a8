"""Texture of what noise is left, false structures in water, clean images at full dose."""

# Shapes: H row, W column, N image.

from __future__ import annotations

from collections.abc import Sequence

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
from cddnet.metrics._body import body_mask
from cddnet.metrics.fidelity import rmse_hu
from cddnet.metrics.noise import (
    ensemble_noise,
    flat_corners,
    flat_regions,
    mean_frequency_per_mm,
    noise_power_spectrum,
    radial_power,
)
from cddnet.physics import phantom
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.dose import add_noise, rng_for
from cddnet.physics.kernel import SHARP_KERNEL, SOFT_KERNEL, Kernel
from cddnet.training.pairs import FullDoseSlice
from cddnet.volume import CTVolume

KERNELS = {"soft": SOFT_KERNEL, "sharp": SHARP_KERNEL}
_REGION = 33
SIDE, PIXEL_MM, _NOISES = 512, 0.8, 8
WATER_MM = 300.0
# Half of the contrast of the small lesion, as a disc of its size sees it.
FALSE_MM, FALSE_HU = 5.0, 15.0


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
    middle = slice(SIDE // 2 - 64, SIDE // 2 + 64)
    lines = []
    for kernel_name, kernel in KERNELS.items():
        means = {}
        for name, images in _stacks(kernel, methods).items():
            noise = ensemble_noise(images[:, middle, middle])
            spectrum = noise_power_spectrum(noise, PIXEL_MM).mean(axis=0)
            means[name] = float(mean_frequency_per_mm(radial_power(spectrum, PIXEL_MM)))
        values = {name: mean - means[FULL_DOSE] for name, mean in means.items()}
        over = f"water, {kernel_name} kernel, {_NOISES} noises"
        lines.append(Line("NPS mean frequency less full dose", "1/mm", values, over))
    return lines


def false_structures(methods: Methods) -> list[Line]:
    """What looks like a lesion in plain water: places where a disc sees half its contrast."""
    centre = (np.arange(SIDE) - (SIDE - 1) / 2) * PIXEL_MM
    inside = np.hypot(centre[:, None], centre) < WATER_MM / 2 - 10
    area_cm2 = inside.sum() * (PIXEL_MM / 10) ** 2 * _NOISES
    lines = []
    for kernel_name, kernel in KERNELS.items():
        values = {}
        for name, images in _stacks(kernel, methods).items():
            seen = [np.abs(disc_means(image)) > FALSE_HU for image in images]
            values[name] = sum(ndimage.label(s & inside)[1] for s in seen) / area_cm2 * 100
        over = f"water, {kernel_name} kernel, {area_cm2:.0f} cm2"
        lines.append(Line("false structures in 100 cm2", "", values, over))
    return lines


def disc_means(image: NDArray[np.floating]) -> NDArray[np.floating]:
    """What a disc of FALSE_MM sees around every pixel of an image (H, W)."""
    radius = FALSE_MM / 2 / PIXEL_MM
    axis = np.arange(-int(radius), int(radius) + 1)
    disc = (np.hypot(axis[:, None], axis) <= radius).astype(np.float32)
    return ndimage.convolve(image, disc / disc.sum())


def full_dose_phantoms(methods: Methods) -> list[Line]:
    """Root mean square error at full dose over the input's; below 1 is no harm."""
    lines = []
    geometry = SliceGeometry(PIXEL_MM)
    for name in ("abdomen", "thorax", "shoulder"):
        clean = phantom.render(phantom.build(name), SIDE, PIXEL_MM)
        for kernel_name, kernel in KERNELS.items():
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


def _mean_frequencies(slices: Sequence[FullDoseSlice], methods: Methods) -> dict[str, float]:
    """Of the power of all flat regions of a patient; without any, nothing."""
    power: dict[str, NDArray[np.float64]] = {}
    for source in slices:
        corners = flat_corners(source.hu, _REGION, step=_REGION // 3)
        pixel_mm = source.geometry.pixel_mm
        for name, image in images_of(source, methods).items() if len(corners) else ():
            spectrum = noise_power_spectrum(flat_regions(image, corners, _REGION), pixel_mm)
            radial = radial_power(spectrum.sum(axis=0), pixel_mm)
            power[name] = power.get(name, 0.0) + radial.power
    return {
        name: float(mean_frequency_per_mm(radial._replace(power=total)))
        for name, total in power.items()
    }


_WATER: dict[Kernel, tuple[Image, Image]] = {}


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


def water_slices(kernel: Kernel, dose: float, noises: int, *, named: str) -> Image:
    """The water phantom with noise, (N, H, W) in HU.  named: what else than `dose` seeds it."""
    clean = phantom.render(phantom.water(WATER_MM), SIDE, PIXEL_MM)
    geometry = SliceGeometry(PIXEL_MM)
    rngs = (rng_for(f"{named} {dose}", number, seed=0) for number in range(noises))
    return np.stack(
        [add_noise(clean, geometry, rng, dose_fraction=dose, kernel=kernel).hu for rng in rngs]
    )


def _water(kernel: Kernel) -> tuple[Image, Image]:
    """Water at low and at full dose, (N, H, W) each."""
    if kernel not in _WATER:
        low, full = (
            water_slices(kernel, dose, _NOISES, named="water") for dose in (DOSE_FRACTION, 1.0)
        )
        _WATER[kernel] = low, full
    return _WATER[kernel]
