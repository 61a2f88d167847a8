"""Figures of physics by patient, and the noise power of rows measured in the same regions."""

# Shapes: F frequency.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet.metrics.noise import (
    BANDS_PER_MM,
    RadialPower,
    band_ratios,
    mean_frequency_per_mm,
    peak_frequency_per_mm,
)
from cddnet.metrics.statistics import bootstrap_interval
from cddnet.workflows._evaluation import Curve, Finding, Interval

Family = Literal["noise", "resolution", "bias", "detectability", "structure", "uniformity"]
Floats = NDArray[np.float64]
FEWEST_REGIONS = 12
FEWEST_PIXELS = 50
_RESAMPLING_SEED = 20150205


class Figure(NamedTuple):
    family: Family
    name: str
    unit: str
    within: str


class Power(NamedTuple):
    """Noise power of each row in the regions that they share, and its root over all frequencies.

    difference: of each row less the base, where anatomy cancels; empty where slices are repeats.
    """

    radial: dict[str, RadialPower]
    noise_hu: dict[str, float]
    difference: dict[str, RadialPower]
    difference_hu: dict[str, float]
    regions: int
    side: int


class Patients:
    """Figures of series, gathered by patient."""

    def __init__(self) -> None:
        self._values: dict[tuple[Figure, str], dict[str, list[float]]] = {}

    def add(self, patient: str, figure: Figure, values: Mapping[str, float]) -> None:
        for row, value in values.items():
            of = self._values.setdefault((figure, row), {})
            of.setdefault(patient, []).append(value)

    def mean(self, figure: Figure) -> dict[str, float]:
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
                within=f"{figure.within}; {counted(len(by_patient), 'patient')}",
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


def gather_power(gathered: Patients, patient: str, power: Power, against: tuple[str, str]) -> None:
    """against: the row that ratios are taken to, and where the noise was measured."""
    base, within = against
    figure = partial(Figure, "noise", within=within)
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


def power_curves(
    powers: Sequence[tuple[str, Power, float]],
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
        curves.append(curve_of(row, frequency, mean, "noise power, HU^2 mm^2"))
    return {"NPS": tuple(curves)}


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def curve_of(name: str, frequency_per_mm: Floats, values: Floats, label: str) -> Curve:
    return Curve(
        name=name,
        x=tuple(frequency_per_mm.tolist()),
        y=tuple(values.tolist()),
        x_label="frequency, 1/mm",
        y_label=label,
    )
