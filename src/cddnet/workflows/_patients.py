"""From scores of images to figures over patients: means, intervals and paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cddnet.metrics import statistics
from cddnet.workflows._evaluation import Comparison, ImageScores, Interval, Metric, Row

LOW_DOSE = "low dose"


def patient_rows(
    images: Mapping[str, Sequence[ImageScores]], metrics: Sequence[Metric], seed: int
) -> tuple[Row, ...]:
    """Means per patient and over patients of each row's images; what is worse than the low dose."""
    low_dose: dict[str, Interval] = {}
    rows = []
    for name, scores in images.items():
        per_patient: dict[str, dict[str, float]] = {}
        for patient in dict.fromkeys(image.patient for image in scores):
            own = [image.values for image in scores if image.patient == patient]
            per_patient[patient] = {
                metric.name: _mean([values[metric.name] for values in own]) for metric in metrics
            }
        mean = {
            metric.name: _interval([values[metric.name] for values in per_patient.values()], seed)
            for metric in metrics
        }
        if name == LOW_DOSE:
            low_dose = mean
        rows.append(
            Row(
                name=name,
                is_low_dose=name == LOW_DOSE,
                images=tuple(scores),
                per_patient=per_patient,
                mean=mean,
                flagged=tuple(
                    metric.name
                    for metric in metrics
                    if metric.name in low_dose and _worse(metric, mean, low_dose)
                ),
            )
        )
    return tuple(rows)


def _worse(metric: Metric, mean: dict[str, Interval], low_dose: dict[str, Interval]) -> bool:
    value, least = mean[metric.name].value, low_dose[metric.name].value
    return value < least if metric.higher_is_better else value > least


def paired_comparisons(
    rows: Sequence[Row], metrics: Sequence[Metric], seed: int
) -> tuple[Comparison, ...]:
    """Every later row minus every earlier one, in each metric."""
    found = []
    for earlier, later in combinations(rows, 2):
        for metric in metrics:
            values = (
                np.array([scores[metric.name] for scores in row.per_patient.values()])
                for row in (later, earlier)
            )
            with np.errstate(invalid="ignore"):
                differences = np.subtract(*values)
            usable = len(differences) > 1 and bool(np.isfinite(differences).all())
            test = statistics.paired_test(differences, _rng(seed)) if usable else None
            found.append(
                Comparison(
                    metric=metric.name,
                    first=later.name,
                    second=earlier.name,
                    difference=_interval(differences, seed),
                    p_value=test.p_value if test else None,
                    test=test.name if test else "none: it needs two patients and finite scores",
                    patients=len(differences),
                )
            )
    return tuple(found)


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Of what is defined; NaN where nothing is."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _interval(values: Sequence[float] | NDArray[np.float64], seed: int) -> Interval:
    """Over patients; no bounds for a single patient, or where scores are infinite."""
    defined = np.array([value for value in values if not np.isnan(value)])
    if len(defined) < 2 or not np.isfinite(defined).all():
        return Interval(value=_mean(values))
    low, high = statistics.bootstrap_interval(defined, _rng(seed))
    return Interval(value=_mean(values), low=low, high=high)


def _rng(seed: int) -> np.random.Generator:
    """Afresh for each figure, so that a figure does not depend on which others are computed."""
    return np.random.default_rng(seed)
