"""Bootstrap and permutation test: coverage, enumeration, uniform p-values."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from cddnet.metrics.statistics import EXACT_PATIENTS, bootstrap_interval, paired_test


def enumerated(differences):
    """The p-value by its definition, sign pattern by sign pattern."""
    found = abs(sum(differences))
    patterns = list(itertools.product((-1, 1), repeat=len(differences)))
    far = [
        abs(sum(s * d for s, d in zip(pattern, differences, strict=True))) >= found - 1e-9
        for pattern in patterns
    ]
    return sum(far) / len(patterns)


def test_the_interval_covers_the_mean_as_often_as_theory_says():
    """Of normal values: mean +- 1.96 s sqrt((n - 1) / n) / sqrt(n), so Student's law applies."""
    rng, patients, trials = np.random.default_rng(1), 20, 1500
    covered = 0
    for _ in range(trials):
        low, high = bootstrap_interval(rng.normal(3, 2, patients), rng, resamples=1000)
        covered += low <= 3 <= high
    expected = 1 - 2 * stats.t.sf(1.96 * math.sqrt((patients - 1) / patients), patients - 1)
    error = math.sqrt(expected * (1 - expected) / trials)
    # 4 standard errors, and what 1000 resamples and the tails of 20 values add.
    assert covered / trials == pytest.approx(expected, abs=4 * error + 0.01)


def test_the_interval_is_that_of_the_normal_law_for_many_patients(rng):
    values = rng.normal(3, 2, 400)
    low, high = bootstrap_interval(values, rng)
    half = 1.96 * values.std() / math.sqrt(len(values))
    # A 2.5 % quantile of 10 000 draws has a standard error of 2.7 % of a standard deviation.
    tolerance = 4 * 0.027 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=tolerance)
    assert high == pytest.approx(values.mean() + half, abs=tolerance)


def test_the_same_seed_gives_the_same_interval_and_equal_values_a_point():
    values = np.array([1.0, 5, 2, 8])
    first, again, other = (
        bootstrap_interval(values, np.random.default_rng(seed), resamples=200) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert bootstrap_interval(np.full(5, 2.5), np.random.default_rng(0)) == (2.5, 2.5)


@pytest.mark.parametrize("patients", [2, 3, 5, 8])
def test_the_exact_test_is_the_enumeration(patients, rng):
    for shift in (0, 1, 10):
        differences = rng.normal(shift, 1, patients)
        found = paired_test(differences, rng)
        assert found.p_value == pytest.approx(enumerated(differences), rel=1e-12)
        assert "exact" in found.name
    # All of one sign: only the pattern found and its mirror image lie as far.
    assert found.p_value == pytest.approx(2 ** (1 - patients))


def test_ties_and_zeros_count():
    rng = np.random.default_rng(0)
    assert paired_test(np.array([1.0, 1, -1, 1]), rng).p_value == enumerated([1, 1, -1, 1])
    assert paired_test(np.array([0.1, 0.2, -0.3, 0.3]), rng).p_value == enumerated([1, 2, -3, 3])
    assert paired_test(np.zeros(6), rng).p_value == 1
    assert paired_test(np.zeros(40), rng).p_value == 1


def test_random_flips_estimate_the_same_p_value(rng):
    patients, flips = EXACT_PATIENTS + 1, 20_000
    differences = np.arange(patients) - 0.3 * patients
    signs = 2 * (np.arange(2**patients)[:, None] >> np.arange(patients) & 1) - 1
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    found = paired_test(differences, rng, flips=flips)
    assert "random" in found.name
    assert 0.01 < exact < 0.5
    error = math.sqrt(exact * (1 - exact) / flips)
    assert found.p_value == pytest.approx(exact, abs=4 * error + 1 / flips)
    far = paired_test(np.abs(differences) + 1, rng, flips=999)
    assert 1 / 1000 <= far.p_value < 4 / 1000


@pytest.mark.parametrize(("patients", "trials"), [(8, 3000), (20, 600)])
def test_p_values_are_uniform_where_nothing_differs(patients, trials, rng):
    p_values = np.array(
        [paired_test(rng.standard_t(3, patients), rng, flips=399).p_value for _ in range(trials)]
    )
    # All are multiples of the step.
    step = 2 / 2**patients if patients <= EXACT_PATIENTS else 1 / 400
    for share in (0.0625, 0.25, 0.5, 0.875):
        level = math.floor(share / step + 1e-9) * step
        error = math.sqrt(level * (1 - level) / trials)
        assert np.mean(p_values <= level + 1e-12) == pytest.approx(level, abs=4 * error)


def test_a_difference_is_found(rng):
    assert paired_test(rng.normal(2, 1, 12), rng).p_value < 0.01
    assert paired_test(-rng.normal(2, 1, 40), rng).p_value < 0.01


def test_one_patient_proves_nothing(rng):
    for function in (bootstrap_interval, paired_test):
        with pytest.raises(ValueError, match="two"):
            function(np.array([1.0]), rng)


def test_sixteen_patients_are_enumerated_and_seventeen_are_not(rng):
    differences = np.linspace(-1, 3, EXACT_PATIENTS + 1)
    assert paired_test(differences[1:], rng).name.startswith("exact")
    assert "random flips" in paired_test(differences, rng, flips=50).name
