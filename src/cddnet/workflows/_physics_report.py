"""Noise, resolution, bias and uniformity of CT series, as findings and curves of an evaluation."""

# Shapes: D slice, H row, W column, M row of the evaluation with its base first, N region,
# F frequency.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ValidationError
from scipy import ndimage

from cddnet.errors import CddnetError, FormatError, GeometryError
from cddnet.metrics._body import body_mask
from cddnet.metrics.bias import TISSUES_HU, largest_local_mean_hu, linearity, tissue_means
from cddnet.metrics.detectability import d_prime_npwe, disc_task, eye_filter
from cddnet.metrics.noise import (
    BANDS_PER_MM,
    RadialPower,
    band_ratios,
    corners_inside,
    cut_regions,
    detrended_std,
    ensemble_noise,
    flat_corners,
    flat_regions,
    global_noise_level_hu,
    mean_frequency_per_mm,
    noise_map_hu,
    noise_power_spectrum,
    peak_frequency_per_mm,
    radial_power,
    soft_tissue,
    window_pixels,
)
from cddnet.metrics.resolution import (
    ENOUGH_CNR,
    Rod,
    TaskTransfer,
    f50_error_per_mm,
    task_transfer,
)
from cddnet.metrics.statistics import bootstrap_interval
from cddnet.metrics.uniformity import Cylinder, uniformity
from cddnet.training.slices import filled
from cddnet.volume import CTVolume
from cddnet.workflows._evaluation import Curve, Finding, Interval, Physics

REFERENCE = "full dose"

Family = Literal["noise", "resolution", "bias", "detectability", "structure", "uniformity"]
Floats = NDArray[np.float64]

# Sides of regions, the first that a series has enough of; wide ones resolve low frequencies.
_SIDES = (32, 24, 16)
_PHANTOM_SIDES = (64, 48, 32, 24, 16)
_FEWEST_REGIONS = 12
# Of the mode of the regions' noise: above it lie vessels and edges.
_QUIET = 1.25

_FEWEST_PIXELS = 50
_ROD_DIAMETER_MM = 10.0
_ROD_CONTRAST_HU = 30.0
# Of an edge, beyond the two pixels that labels keep from it.
_BLUR_MM = 2.0
# Clipping at the lower end of stored values biases the mean of air.
_AIR_HU = -950.0

# Readers notice it in the peak frequency, in the body (J. Med. Imaging 11:035501, 2024).
_NOTICED_PER_MM = 0.02
# Ours: 2 HU, but 5 in lung, and 1 % of the distance from air in bone.
_LIMITS_HU = dict.fromkeys(TISSUES_HU, 2.0) | {"lung": 5.0, "bone": 15.0}
# Diameter in mm and contrast in HU of the tasks, and side of their frequency grid.
_TASKS = ((5.0, 30.0), (10.0, 12.0))
_TASK_SIDE = 128

_RESAMPLING_SEED = 20150205


class _Figure(NamedTuple):
    family: Family
    name: str
    unit: str
    within: str


class _Power(NamedTuple):
    """Noise power of each row in the regions that they share, and its root over all frequencies.

    difference: of each row less the base, where anatomy cancels; empty where slices are repeats.
    """

    radial: dict[str, RadialPower]
    noise_hu: dict[str, float]
    difference: dict[str, RadialPower]
    difference_hu: dict[str, float]
    regions: int
    side: int


class _Patients:
    """Figures of series, gathered by patient."""

    def __init__(self) -> None:
        self._values: dict[tuple[_Figure, str], dict[str, list[float]]] = {}

    def add(self, patient: str, figure: _Figure, values: Mapping[str, float]) -> None:
        for row, value in values.items():
            of = self._values.setdefault((figure, row), {})
            of.setdefault(patient, []).append(value)

    def mean(self, figure: _Figure) -> dict[str, float]:
        """Of each row over patients; rows that do not have the figure are left out."""
        return {
            row: self._interval(by_patient).value
            for (known, row), by_patient in self._values.items()
            if known == figure
        }

    def findings(self) -> tuple[Finding, ...]:
        return tuple(
            Finding(
                row=row,
                family=figure.family,
                name=figure.name,
                value=self._interval(by_patient),
                unit=figure.unit,
                within=f"{figure.within}; {_counted(len(by_patient), 'patient')}",
            )
            for (figure, row), by_patient in self._values.items()
        )

    @staticmethod
    def _interval(by_patient: Mapping[str, Sequence[float]]) -> Interval:
        means = np.array([np.mean(values) for values in by_patient.values()])
        value = float(means.mean())
        if means.size < 2:
            return Interval(value=value)
        bounds = bootstrap_interval(means, np.random.default_rng(_RESAMPLING_SEED))
        return Interval(value=value, low=bounds.low, high=bounds.high)


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
    gathered = _Patients()
    powers: list[tuple[str, _Power, float]] = []
    for number, patient in enumerate(whose):
        volumes = {name: series[number] for name, series in listed.items()}
        pixel_mm = _common_pixel_mm(volumes)
        _gather_bias(gathered, patient, volumes, base)
        _gather_change(gathered, patient, volumes, next(iter(rows)))
        _gather_level(gathered, patient, volumes, base)
        power = _flat_power(volumes, base)
        if power is not None:
            within = f"flat soft tissue of {base}, the same regions in every row"
            _gather_power(gathered, patient, power, (base, within))
            powers.append((patient, power, pixel_mm))
    return Physics(
        findings=gathered.findings(),
        curves=_power_curves(powers),
        statements=(
            *_measured_in(powers, base, count),
            *_texture_statements(gathered, base, tuple(rows)[1:]),
            *_bias_statements(gathered, base),
        ),
    )


def phantom_findings(rows: Mapping[str, CTVolume], truth: Path) -> Physics:
    """Bias, linearity, uniformity, noise and task transfer of a phantom whose truth is known.

    Parameters: rows: name -> a series of `cddnet phantom` or what was made of it, the input of
    the others first; truth: its truth.json, with regions.png beside it.
    Slices are repeats: noise is what differs from their mean, and edges are measured in the mean.
    Raises: FormatError for a truth that cannot be read, GeometryError for a series that is not of
    it, CddnetError without a row.
    """
    if not rows:
        raise CddnetError("no series of a phantom given; give at least one.")
    known = _read_truth(truth)
    for name, volume in rows.items():
        _require_of(name, volume, known)
    findings: list[Finding] = []
    statements: list[str] = []
    transfers: dict[str, dict[str, TaskTransfer]] = defaultdict(dict)
    repeats = {name: _independent(volume) for name, volume in rows.items()}
    for name, slices in repeats.items():
        mean = slices.mean(axis=0, dtype=np.float64)
        findings += _truth_bias(name, mean, known, len(slices))
        findings += _evenness(name, mean, known)
        for region in known.rods():
            found = task_transfer(slices, known.pixel_mm, region.rod())
            error = f50_error_per_mm(slices, known.pixel_mm, region.rod())
            findings += _resolution(name, region.name, found, error)
            transfers[region.name][name] = found
            if not found.is_sufficient:
                statements.append(
                    f"{name}: the transfer of {region.name} is indicative only: its CNR over "
                    f"{found.slices} slices is {found.total_cnr:.1f}, and {ENOUGH_CNR:g} are "
                    "needed; more slices raise it."
                )
    curves = {
        f"TTF {rod}": tuple(
            _curve(name, found.frequency_per_mm, found.transfer, "task transfer")
            for name, found in by_row.items()
        )
        for rod, by_row in transfers.items()
    }
    power = _ensemble_power(repeats, known)
    if power is None:
        statements.append("Noise was not measured: it takes two slices or more that differ.")
    else:
        counts = sorted({str(len(slices)) for slices in repeats.values()})
        within = (
            f"ensemble of {' or '.join(counts)} independent "
            f"slices, {power.regions} regions of {power.side} pixels in {known.largest.name}"
        )
        gathered = _Patients()
        _gather_power(gathered, known.phantom, power, (next(iter(rows)), within))
        # One phantom is no patient.
        findings += [f.model_copy(update={"within": within}) for f in gathered.findings()]
        for name in rows:
            seen = [by_row[name] for by_row in transfers.values()]
            findings += _indices(name, seen, power.radial[name], known.pixel_mm)
        curves |= _power_curves([(known.phantom, power, known.pixel_mm)])
    return Physics(findings=tuple(findings), curves=curves, statements=tuple(statements))


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
    gathered: _Patients, patient: str, volumes: Mapping[str, CTVolume], base: str
) -> None:
    if len(volumes) == 1:
        return
    names = _names(volumes, base)[1:]
    means = tissue_means((images[0], images[1:]) for images in _stacked(volumes, base))
    means = {name: of for name, of in means.items() if of.pixels >= _FEWEST_PIXELS}
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
        figure = _Figure("bias", name, unit, f"means of tissues against {base}")
        gathered.add(patient, figure, dict(zip(names, values.tolist(), strict=True)))


def _bias_figure(tissue: str, base: str) -> _Figure:
    low, high = TISSUES_HU[tissue]
    within = f"pixels of {low:g} to {high:g} HU in {base}, smoothed, 2 pixels from others"
    return _Figure("bias", f"{tissue} bias", "HU", within)


def _gather_change(
    gathered: _Patients, patient: str, volumes: Mapping[str, CTVolume], source: str
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
    gathered.add(patient, _Figure("bias", "largest local change", "HU", within), largest)


def _gather_level(
    gathered: _Patients, patient: str, volumes: Mapping[str, CTVolume], base: str
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
    gathered.add(patient, _Figure("noise", "global noise level", "HU", within), levels)
    if levels[base] > 0:
        ratios = {name: level / levels[base] for name, level in levels.items() if name != base}
        figure = _Figure("noise", f"noise level over {base}", "", within)
        gathered.add(patient, figure, ratios)


def _flat_power(volumes: Mapping[str, CTVolume], base: str) -> _Power | None:
    """None where too little flat tissue is found."""
    for side in _SIDES:
        corners, deviations = [], []
        for index in range(volumes[base].shape[0]):
            hu = filled(volumes[base], index)
            corners.append(flat_corners(hu, side))
            deviations.append(detrended_std(flat_regions(hu, corners[-1], side)))
        if sum(map(len, corners)) < _FEWEST_REGIONS:
            continue
        limit = _QUIET * global_noise_level_hu(np.concatenate(deviations))
        corners = [places[std <= limit] for places, std in zip(corners, deviations, strict=True)]
        if sum(map(len, corners)) >= _FEWEST_REGIONS:
            return _power_at(corners, side, volumes, base)
    return None


def _power_at(
    corners: Sequence[NDArray[np.intp]], side: int, volumes: Mapping[str, CTVolume], base: str
) -> _Power:
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
    return _Power(radial, noise_hu, difference, difference_hu, count, side)


def _ensemble_power(repeats: Mapping[str, NDArray[np.float32]], known: _Truth) -> _Power | None:
    """Of what differs between the slices of a phantom."""
    if min(map(len, repeats.values())) < 2:
        return None
    mask = known.labels == known.largest.label
    for side in _PHANTOM_SIDES:
        corners = corners_inside(mask, side)
        if len(corners) >= _FEWEST_REGIONS:
            break
    else:
        return None
    radial, noise_hu = {}, {}
    for name, slices in repeats.items():
        groups = [cut_regions(noise, corners, side) for noise in ensemble_noise(slices)]
        spectra = [noise_power_spectrum(group, known.pixel_mm).mean(axis=0) for group in groups]
        radial[name] = radial_power(np.mean(spectra, axis=0), known.pixel_mm)
        noise_hu[name] = float(np.sqrt(np.mean([np.square(group).mean() for group in groups])))
    if min(noise_hu.values()) == 0:
        return None
    return _Power(radial, noise_hu, {}, {}, len(corners), side)


def _gather_power(
    gathered: _Patients, patient: str, power: _Power, against: tuple[str, str]
) -> None:
    """against: the row that ratios are taken to, and where the noise was measured."""
    base, within = against
    figure = partial(_Figure, "noise", within=within)
    gathered.add(patient, figure("noise of flat regions", "HU"), power.noise_hu)
    gathered.add(patient, figure("mean frequency", "1/mm"), _mean_frequencies(power.radial))
    peaks = {name: peak_frequency_per_mm(of) for name, of in power.radial.items() if _has_power(of)}
    gathered.add(patient, figure("peak frequency", "1/mm"), peaks)
    less = f"difference to {base}"
    gathered.add(patient, figure(f"noise of the {less}", "HU"), power.difference_hu)
    gathered.add(
        patient,
        figure(f"mean frequency of the {less}", "1/mm"),
        _mean_frequencies(power.difference),
    )
    for name, radial in power.radial.items():
        if name == base:
            continue
        ratios = band_ratios(radial, power.radial[base])
        for (low, high), ratio in zip(BANDS_PER_MM, ratios, strict=True):
            if ratio is not None:
                band = f"{low:g}-{high:g}/mm" if np.isfinite(high) else f"above {low:g}/mm"
                gathered.add(patient, figure(f"noise power over {base}, {band}", ""), {name: ratio})


def _mean_frequencies(radial: Mapping[str, RadialPower]) -> dict[str, float]:
    """Of the rows that have any noise."""
    return {name: float(mean_frequency_per_mm(of)) for name, of in radial.items() if _has_power(of)}


def _has_power(radial: RadialPower) -> bool:
    return float(radial.power[1:].sum()) > 0


def _power_curves(
    powers: Sequence[tuple[str, _Power, float]],
) -> dict[str, tuple[Curve, ...]]:
    """One per row: the mean over patients, on the frequencies that all of them have."""
    if not powers:
        return {}
    finest = max((power for _, power, _ in powers), key=lambda power: power.side)
    frequency = next(iter(finest.radial.values())).frequency_per_mm[1:]
    last = min(0.5 / pixel_mm for _, _, pixel_mm in powers)
    first = max(1 / (power.side * pixel_mm) for _, power, pixel_mm in powers)
    frequency = frequency[(frequency > first * 0.999) & (frequency < last * 1.001)]
    curves = []
    for row in finest.radial:
        by_patient: dict[str, list[Floats]] = defaultdict(list)
        for patient, power, _ in powers:
            radial = power.radial[row]
            at = np.interp(frequency, radial.frequency_per_mm, radial.power)
            by_patient[patient].append(at)
        mean = np.mean([np.mean(of, axis=0) for of in by_patient.values()], axis=0)
        curves.append(_curve(row, frequency, mean, "noise power, HU^2 mm^2"))
    return {"NPS": tuple(curves)}


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _curve(name: str, frequency_per_mm: Floats, values: Floats, label: str) -> Curve:
    return Curve(
        name=name,
        x=tuple(frequency_per_mm.tolist()),
        y=tuple(values.tolist()),
        x_label="frequency, 1/mm",
        y_label=label,
    )


def _measured_in(
    powers: Sequence[tuple[str, _Power, float]], base: str, series: int
) -> Iterator[str]:
    if len(powers) < series:
        yield (
            f"Noise power was not measured in {series - len(powers)} of {series} series: fewer "
            f"than {_FEWEST_REGIONS} flat regions of soft tissue in {base}."
        )
    if powers:
        count = sum(power.regions for _, power, _ in powers)
        sides = sorted({power.side for _, power, _ in powers})
        yield (
            f"Noise power is that of {count} flat regions of "
            f"{' or '.join(f'{side} x {side}' for side in sides)} pixels, less a quadratic trend "
            "of each; anatomy in them counts, so it is an upper bound."
        )


def _texture_statements(gathered: _Patients, base: str, methods: Sequence[str]) -> Iterator[str]:
    within = f"flat soft tissue of {base}, the same regions in every row"
    means = gathered.mean(_Figure("noise", "mean frequency", "1/mm", within))
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


def _bias_statements(gathered: _Patients, base: str) -> Iterator[str]:
    for tissue, limit_hu in _LIMITS_HU.items():
        for row, bias_hu in gathered.mean(_bias_figure(tissue, base)).items():
            if abs(bias_hu) > limit_hu:
                yield (
                    f"{row}: {tissue} is shifted by {bias_hu:+.1f} HU against {base}, more than "
                    f"our limit of {limit_hu:g} HU."
                )


class _Region(BaseModel, frozen=True):
    label: int
    name: str
    hu: float
    background_hu: float
    contrast_hu: float
    centre_pixel: tuple[float, float]
    diameter_mm: float | None
    pixels: int

    def rod(self) -> Rod:
        """Raises: ValueError where it is not round."""
        if self.diameter_mm is None:
            raise ValueError(f"{self.name} is not round")
        column, row = self.centre_pixel
        return Rod(row, column, self.diameter_mm / 2)


class _TruthFile(BaseModel, frozen=True):
    """What truth.json says that is needed here."""

    phantom: str
    size: int
    pixel_mm: float
    regions: tuple[_Region, ...]


class _Truth(NamedTuple):
    """labels: (N, N), the number of the region that a pixel belongs to, 0 near rims."""

    phantom: str
    pixel_mm: float
    regions: tuple[_Region, ...]
    labels: NDArray[np.uint8]

    @property
    def largest(self) -> _Region:
        return max(self.regions, key=lambda region: region.pixels)

    def mask(self, region: _Region) -> NDArray[np.bool_]:
        """Its pixels, at least two from its rim."""
        own: NDArray[np.bool_] = self.labels == region.label
        return own

    def core(self, region: _Region) -> NDArray[np.bool_]:
        """Its pixels that the blur of its rim does not reach."""
        inward_mm = self.pixel_mm * ndimage.distance_transform_edt(self.mask(region))
        deep: NDArray[np.bool_] = inward_mm > _BLUR_MM
        return deep

    def rods(self) -> list[_Region]:
        """Round regions with contrast, in one material."""
        return [region for region in self.regions if self._is_rod(region)]

    def _is_rod(self, region: _Region) -> bool:
        if region.diameter_mm is None or region.diameter_mm < _ROD_DIAMETER_MM:
            return False
        if abs(region.contrast_hu) < _ROD_CONTRAST_HU:
            return False
        column, row = region.centre_pixel
        rows, columns = np.indices(self.labels.shape)
        away_mm = self.pixel_mm * np.hypot(rows - row, columns - column)
        radius_mm = region.diameter_mm / 2
        # Labels keep two pixels from every rim; the background is measured up to 1.8 radii.
        ring = (away_mm > radius_mm + 3.5 * self.pixel_mm) & (away_mm < 1.8 * radius_mm)
        around = np.unique(self.labels[ring])
        return around.size == 1 and around[0] != 0


def _read_truth(path: Path) -> _Truth:
    picture = path.with_name("regions.png")
    try:
        told = _TruthFile.model_validate_json(path.read_text(encoding="utf-8"))
        with Image.open(picture) as image:
            labels = np.asarray(image, np.uint8)
    except (OSError, ValidationError, ValueError) as error:
        raise FormatError(
            f"{path}: not the truth of a phantom ({error}); give the truth.json that "
            "'cddnet phantom' wrote, with regions.png beside it."
        ) from error
    if labels.shape != (told.size, told.size) or not told.regions:
        raise FormatError(
            f"{picture} has {labels.shape} pixels and {path.name} says {told.size} x {told.size} "
            f"with {len(told.regions)} regions; they are not of one phantom."
        )
    return _Truth(told.phantom, told.pixel_mm, told.regions, labels)


def _require_of(name: str, volume: CTVolume, known: _Truth) -> None:
    spacing_mm = volume.spacing_mm[1:]
    if volume.shape[1:] != known.labels.shape or not np.allclose(
        spacing_mm, known.pixel_mm, rtol=1e-3
    ):
        raise GeometryError(
            f"{name} has slices of {volume.shape[1:]} pixels of {spacing_mm} mm, the truth of "
            f"'{known.phantom}' {known.labels.shape} of {known.pixel_mm:g} mm; "
            "give the truth that was written beside this series."
        )


def _independent(volume: CTVolume) -> NDArray[np.float32]:
    """Slices (D, H, W) that share no input: a step that looks at neighbours mixes their noise."""
    reach = sum(step.neighbours for step in volume.derivation)
    chosen = range(0, volume.shape[0], 1 + 2 * reach)
    return np.stack([volume.read_slice(index) for index in chosen])


def _truth_bias(row: str, mean: Floats, known: _Truth, slices: int) -> Iterator[Finding]:
    cores = {region: known.core(region) for region in known.regions if region.hu > _AIR_HU}
    cores = {region: core for region, core in cores.items() if core.sum() >= _FEWEST_PIXELS}
    solid = list(cores)
    measured = [float(mean[core].mean()) for core in cores.values()]
    for (region, core), value in zip(cores.items(), measured, strict=True):
        yield _alone(
            row,
            _Figure(
                "bias",
                f"{region.name} bias",
                "HU",
                f"{core.sum()} pixels of {region.hu:g} HU, {slices} slices",
            ),
            value - region.hu,
        )
    truth = np.array([region.hu for region in solid])
    if np.unique(truth).size < 2:
        return
    line = linearity(truth, np.array(measured))
    within = f"{len(solid)} materials of {truth.min():g} to {truth.max():g} HU against their truth"
    figure = partial(_Figure, "bias", within=within)
    yield _alone(row, figure("linearity slope", ""), line.slope)
    yield _alone(row, figure("linearity intercept", "HU"), line.intercept_hu)
    yield _alone(row, figure("linearity R2", ""), line.r_squared)
    yield _alone(row, figure("largest deviation", "HU"), line.largest_deviation_hu)


def _evenness(row: str, mean: Floats, known: _Truth) -> Iterable[Finding]:
    body = known.largest
    if body.diameter_mm is None:
        return []
    try:
        even = uniformity(mean, known.pixel_mm, Cylinder(*body.rod()), known.mask(body))
    except ValueError:
        # Other materials lie where the regions would.
        return []
    figure = partial(_Figure, "uniformity", unit="HU", within=f"regions of 16 mm in {body.name}")
    return [
        _alone(row, figure("edge less centre"), even.edge_less_centre_hu),
        _alone(row, figure(f"CT number of {body.name}"), even.mean_hu),
    ]


def _resolution(
    row: str, rod: str, found: TaskTransfer, f50_error: float | None
) -> Iterator[Finding]:
    enough = "" if found.is_sufficient else f", indicative: CNR below {ENOUGH_CNR:g}"
    within = f"mean of {found.slices} slices, total CNR {found.total_cnr:.1f}{enough}"
    values = {
        ("f50", "1/mm"): found.f50_per_mm,
        ("f50 standard error", "1/mm"): f50_error,
        ("f10", "1/mm"): found.f10_per_mm,
        ("contrast", "HU"): found.contrast_hu,
        ("CNR of one slice", ""): found.cnr if np.isfinite(found.cnr) else None,
    }
    for (name, unit), value in values.items():
        if value is not None:
            yield _alone(row, _Figure("resolution", f"{rod} {name}", unit, within), value)


def _indices(
    row: str, transfers: Sequence[TaskTransfer], power: RadialPower, pixel_mm: float
) -> Iterator[Finding]:
    """D' of the non-prewhitening observers, with the transfer of the faintest rod that is sure."""
    sure = [found for found in transfers if found.is_sufficient]
    if not sure:
        return
    transfer = min(sure, key=lambda found: abs(found.contrast_hu))
    axis = np.fft.fftfreq(_TASK_SIDE, pixel_mm)
    radius = np.hypot(axis[:, None], axis)
    ttf = np.interp(radius, transfer.frequency_per_mm, transfer.transfer, right=0.0)
    noise = np.interp(radius, power.frequency_per_mm, power.power)
    within = (
        f"disc, transfer of the rod of {transfer.contrast_hu:.0f} HU and noise power of this row; "
        "a linear system is assumed, so indicative for a network"
    )
    for diameter_mm, contrast_hu in _TASKS:
        task = disc_task(radius, diameter_mm, contrast_hu)
        step = 1 / (_TASK_SIDE * pixel_mm)
        for name, eye in (("NPW", np.ones_like(radius)), ("NPWE", eye_filter(radius))):
            figure = _Figure(
                "detectability",
                f"d' ({name}), {diameter_mm:g} mm, {contrast_hu:g} HU",
                "",
                within,
            )
            yield _alone(row, figure, d_prime_npwe(task, ttf, noise, step, eye=eye))


def _alone(row: str, figure: _Figure, value: float) -> Finding:
    return Finding(row=row, value=Interval(value=value), **figure._asdict())
