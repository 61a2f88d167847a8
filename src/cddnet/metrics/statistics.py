"""How sure a mean over patients is: bootstrap interval and paired permutation test."""

# Shapes: P patient.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
FLIPS = 20_000
# All 2^P sign patterns are tried up to here.
EXACT_PATIENTS = 16

# Equal sums differ by rounding when their terms are added in another order.
_TIE = 1e-9


class Bounds(NamedTuple):
    low: float
    high: float


class PairedTest(NamedTuple):
    """p_value: two-sided.  name: of the test, in words."""

    p_value: float
    name: str


def bootstrap_interval(
    values: NDArray[np.floating], rng: np.random.Generator, *, resamples: int = RESAMPLES
) -> Bounds:
    """95 % percentile bootstrap interval of the mean of independent values (P,).

    Slices of one patient are not independent: average them first. Below some ten patients the
    interval is too narrow, by the factor sqrt((P - 1) / P) and by the normal's quantile for t's.
    Raises: ValueError for fewer than two values.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if len(values) < 2:
        raise ValueError(f"an interval over patients needs two of them, found {len(values)}")
    drawn = rng.integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return Bounds(float(low), float(high))


def paired_test(
    differences: NDArray[np.floating], rng: np.random.Generator, *, flips: int = FLIPS
) -> PairedTest:
    """Sign-flip permutation test of a mean paired difference (P,) against zero.

    Exact by enumeration up to 16 patients, by random flips above; two-sided.  The least possible
    p-value is 2^(1 - P), so five patients cannot reach 0.05.
    Raises: ValueError for fewer than two differences.
    Source: Fisher, The Design of Experiments, 1935, section 21; Phipson and Smyth, Stat. Appl.
    Genet. Mol. Biol. 9:39, 2010, for the count of random flips.
    """
    patients = len(differences)
    if patients < 2:
        raise ValueError(f"a paired test needs two patients, found {patients}")
    if patients <= EXACT_PATIENTS:
        # The other half of the patterns mirrors this one.
        patterns = np.arange(2 ** (patients - 1))[:, None] >> np.arange(patients) & 1
        count, total = _as_far(differences, patterns), len(patterns)
        return PairedTest(count / total, "exact sign-flip permutation test")
    patterns = rng.integers(0, 2, size=(flips, patients))
    p_value = (1 + _as_far(differences, patterns)) / (1 + flips)
    return PairedTest(p_value, f"sign-flip permutation test, {flips} random flips")


def _as_far(differences: NDArray[np.floating], patterns: NDArray[np.integer]) -> int:
    """Patterns of signs under which the sum lies at least as far from zero as the one found."""
    sums = np.abs((2 * patterns - 1) @ differences)
    slack = _TIE * np.abs(differences).sum()
    return int(np.count_nonzero(sums >= abs(differences.sum()) - slack))
