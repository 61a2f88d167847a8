"""Evaluate: how near a denoised series is to its reference, under a named protocol.

Each image is scored, then the mean is taken per patient, then over patients. The low dose is the
first row, because a method that does not beat its input is no method.

Above 300 lines: the three ways to evaluate share cases, scores and physics.
"""

# Shapes: H row, W column, P patient.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cddnet import __version__
from cddnet.errors import CddnetError, FormatError, GeometryError
from cddnet.formats import ReadOptions
from cddnet.grid import plane_notes
from cddnet.metrics import fidelity, statistics
from cddnet.metrics._body import body_mask
from cddnet.metrics.fidelity import Measure
from cddnet.workflows._cases import Case, find_cases
from cddnet.workflows._evaluation import (
    Evaluation,
    ImageScores,
    Metric,
    Physics,
    Protocol,
    Row,
)
from cddnet.workflows._network_detection import detected, joined
from cddnet.workflows._pairing import along_mm
from cddnet.workflows._patients import LOW_DOSE as LOW_DOSE
from cddnet.workflows._patients import paired_comparisons, patient_rows
from cddnet.workflows._physics_phantom import phantom_findings
from cddnet.workflows._physics_report import paired_findings
from cddnet.workflows._pictures import sides
from cddnet.workflows._protocols import protocol_named, under, window_of
from cddnet.workflows._structure import structure_of
from cddnet.workflows.fitness import forced_notes, require_hu

REFERENCE = "reference"
MASKS = {
    "none": "none (every pixel)",
    "body": "body (largest object above -500 HU of the reference, holes filled)",
}

Progress = Callable[[str, int, int], None]


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


class EvaluateOptions(NamedTuple):
    """window_hu: (low, high) that pictures stand for.  lpips_weights: folder of weight files.
    acquisition: of series that hold several at their places.

    with_physics: noise, texture and bias too.  detect: a network, shipped or a file, whose effect
    on the detectability of lesions inserted into the reference is measured.
    seed: of the bootstrap and of random sign flips.  progress: (what is done, done, in all).
    force: also series that are no HU, which the notes then name.
    """

    window_hu: tuple[float, float] | None = None
    acquisition: str | None = None
    lpips_weights: Path | None = None
    with_physics: bool = True
    detect: str | Path | None = None
    seed: int = 0
    progress: Progress = _silent
    slice_axis: int | None = None
    """Axis of the slices (0, 1 or 2) in arrays that state no orientation."""
    force: bool = False

    @property
    def reading(self) -> ReadOptions:
        """What files may leave open."""
        return ReadOptions(
            window_hu=self.window_hu, acquisition=self.acquisition, slice_axis=self.slice_axis
        )


class _Chosen(NamedTuple):
    """function: (full_dose, test, mask=...) -> score."""

    metric: Metric
    function: Callable[..., float]


def evaluate(  # noqa: PLR0913 - what is compared, and the three choices that decide every number
    reference: Path,
    methods: Mapping[str, Path],
    *,
    protocol: str,
    low_dose: Path | None = None,
    mask: str = "none",
    options: EvaluateOptions | None = None,
) -> Evaluation:
    """Score series against a reference, the low dose first.

    Parameters: reference, of a folder with pictures in `IN/` and `GT/` GT is taken, and IN is the
    low dose; methods, name -> path; protocol, a key of PROTOCOLS; mask, a key of MASKS.
    Raises: CddnetError for an unknown protocol, mask or reserved name; GeometryError where series
    do not agree, naming both values; UnfitError for values that are no HU, unless forced; else what
    reading raises.
    """
    chosen, options = protocol_named(protocol), options or EvaluateOptions()
    reserved = {LOW_DOSE, REFERENCE, ""} & methods.keys()
    if reserved or not methods:
        raise CddnetError(
            f"methods are named {sorted(methods)}; give at least one, named neither '{LOW_DOSE}' "
            f"nor '{REFERENCE}'."
        )
    reference, low_dose = full_and_low_dose(reference, low_dose)
    rows = {} if low_dose is None else {LOW_DOSE: low_dose}
    cases = find_cases(reference, rows | dict(methods), options.reading)
    forced = _forced(cases, options, REFERENCE)
    found = evaluate_cases(cases, chosen, mask=mask, options=options)
    return found.model_copy(update={"notes": (*forced, *found.notes)})


def full_and_low_dose(reference: Path, low_dose: Path | None) -> tuple[Path, Path | None]:
    """The two paths, or GT and IN of a reference that holds pictures in both."""
    layout = sides(reference)
    if layout is None or layout.full_dose is None:
        return reference, low_dose
    return layout.full_dose, low_dose or layout.low_dose


def _forced(
    cases: Sequence[Case], options: EvaluateOptions, reference: str | None = None
) -> tuple[str, ...]:
    """Notes on series that are no HU.  Raises: UnfitError for the first of them, unless forced.

    reference: what that of a case is called; None where it is HU for certain.
    """
    notes = []
    for case in cases:
        first = {} if reference is None else {reference: case.reference}
        for name, volume in (first | case.rows).items():
            named = f"{name}, {case.patient}, {case.series}"
            refusal = require_hu(volume, named, force=options.force)
            notes += [f"{named}: {note}" for note in forced_notes(refusal)]
    return tuple(notes)


def evaluate_cases(
    cases: Sequence[Case], protocol: Protocol, *, mask: str, options: EvaluateOptions
) -> Evaluation:
    """Score the rows of matched series; each slice is read once."""
    if mask not in MASKS:
        raise CddnetError(f"no mask '{mask}'; choose one of {', '.join(MASKS)}.")
    chosen, unavailable = _measures(cases, protocol, options)
    names = list(cases[0].rows)
    images: dict[str, list[ImageScores]] = {name: [] for name in names}
    total, done = sum(case.reference.shape[0] for case in cases), 0
    for case in cases:
        for index, place_mm in enumerate(along_mm(case.reference)):
            scores = _score(case, index, protocol, chosen, mask)
            for name, values in scores.items():
                images[name].append(
                    ImageScores(
                        patient=case.patient,
                        series=case.series,
                        slice_number=index + 1,
                        position_mm=float(place_mm),
                        values=values,
                    )
                )
            done += 1
            options.progress("evaluating", done, total)
    metrics = tuple(item.metric for item in chosen)
    rows = patient_rows(images, metrics, options.seed)
    return Evaluation(
        version=__version__,
        mode="paired",
        protocol=protocol,
        mask=MASKS[mask],
        reference=REFERENCE,
        metrics=metrics,
        unavailable=unavailable,
        rows=rows,
        comparisons=paired_comparisons(rows, metrics, options.seed),
        physics=physics_of(cases, options),
        notes=tuple(_notes(cases, rows, protocol, options.seed)),
    )


def evaluate_unpaired(
    source: Path, methods: Mapping[str, Path], options: EvaluateOptions | None = None
) -> Evaluation:
    """Noise, texture and change of HU of series against their input, where no full dose exists.

    Raises: as `evaluate`.
    """
    options = options or EvaluateOptions()
    layout = sides(source)
    source = layout.low_dose if layout else source
    cases = find_cases(source, methods, options.reading)
    forced = _forced(cases, options, LOW_DOSE)
    rows = {LOW_DOSE: [case.reference for case in cases]}
    rows |= {name: [case.aligned(name) for case in cases] for name in methods}
    physics = paired_findings(rows, None, patients=[case.patient for case in cases])
    note = "No reference: nothing says how near to the truth an output is, only what it changed."
    return _without_scores("unpaired", cases, physics, (*forced, note))


def evaluate_phantom(
    folder: Path, methods: Mapping[str, Path], options: EvaluateOptions | None = None
) -> Evaluation:
    """Linearity, uniformity, noise and transfer of a phantom and of what was made of it.

    folder: as `cddnet phantom` wrote it.  Raises: FormatError for another folder, else as
    `evaluate`.
    """
    options = options or EvaluateOptions()
    truth = folder / "truth.json"
    if not truth.is_file():
        raise FormatError(f"{folder}: holds no truth.json; give a folder of `cddnet phantom`.")
    cases = find_cases(folder / "series", methods, options.reading)
    case = cases[0]
    forced = _forced(cases, options)
    rows = {LOW_DOSE: case.reference} | {name: case.aligned(name) for name in methods}
    note = f"'{LOW_DOSE}' is the phantom's own series, whatever its dose."
    return _without_scores("phantom", cases, phantom_findings(rows, truth), (*forced, note))


def _without_scores(
    mode: Literal["unpaired", "phantom"],
    cases: Sequence[Case],
    physics: Physics,
    notes: tuple[str, ...],
) -> Evaluation:
    images = tuple(
        ImageScores(
            patient=case.patient,
            series=case.series,
            slice_number=index + 1,
            position_mm=float(place_mm),
            values={},
        )
        for case in cases
        for index, place_mm in enumerate(along_mm(case.reference))
    )
    return Evaluation(
        version=__version__,
        mode=mode,
        protocol=protocol_named("full"),
        mask=MASKS["none"],
        reference="none" if mode == "unpaired" else "truth of the phantom",
        metrics=(),
        unavailable={},
        rows=tuple(
            Row(name=name, is_low_dose=name == LOW_DOSE, images=images, per_patient={}, mean={})
            for name in (LOW_DOSE, *cases[0].rows)
        ),
        comparisons=(),
        physics=physics,
        notes=(
            *notes,
            *dict.fromkeys(
                text for case in cases for text in plane_notes(case.reference.direction)
            ),
        ),
    )


def physics_of(cases: Sequence[Case], options: EvaluateOptions) -> Physics:
    """Noise, texture, bias and detectability of the cases: what the scores of rows hide."""
    if not options.with_physics:
        return Physics()
    options.progress("physics", 0, 1)
    rows = {name: [case.aligned(name) for case in cases] for name in cases[0].rows}
    references, patients = [case.reference for case in cases], [case.patient for case in cases]
    try:
        found = paired_findings(rows, references, patients=patients)
    except GeometryError as error:
        return Physics(statements=(f"Physics was not measured: {error}",))
    found = joined(found, structure_of(cases, LOW_DOSE))
    if options.detect is None:
        return found
    options.progress("detectability", 0, 1)
    return joined(found, detected(references, options.detect))


def _score(
    case: Case, index: int, protocol: Protocol, chosen: Sequence[_Chosen], mask: str
) -> dict[str, dict[str, float]]:
    """Row -> metric -> score of slice `index` of the reference."""
    hu = case.reference.read_slice(index)
    where = body_mask(hu) if mask == "body" else None
    full_dose = under(protocol, hu)
    scores = {}
    for name, volume in case.rows.items():
        test = under(protocol, volume.read_slice(case.slices[name][index]))
        scores[name] = {
            item.metric.name: item.function(full_dose, test, mask=where) for item in chosen
        }
    return scores


def _measures(
    cases: Sequence[Case], protocol: Protocol, options: EvaluateOptions
) -> tuple[list[_Chosen], dict[str, str]]:
    """What can be measured, and metric -> why it cannot and what to do."""
    measures = {name: fidelity.METRICS[name] for name in protocol.metrics}
    perceptual, unavailable = _perceptual(options.lpips_weights)
    smallest = min(min(case.reference.shape[1:]) for case in cases)
    chosen = []
    for name, measure in (measures | perceptual).items():
        if smallest < measure.smallest_side:
            unavailable[name] = (
                f"needs sides of {measure.smallest_side} pixels, the images have {smallest}; "
                "evaluate larger ones."
            )
            continue
        window_hu = window_of(protocol, name, measure.unit)
        metric = Metric(
            name=name,
            unit=measure.unit,
            higher_is_better=measure.direction == "higher",
            definition=measure.definition,
            window_hu=window_hu,
        )
        chosen.append(_Chosen(metric, partial(measure.function, window_hu=window_hu)))
    return chosen, unavailable


def _perceptual(weights: Path | None) -> tuple[dict[str, Measure], dict[str, str]]:
    """LPIPS with the features of each network whose weights are at hand."""
    from cddnet.workflows._perceptual import LPIPS_NETWORKS, Unavailable, load_lpips

    measures, unavailable = {}, {}
    for network in LPIPS_NETWORKS:
        loaded = load_lpips(weights, network)
        if isinstance(loaded, Unavailable):
            unavailable[f"LPIPS {network}"] = loaded.reason.removeprefix("unavailable: ")
        else:
            function = partial(_without_mask, loaded)
            measures[loaded.name] = Measure(function, "", "lower", loaded.definition)
    return measures, unavailable


def _without_mask(
    distance: Callable[..., float],
    full_dose: NDArray[np.floating],
    test: NDArray[np.floating],
    *,
    window_hu: tuple[float, float],
    mask: NDArray[np.bool_] | None = None,
) -> float:
    return distance(full_dose, test, window_hu=window_hu)


def _notes(cases: Sequence[Case], rows: Sequence[Row], protocol: Protocol, seed: int) -> list[str]:
    patients = len(rows[0].per_patient)
    notes = []
    if not rows[0].is_low_dose:
        notes.append(
            "The low-dose row is missing: give --low-dose, so that a method worse than its own "
            "input is seen."
        )
    notes.append("Means are over the images of a patient, then over patients.")
    if patients < 2:
        notes.append("One patient: there is no interval over patients and no paired test.")
    else:
        notes.append(
            f"Intervals: 95 % percentile bootstrap over {patients} patients, "
            f"{statistics.RESAMPLES} resamples, seed {seed}."
        )
    if any(not case.reference.acquisition.patient_id for case in cases):
        notes.append("Files without a patient ID: each file, first folder or study counts as one.")
    if protocol.bits:
        notes.append(
            "Grey levels are cut, not rounded, as the published project does; its JPEG "
            "compression is not repeated."
        )
    named = [(REFERENCE, case.reference) for case in cases]
    named += [item for case in cases for item in case.rows.items()]
    # Other notes of DICOM, and of files left aside, may quote what names a patient.
    notes += dict.fromkeys(
        f"{name}: {note}"
        for name, volume in named
        for note in volume.notes
        if (volume.headers is None and not note.startswith("left aside"))
        or note in plane_notes(volume.direction)
    )
    kernels = {
        (case.reference.acquisition.kernel, volume.acquisition.kernel)
        for case in cases
        for volume in case.rows.values()
    }
    notes += [
        f"The kernel is {one} in the reference but {two} in a row."
        for one, two in sorted(kernels)
        if one and two and one != two
    ]
    undefined = sum(np.isnan(v) for r in rows for image in r.images for v in image.values.values())
    if undefined:
        notes.append(f"{undefined} scores of images without structure are undefined and left out.")
    tests = len(rows) * (len(rows) - 1) // 2
    if tests > 1 and patients > 1:
        notes.append(f"p-values are not corrected for the {tests} pairs of rows.")
    return notes
