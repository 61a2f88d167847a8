"""What the figures of trainings say: convergence, paired effects with intervals, verdicts.

An interval over patients of one training says nothing about the next training. Over patients and
seeds it does: both are random and crossed, as each training scores all patients.
"""

# Shapes: S seed, P patient.

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cddnet.metrics.statistics import bootstrap_interval

LARGEST_RISE_DB = 0.05
CONVERGENCE_RULE = (
    "not converged: on the validation patients the mean of the last two points lies more than "
    f"{LARGEST_RISE_DB} dB above the curve at 80 % of the training (interpolated; mean over the "
    "seeds). No claim is made over such a row."
)
_LAST_FIFTH = 0.8
_FEWEST_POINTS = 5
_AGAINST = re.compile(r"^#\s*against:\s*(\S+)\s*$", re.MULTILINE)


class Effect(NamedTuple):
    """A mean difference with its 95 % interval; NaN bounds where there is none."""

    value: float
    low: float
    high: float


def rise_db(curve: Sequence[tuple[int, float]]) -> float:
    """Rise over the last fifth of a training; infinite where too few points tell.

    curve: (step, dB), ascending, the last one at the end.
    """
    if len(curve) < _FEWEST_POINTS:
        return math.inf
    steps, values = np.array(curve, float).T
    return float(values[-2:].mean() - np.interp(_LAST_FIFTH * steps[-1], steps, values))


def is_converged(curves: Sequence[Sequence[tuple[int, float]]]) -> bool:
    """By the mean rise of a row's trainings; a row without any, taken as it is, is."""
    if not curves:
        return True
    return float(np.mean([rise_db(curve) for curve in curves])) <= LARGEST_RISE_DB


def over_patients(differences: NDArray[np.floating]) -> Effect:
    """Mean over patients (P,) with its 95 % bootstrap interval."""
    value = float(np.mean(differences))
    if len(differences) < 2:
        return Effect(value, math.nan, math.nan)
    return Effect(value, *bootstrap_interval(differences, np.random.default_rng(0)))


def over_patients_and_seeds(differences: NDArray[np.floating]) -> Effect:
    """Mean of differences (S, P) with its 95 % interval, patients and seeds random and crossed.

    The variance is that of the seeds' means over S plus that of the patients' means over P, with
    Student's t at Satterthwaite's degrees of freedom: a bootstrap of three seeds is far too narrow.
    With one seed the patients alone count.
    Source: Satterthwaite, Biometrics Bulletin 2(6), 1946.
    """
    value, parts = float(np.mean(differences)), []
    for axis, count in enumerate(differences.shape):
        if count > 1:
            means = differences.mean(axis=1 - axis)
            parts.append((float(means.var(ddof=1)) / count, count - 1))
    if not parts:
        return Effect(value, math.nan, math.nan)
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Effect(value, value, value)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    return Effect(value, value - half, value + half)


def verdict(effect: Effect, *, converged: bool) -> str:
    """What may be said of a difference."""
    if not converged:
        return "not converged"
    if effect.low > 0:
        return "higher"
    return "lower" if effect.high < 0 else "no effect shown"


def against(recipe: str) -> str | None:
    """The row that a recipe's text holds itself against: `# against: STEM`."""
    found = _AGAINST.search(recipe)
    return found.group(1) if found else None


def about(recipe: str) -> str:
    """The first comment of a recipe's text, in one line."""
    for line in recipe.splitlines():
        text = line.removeprefix("#").strip()
        if line.startswith("#") and text and not _AGAINST.match(line):
            return text
    return ""


def shown(effect: Effect, decimals: int) -> str:
    """With its sign and interval: "+0.12 [-0.01, +0.25]"."""
    text = f"{effect.value:+.{decimals}f}"
    if math.isnan(effect.low):
        return text
    return f"{text} [{effect.low:+.{decimals}f}, {effect.high:+.{decimals}f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, and an empty one."""
    lines = [head, ["---"] * len(head), *rows]
    escaped = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    return [*("| " + " | ".join(line) + " |" for line in escaped), ""]
