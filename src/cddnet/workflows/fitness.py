"""May this series be denoised?  facts of its header and a few slices -> fit, noted or refused.

Shared by command line, node and archive; needs neither torch nor a network. Thresholds come from
`benchmarks/fitness.py`, see docs/fitness.md.
"""

# Shapes: D slice, H row, W column.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import numpy as np

from cddnet.errors import UnfitError
from cddnet.formats._facts import HeaderFacts, read_facts
from cddnet.formats.dicom import DicomHeaders
from cddnet.intensity.hu import air_for_padding
from cddnet.metrics.plausibility import (
    ValueSigns,
    measured_values,
    metal_mm2,
    noise_texture,
    value_levels,
    value_signs,
)
from cddnet.volume import CTVolume, Derivation, Mask, SliceHU
from cddnet.workflows._decoding import decoded_once
from cddnet.workflows._fitness_header import Finding, Kind, header_findings
from cddnet.workflows._fitness_texture import texture_findings

SLICES = 5
SMALLEST_SIDE = 64

# Pixel sizes and thicknesses of the series that training saw, with some room.
PIXEL_MM = (0.4, 1.4)
THICKNESS_MM = (0.6, 8.0)

METAL_MM2 = 20.0
EIGHT_BIT_LEVELS = 256
FEWEST_LEVELS = 16
APART_SHARE = 0.3
CLIPPED_SHARE = 2e-3


class Outcome(str, Enum):
    """What the check comes to."""

    fit = "fit"
    noted = "fit with a note"
    refused = "refused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitness:
    """All that was found about a series, what refuses it first."""

    findings: tuple[Finding, ...]

    @property
    def outcome(self) -> Outcome:
        """Fit, fit with a note, or refused."""
        if any(finding.refuses for finding in self.findings):
            return Outcome.refused
        return Outcome.noted if self.findings else Outcome.fit

    @property
    def refusal(self) -> str | None:
        """Why it is refused, in one sentence for people; None where it is not."""
        reasons = [finding.text for finding in self.findings if finding.refuses]
        return "; ".join(reasons) or None

    @property
    def refused_kinds(self) -> str:
        """Kinds of what refuses it, separated by commas; "" where nothing does."""
        kinds = {finding.kind.value for finding in self.findings if finding.refuses}
        return ", ".join(sorted(kinds))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of a series that may be denoised."""
        return tuple(finding.text for finding in self.findings if not finding.refuses)


class _Sample(NamedTuple):
    """Slices spread over a series, (H, W) HU with air for padding, and where padding was."""

    slices: list[SliceHU]
    padding: list[Mask]


def examine(
    volume: CTVolume, facts: HeaderFacts | None = None, *, windowed: bool = False
) -> Fitness:
    """Whether a series may be denoised: from its record, its header and up to five slices.

    facts: of its header, read here where the volume came from DICOM and none are given.
    windowed: the values were cut to a window, so that they only note what they would refuse.
    """
    facts = facts or _facts_of(volume)
    sample = _sample(volume)
    values = [one._replace(refuses=one.refuses and not windowed) for one in _values(sample)]
    found = [*header_findings(volume.derivation, facts), *_grid(volume), *values]
    # What is no HU has neither metal nor the noise of a kernel.
    if not any(finding.refuses and finding.kind is Kind.values for finding in found):
        pixel_mm = _pixel_mm(volume)
        texture = noise_texture(sample.slices, pixel_mm)
        noise, metal = texture_findings(texture, facts, pixel_mm), list(_metal(sample, volume))
        # Streaks look like noise of a softer kernel: beside metal nothing is refused for it.
        found += [one._replace(refuses=one.refuses and not metal) for one in noise] + metal
    return Fitness(findings=tuple(sorted(found, key=lambda finding: not finding.refuses)))


def admitted(volume: CTVolume, *, force: bool = False, windowed: bool = False) -> Fitness:
    """`examine`, which must not refuse unless forced.  Raises UnfitError."""
    fitness = examine(volume, windowed=windowed)
    if fitness.refusal and not force:
        raise UnfitError(
            f"this series may not be denoised: {fitness.refusal}. Give --force (in a rule of the "
            "node `force: true`) to denoise it all the same; the result then says so."
        )
    return fitness


def forced(step: Derivation, kinds: str) -> Derivation:
    """The step of a series that was denoised although it was refused for `kinds`, and says so.

    A step is unchanged where nothing was refused.
    """
    if not kinds:
        return step
    text = f"{step.description} FORCED although the fitness check refused it: {kinds}."
    parameters = tuple(sorted((*step.parameters, ("forced", kinds))))
    return replace(step, description=text, parameters=parameters)


def _facts_of(volume: CTVolume) -> HeaderFacts:
    headers = volume.headers
    return (
        read_facts(headers.frames[0].path) if isinstance(headers, DicomHeaders) else HeaderFacts()
    )


def _sample(volume: CTVolume) -> _Sample:
    volume, depth = decoded_once(volume), volume.shape[0]
    places = np.linspace(0.1, 0.9, SLICES) * (depth - 1)
    sample = _Sample([], [])
    for index in sorted({round(place) for place in places.tolist()}):
        hu, empty = volume.read_slice(index), volume.padding(index)
        sample.slices.append(air_for_padding(hu, empty))
        sample.padding.append(empty)
    return sample


def _pixel_mm(volume: CTVolume) -> float:
    _, row_mm, column_mm = volume.spacing_mm
    return float(np.sqrt(row_mm * column_mm))


def _grid(volume: CTVolume) -> Iterator[Finding]:
    every = volume.thicknesses_mm or (volume.thickness_mm,)
    thicknesses_mm = sorted({thickness for thickness in every if thickness is not None})
    for kind, values_mm, (low, high) in (
        (Kind.pixel_size, [_pixel_mm(volume)], PIXEL_MM),
        (Kind.thickness, thicknesses_mm, THICKNESS_MM),
    ):
        for value_mm in values_mm:
            if not low <= round(value_mm, 3) <= high:
                text = f"{kind.value} is {value_mm:.3g} mm, training covered {low:g} to {high:g} mm"
                yield Finding(kind, False, text)


def _values(sample: _Sample) -> Iterator[Finding]:
    if min(sample.slices[0].shape) < SMALLEST_SIDE:
        side = f"{SMALLEST_SIDE} pixels"
        yield Finding(Kind.small, False, f"slices below {side} a side cannot be judged")
        return
    values = measured_values(sample.slices, sample.padding)
    reason = _no_hu(value_signs(values))
    if reason:
        remedy = "check RescaleIntercept and RescaleSlope, or that it is CT at all"
        yield Finding(Kind.values, True, f"the values are not HU of a body: {reason}; {remedy}")
        return
    if value_signs(values).tissue_of_dense < 0.6:
        share = f"{value_signs(values).tissue_of_dense:.0%}"
        text = f"only {share} of what is denser than lung is like soft tissue; are these HU?"
        yield Finding(Kind.values, False, text)
    levels = value_levels(values)
    coarse = levels.apart > APART_SHARE or levels.at_top > CLIPPED_SHARE
    if FEWEST_LEVELS <= levels.different <= EIGHT_BIT_LEVELS and coarse:
        text = f"only {levels.different} different values: rescaled to 8 bits, fine detail is lost"
        yield Finding(Kind.levels, False, text)


def _no_hu(signs: ValueSigns) -> str:
    """Why values cannot be HU of a patient or phantom, "" where they can."""
    if signs.airy > 0.97 or signs.tissue < 0.03:
        return f"{signs.tissue:.1%} lie near water (within 200 HU)"
    if signs.tissue_of_dense < 0.3:
        return f"of those above -500 HU {signs.tissue_of_dense:.0%} lie near water"
    if signs.between > 0.3:
        return f"of those above -500 HU {signs.between:.0%} lie between lung and fat"
    # A field of view inside the body holds no air, but fat, or noise that reaches below water.
    if signs.airy < 0.005 and (
        signs.negative < 0.001 or signs.dense > 0.06 or signs.tissue_of_dense < 0.5
    ):
        return f"none is air, and {signs.negative:.1%} lie below water"
    return ""


def _metal(sample: _Sample, volume: CTVolume) -> Iterator[Finding]:
    pixel_mm2 = volume.spacing_mm[1] * volume.spacing_mm[2]
    largest = max(metal_mm2(hu, pixel_mm2) for hu in sample.slices)
    if largest >= METAL_MM2:
        text = f"metal ({largest:.0f} mm2 above 3000 HU in a slice); its streaks are no noise"
        yield Finding(Kind.metal, False, text)
