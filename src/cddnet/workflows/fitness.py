"""May this series be denoised?  facts of its header and a few slices -> fit, noted or refused.

Shared by command line, node and archive; needs neither torch nor a network. Thresholds come from
`benchmarks/fitness.py`, see docs/fitness.md.
"""

# Shapes: D slice, H row, W column.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from cddnet.errors import UnfitError
from cddnet.formats._facts import HeaderFacts, read_facts
from cddnet.formats.dicom import DicomHeaders
from cddnet.metrics.plausibility import metal_mm2, noise_texture
from cddnet.volume import CTVolume, Derivation
from cddnet.workflows._fitness_header import Finding, Kind, header_findings
from cddnet.workflows._fitness_texture import texture_findings
from cddnet.workflows._fitness_values import Sample, sample_of, value_findings
from cddnet.workflows._fitness_values import require_hu as require_hu
from cddnet.workflows._fitness_values import why_not_hu as why_not_hu

# Pixel sizes and thicknesses of the series that training saw, with some room.
PIXEL_MM = (0.4, 1.4)
THICKNESS_MM = (0.6, 8.0)

METAL_MM2 = 20.0


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


def examine(volume: CTVolume, facts: HeaderFacts | None = None) -> Fitness:
    """Whether a series may be denoised: from its record, its header and up to five slices.

    facts: of its header, read here where the volume came from DICOM and none are given.
    """
    facts = facts or _facts_of(volume)
    sample = sample_of(volume)
    values = value_findings(sample, volume.window_hu)
    found = [*header_findings(volume.derivation, facts), *_grid(volume), *values]
    # What is no HU has neither metal nor the noise of a kernel.
    if not any(finding.refuses and finding.kind is Kind.values for finding in found):
        pixel_mm = _pixel_mm(volume)
        texture = noise_texture(sample.slices, pixel_mm)
        noise, metal = texture_findings(texture, facts, pixel_mm), list(_metal(sample, volume))
        # Streaks look like noise of a softer kernel: beside metal nothing is refused for it.
        found += [one._replace(refuses=one.refuses and not metal) for one in noise] + metal
    return Fitness(findings=tuple(sorted(found, key=lambda finding: not finding.refuses)))


def admitted(volume: CTVolume, *, force: bool = False) -> Fitness:
    """`examine`, which must not refuse unless forced.  Raises UnfitError."""
    fitness = examine(volume)
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


def marked_forced(volume: CTVolume, refusal: str) -> CTVolume:
    """A volume whose last step was made although its source is no HU, and says so.

    refusal: why the source is no HU, "" where it is HU.
    """
    if not refusal:
        return volume
    *earlier, last = volume.derivation
    return replace(
        volume,
        derivation=(*earlier, forced(last, Kind.values.value)),
        notes=(*volume.notes, *forced_notes(refusal)),
    )


def forced_notes(refusal: str | None) -> tuple[str, ...]:
    """What is said of a result whose source was refused, and of others nothing."""
    return (f"forced, although {refusal}",) if refusal else ()


def _facts_of(volume: CTVolume) -> HeaderFacts:
    headers = volume.headers
    return (
        read_facts(headers.frames[0].path) if isinstance(headers, DicomHeaders) else HeaderFacts()
    )


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


def _metal(sample: Sample, volume: CTVolume) -> Iterator[Finding]:
    pixel_mm2 = volume.spacing_mm[1] * volume.spacing_mm[2]
    largest = max(metal_mm2(hu, pixel_mm2) for hu in sample.slices)
    if largest >= METAL_MM2:
        text = f"metal ({largest:.0f} mm2 above 3000 HU in a slice); its streaks are no noise"
        yield Finding(Kind.metal, False, text)
