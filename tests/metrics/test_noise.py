"""Measured noise against noise of known size."""

import math

import numpy as np
import pytest

from cddnet.metrics.noise import inserted_noise

# Degrees of freedom of a 15 x 15 region after a quadratic detrend; one standard deviation's error.
FREEDOM = 15**2 - 6
ONE_REGION = 1 / math.sqrt(2 * FREEDOM)


def tissue(rng, shape, noise_hu):
    """Soft tissue of 60 HU in lung, with white noise."""
    base = np.full(shape, -850.0)
    base[10:-10, 10:-10] = 60
    return base + rng.normal(0, noise_hu, shape)


@pytest.mark.parametrize(("reference_hu", "inserted_hu"), [(10.0, 20.0), (15.0, 8.0), (6.0, 30.0)])
def test_levels_of_white_noise_are_found(rng, reference_hu, inserted_hu):
    pairs = []
    for _ in range(3):
        full_dose = tissue(rng, (129, 173), reference_hu)
        pairs.append((full_dose, full_dose + rng.normal(0, inserted_hu, full_dose.shape)))
    found = inserted_noise(pairs)
    # The mode of many regions is nearer than one of them; the inserted noise is their mean.
    independent = 3 * (109 // 15) * (153 // 15)
    inserted_error = 4 * ONE_REGION / math.sqrt(independent)
    assert found.reference_hu == pytest.approx(reference_hu, rel=ONE_REGION)
    assert found.inserted_hu == pytest.approx(inserted_hu, rel=inserted_error)
    expected = (inserted_hu / reference_hu) ** 2
    assert found.ratio == pytest.approx(expected, rel=2 * (ONE_REGION + inserted_error))
    assert found.noise_free_gain_db == pytest.approx(10 * math.log10(found.ratio))


def test_slow_trends_do_not_count(rng):
    full_dose = tissue(rng, (129, 173), 10.0)
    low_dose = full_dose + rng.normal(0, 20, full_dose.shape)
    rows, columns = np.indices(full_dose.shape) / 100
    trend = 12 * rows - 9 * columns + 8 * (rows - 0.6) ** 2 + 7 * rows * columns
    plain = inserted_noise([(full_dose, low_dose)])
    tilted = inserted_noise([(full_dose + trend, low_dose + 2 * trend)])
    assert tilted.regions == plain.regions
    assert tilted[:3] == pytest.approx(plain[:3], rel=1e-6)


def test_vessels_do_not_raise_the_level(rng):
    full_dose = tissue(rng, (257, 257), 10.0)
    full_dose[40:90:10, 40:200] += 80
    low_dose = full_dose + rng.normal(0, 20, full_dose.shape)
    assert inserted_noise([(full_dose, low_dose)]).reference_hu == pytest.approx(10, rel=ONE_REGION)


def test_nothing_inserted_is_nothing(rng):
    full_dose = tissue(rng, (129, 173), 10.0)
    assert inserted_noise([(full_dose, full_dose.copy())]).ratio == 0


@pytest.mark.parametrize("side", [20, 45])
def test_too_little_soft_tissue_is_refused(rng, side):
    image = np.full((129, 129), -850.0) + rng.normal(0, 10, (129, 129))
    image[40 : 40 + side, 40 : 40 + side] += 910
    with pytest.raises(ValueError, match="10 are needed"):
        inserted_noise([(image, image)])
