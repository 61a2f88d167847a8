"""Bias, linearity, uniformity, noise and resolution of a phantom whose truth is known."""

# Shapes: D slice, H row, W column, F frequency.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cddnet.errors import CddnetError
from cddnet.metrics.bias import linearity
from cddnet.metrics.detectability import d_prime_npwe, disc_task, eye_filter
from cddnet.metrics.noise import (
    RadialPower,
    corners_inside,
    cut_regions,
    ensemble_noise,
    noise_power_spectrum,
    radial_power,
)
from cddnet.metrics.resolution import (
    ENOUGH_CNR,
    TaskTransfer,
    f50_error_per_mm,
    task_transfer,
)
from cddnet.metrics.uniformity import Cylinder, uniformity
from cddnet.volume import CTVolume
from cddnet.workflows._evaluation import Finding, Interval, Physics
from cddnet.workflows._phantom_truth import Truth, read_truth, require_of
from cddnet.workflows._physics_figures import (
    FEWEST_PIXELS,
    FEWEST_REGIONS,
    Figure,
    Floats,
    Patients,
    Power,
    curve_of,
    gather_power,
    power_curves,
)

_PHANTOM_SIDES = (64, 48, 32, 24, 16)
# Clipping at the lower end of stored values biases the mean of air.
_AIR_HU = -950.0
# Diameter in mm and contrast in HU of the tasks, and side of their frequency grid.
_TASKS = ((5.0, 30.0), (10.0, 12.0))
_TASK_SIDE = 128


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
    known = read_truth(truth)
    for name, volume in rows.items():
        require_of(name, volume, known)
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
            curve_of(name, found.frequency_per_mm, found.transfer, "task transfer")
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
        gathered = Patients()
        gather_power(gathered, known.phantom, power, (next(iter(rows)), within))
        # One phantom is no patient.
        findings += [f.model_copy(update={"within": within}) for f in gathered.findings()]
        for name in rows:
            seen = [by_row[name] for by_row in transfers.values()]
            findings += _indices(name, seen, power.radial[name], known.pixel_mm)
        curves |= power_curves([(known.phantom, power, known.pixel_mm)])
    return Physics(findings=tuple(findings), curves=curves, statements=tuple(statements))


def _ensemble_power(repeats: Mapping[str, NDArray[np.float32]], known: Truth) -> Power | None:
    """Of what differs between the slices of a phantom."""
    if min(map(len, repeats.values())) < 2:
        return None
    mask = known.labels == known.largest.label
    for side in _PHANTOM_SIDES:
        corners = corners_inside(mask, side)
        if len(corners) >= FEWEST_REGIONS:
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
    return Power(radial, noise_hu, {}, {}, len(corners), side)


def _independent(volume: CTVolume) -> NDArray[np.float32]:
    """Slices (D, H, W) that share no input: a step that looks at neighbours mixes their noise."""
    reach = sum(step.neighbours for step in volume.derivation)
    chosen = range(0, volume.shape[0], 1 + 2 * reach)
    return np.stack([volume.read_slice(index) for index in chosen])


def _truth_bias(row: str, mean: Floats, known: Truth, slices: int) -> Iterator[Finding]:
    cores = {region: known.core(region) for region in known.regions if region.hu > _AIR_HU}
    cores = {region: core for region, core in cores.items() if core.sum() >= FEWEST_PIXELS}
    solid = list(cores)
    measured = [float(mean[core].mean()) for core in cores.values()]
    for (region, core), value in zip(cores.items(), measured, strict=True):
        yield _alone(
            row,
            Figure(
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
    figure = partial(Figure, "bias", within=within)
    yield _alone(row, figure("linearity slope", ""), line.slope)
    yield _alone(row, figure("linearity intercept", "HU"), line.intercept_hu)
    yield _alone(row, figure("linearity R2", ""), line.r_squared)
    yield _alone(row, figure("largest deviation", "HU"), line.largest_deviation_hu)


def _evenness(row: str, mean: Floats, known: Truth) -> Iterable[Finding]:
    body = known.largest
    if body.diameter_mm is None:
        return []
    try:
        even = uniformity(mean, known.pixel_mm, Cylinder(*body.rod()), known.mask(body))
    except ValueError:
        # Other materials lie where the regions would.
        return []
    figure = partial(Figure, "uniformity", unit="HU", within=f"regions of 16 mm in {body.name}")
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
            yield _alone(row, Figure("resolution", f"{rod} {name}", unit, within), value)


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
            figure = Figure(
                "detectability",
                f"d' ({name}), {diameter_mm:g} mm, {contrast_hu:g} HU",
                "",
                within,
            )
            yield _alone(row, figure, d_prime_npwe(task, ttf, noise, step, eye=eye))


def _alone(row: str, figure: Figure, value: float) -> Finding:
    return Finding(row=row, value=Interval(value=value), **figure._asdict())
