"""Noise, its texture and bias of CT series, as findings and curves of an evaluation."""

# Shapes: D slice, H row, W column, M row of the evaluation with its base first, N region,
# F frequency.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import CddnetError, GeometryError
from cddnet.metrics._body import body_mask
from cddnet.metrics.bias import TISSUES_HU, largest_local_mean_hu, linearity, tissue_means
from cddnet.metrics.noise import (
    detrended_std,
    flat_corners,
    flat_regions,
    global_noise_level_hu,
    noise_map_hu,
    noise_power_spectrum,
    radial_power,
    soft_tissue,
    window_pixels,
)
from cddnet.training.slices import filled
from cddnet.volume import CTVolume
from cddnet.workflows._evaluation import Physics
from cddnet.workflows._physics_figures import (
    FEWEST_PIXELS,
    FEWEST_REGIONS,
    Figure,
    Floats,
    Patients,
    Power,
    gather_power,
    power_curves,
)

REFERENCE = "full dose"
# Sides of regions, the first that a series has enough of; wide ones resolve low frequencies.
_SIDES = (32, 24, 16)
# Of the mode of the regions' noise: above it lie vessels and edges.
_QUIET = 1.25
# Readers notice it in the peak frequency, in the body (J. Med. Imaging 11:035501, 2024).
_NOTICED_PER_MM = 0.02
# Ours: 2 HU, but 5 in lung, and 1 % of the distance from air in bone.
_LIMITS_HU = dict.fromkeys(TISSUES_HU, 2.0) | {"lung": 5.0, "bone": 15.0}


def paired_findings(
    rows: Mapping[str, Sequence[CTVolume]],
    reference: Sequence[CTVolume] | None,
    *,
    patients: Sequence[str] | None = None,
) -> Physics:
    """Noise, its texture, and bias of rows against the full dose, or against the first row.

    Parameters: rows: name -> series, the input of the others first; reference: the full dose of
    the same slices, None where there is none; patients: whose each series is, one each by default.
    Flat regions and tissues are found in the reference, else in the first row, and are the same
    for all rows. Means over a patient's series, then over patients with a 95 % interval.
    Raises: GeometryError for series that differ in shape or pixels, CddnetError for rows of
    different length or none.
    """
    if not rows:
        raise CddnetError("no row to measure; give at least one.")
    base = next(iter(rows)) if reference is None else REFERENCE
    listed = dict(rows) if reference is None else {REFERENCE: reference, **rows}
    if REFERENCE in rows or len({len(series) for series in listed.values()}) != 1:
        found = ", ".join(f"{name}: {len(series)} series" for name, series in listed.items())
        raise CddnetError(
            f"each row needs as many series as the others, and another name than '{REFERENCE}'; "
            f"found {found}."
        )
    count = len(listed[base])
    whose = [str(number) for number in range(count)] if patients is None else list(patients)
    if len(whose) != count:
        raise CddnetError(f"{len(whose)} patients named for {count} series; name one for each.")
    gathered = Patients()
    powers: list[tuple[str, Power, float]] = []
    for number, patient in enumerate(whose):
        volumes = {name: series[number] for name, series in listed.items()}
        pixel_mm = _common_pixel_mm(volumes)
        _gather_bias(gathered, patient, volumes, base)
        _gather_change(gathered, patient, volumes, next(iter(rows)))
        _gather_level(gathered, patient, volumes, base)
        power = _flat_power(volumes, base)
        if power is not None:
            within = f"flat soft tissue of {base}, the same regions in every row"
            gather_power(gathered, patient, power, (base, within))
            powers.append((patient, power, pixel_mm))
    return Physics(
        findings=gathered.findings(),
        curves=power_curves(powers),
        statements=(
            *_measured_in(powers, base, count),
            *_texture_statements(gathered, base, tuple(rows)[1:]),
            *_bias_statements(gathered, base),
        ),
    )


def _common_pixel_mm(volumes: Mapping[str, CTVolume]) -> float:
    """Refuses series that are not of the same slices and pixels."""
    (first, basis), *others = volumes.items()
    _, row_mm, column_mm = basis.spacing_mm
    if abs(row_mm - column_mm) > 0.01 * column_mm:
        raise GeometryError(
            f"{first}: pixels are {row_mm:.3f} x {column_mm:.3f} mm; noise power and local means "
            "need square ones."
        )
    for name, volume in others:
        if volume.shape != basis.shape or not np.allclose(
            volume.spacing_mm, basis.spacing_mm, rtol=1e-3
        ):
            raise GeometryError(
                f"{name} has {volume.shape} voxels of {volume.spacing_mm} mm, {first} has "
                f"{basis.shape} of {basis.spacing_mm}; compare series of the same slices."
            )
    return column_mm


def _stacked(volumes: Mapping[str, CTVolume], base: str) -> Iterator[NDArray[np.float32]]:
    """Slices (M, H, W) of all rows, that of the base first."""
    order = [volumes[base], *(volume for name, volume in volumes.items() if name != base)]
    for index in range(order[0].shape[0]):
        yield np.stack([filled(volume, index) for volume in order])


def _names(volumes: Mapping[str, CTVolume], base: str) -> list[str]:
    return [base, *(name for name in volumes if name != base)]


def _gather_bias(
    gathered: Patients, patient: str, volumes: Mapping[str, CTVolume], base: str
) -> None:
    if len(volumes) == 1:
        return
    names = _names(volumes, base)[1:]
    means = tissue_means((images[0], images[1:]) for images in _stacked(volumes, base))
    means = {name: of for name, of in means.items() if of.pixels >= FEWEST_PIXELS}
    for tissue, of in means.items():
        figure = _bias_figure(tissue, base)
        gathered.add(patient, figure, dict(zip(names, of.bias_hu.tolist(), strict=True)))
    if len(means) < 2:
        return
    reference = np.array([of.reference_hu for of in means.values()])
    tests = np.stack([of.test_hu for of in means.values()], axis=1)
    lines = [linearity(reference, test) for test in tests]
    told: dict[tuple[str, str], Floats] = {
        ("linearity slope", ""): np.array([line.slope for line in lines]),
        ("linearity intercept", "HU"): np.array([line.intercept_hu for line in lines]),
        ("linearity R2", ""): np.array([line.r_squared for line in lines]),
    }
    for (name, unit), values in told.items():
        figure = Figure("bias", name, unit, f"means of tissues against {base}")
        gathered.add(patient, figure, dict(zip(names, values.tolist(), strict=True)))


def _bias_figure(tissue: str, base: str) -> Figure:
    low, high = TISSUES_HU[tissue]
    within = f"pixels of {low:g} to {high:g} HU in {base}, smoothed, 2 pixels from others"
    return Figure("bias", f"{tissue} bias", "HU", within)


def _gather_change(
    gathered: Patients, patient: str, volumes: Mapping[str, CTVolume], source: str
) -> None:
    """What each row changed of the first, the input, over 20 mm."""
    names = _names(volumes, source)[1:]
    pixel_mm = volumes[source].spacing_mm[2]
    largest: dict[str, float] = {}
    for images in _stacked(volumes, source):
        body = body_mask(images[0])
        for name, image in zip(names, images[1:], strict=True):
            mean = largest_local_mean_hu(image - images[0], pixel_mm, body)
            if mean is not None:
                largest[name] = max(mean, largest.get(name, 0.0), key=abs)
    largest.pop(REFERENCE, None)
    within = f"squares of 20 mm inside the body, less {source}, largest of all slices"
    gathered.add(patient, Figure("bias", "largest local change", "HU", within), largest)


def _gather_level(
    gathered: Patients, patient: str, volumes: Mapping[str, CTVolume], base: str
) -> None:
    pixel_mm = volumes[base].spacing_mm[2]
    side = window_pixels(pixel_mm)
    maps: list[Floats] = []
    for images in _stacked(volumes, base):
        tissue = soft_tissue(images[0], side)
        if tissue.any():
            maps.append(np.stack([noise_map_hu(image, pixel_mm)[tissue] for image in images]))
    if not maps:
        return
    deviations = np.concatenate(maps, axis=1)
    levels = {
        name: global_noise_level_hu(of)
        for name, of in zip(_names(volumes, base), deviations, strict=True)
    }
    within = f"mode over 9 mm windows of soft tissue of {base}; anatomy counts"
    gathered.add(patient, Figure("noise", "global noise level", "HU", within), levels)
    if levels[base] > 0:
        ratios = {name: level / levels[base] for name, level in levels.items() if name != base}
        figure = Figure("noise", f"noise level over {base}", "", within)
        gathered.add(patient, figure, ratios)


def _flat_power(volumes: Mapping[str, CTVolume], base: str) -> Power | None:
    """None where too little flat tissue is found."""
    for side in _SIDES:
        corners, deviations = [], []
        for index in range(volumes[base].shape[0]):
            hu = filled(volumes[base], index)
            corners.append(flat_corners(hu, side))
            deviations.append(detrended_std(flat_regions(hu, corners[-1], side)))
        if sum(map(len, corners)) < FEWEST_REGIONS:
            continue
        limit = _QUIET * global_noise_level_hu(np.concatenate(deviations))
        corners = [places[std <= limit] for places, std in zip(corners, deviations, strict=True)]
        if sum(map(len, corners)) >= FEWEST_REGIONS:
            return _power_at(corners, side, volumes, base)
    return None


def _power_at(
    corners: Sequence[NDArray[np.intp]], side: int, volumes: Mapping[str, CTVolume], base: str
) -> Power:
    """Power in the regions with `corners`, (N, 2) for each slice."""
    pixel_mm = volumes[base].spacing_mm[2]
    count = sum(map(len, corners))
    names = _names(volumes, base)
    # Of each row, then of each row less the base.
    spectra = np.zeros((2, len(names), side, side))
    variance = np.zeros((2, len(names)))
    for places, images in zip(corners, _stacked(volumes, base), strict=True):
        for kind, noisy in enumerate((images, images - images[0])):
            for row, image in enumerate(noisy):
                group = flat_regions(image, places, side)
                spectra[kind, row] += noise_power_spectrum(group, pixel_mm).sum(axis=0) / count
                variance[kind, row] += np.square(detrended_std(group)).sum() / count
    (radial, difference), (noise_hu, difference_hu) = (
        [
            {name: radial_power(of, pixel_mm) for name, of in zip(names, kind, strict=True)}
            for kind in spectra
        ],
        [dict(zip(names, kind.tolist(), strict=True)) for kind in np.sqrt(variance)],
    )
    for of in (difference, difference_hu):
        of.pop(base)
    return Power(radial, noise_hu, difference, difference_hu, count, side)


def _measured_in(
    powers: Sequence[tuple[str, Power, float]], base: str, series: int
) -> Iterator[str]:
    if len(powers) < series:
        yield (
            f"Noise power was not measured in {series - len(powers)} of {series} series: fewer "
            f"than {FEWEST_REGIONS} flat regions of soft tissue in {base}."
        )
    if powers:
        count = sum(power.regions for _, power, _ in powers)
        sides = sorted({power.side for _, power, _ in powers})
        yield (
            f"Noise power is that of {count} flat regions of "
            f"{' or '.join(f'{side} x {side}' for side in sides)} pixels, less a quadratic trend "
            "of each; anatomy in them counts, so it is an upper bound."
        )


def _texture_statements(gathered: Patients, base: str, methods: Sequence[str]) -> Iterator[str]:
    within = f"flat soft tissue of {base}, the same regions in every row"
    means = gathered.mean(Figure("noise", "mean frequency", "1/mm", within))
    for row in methods:
        if row not in means or base not in means:
            continue
        shift = means[row] - means[base]
        if abs(shift) > _NOTICED_PER_MM:
            yield (
                f"{row}: what flat tissue shows is {'coarser' if shift < 0 else 'finer'} than in "
                f"{base}, mean frequency {means[row]:.3f} against {means[base]:.3f} per mm; "
                f"readers notice {_NOTICED_PER_MM:g} per mm of peak frequency."
            )


def _bias_statements(gathered: Patients, base: str) -> Iterator[str]:
    for tissue, limit_hu in _LIMITS_HU.items():
        for row, bias_hu in gathered.mean(_bias_figure(tissue, base)).items():
            if abs(bias_hu) > limit_hu:
                yield (
                    f"{row}: {tissue} is shifted by {bias_hu:+.1f} HU against {base}, more than "
                    f"our limit of {limit_hu:g} HU."
                )
