"""Values that can be HU of a body, and values that cannot."""

import numpy as np
import pytest

from cddnet.intensity.plausible import ADDED_OFFSETS, USUAL_OFFSETS, not_hu
from trunk import trunk

# Beyond what rounding changes of a share.
MANY = 100_000


def values(**options):
    return trunk(**options).ravel()


def with_share(share, hu):
    """A trunk, a share of which is replaced by values (N,) drawn in turn."""
    found = values()
    count = round(share * found.size)
    found[np.random.default_rng(0).permutation(found.size)[:count]] = np.resize(hu, count)
    return found


def test_a_trunk_can_be_hu():
    assert not_hu(values()) == ""


@pytest.mark.parametrize("offset", USUAL_OFFSETS)
def test_a_moved_trunk_cannot(offset):
    assert not_hu(values() + offset)


@pytest.mark.parametrize(
    "change",
    [
        lambda hu: (hu + 1024) / 4096,
        lambda hu: hu / 1024,
        lambda hu: (hu + 1000) / 1000 * 0.19,
        lambda hu: np.clip((hu + 160) / 400, 0, 1) * 2 - 1,
        lambda hu: 0 * hu,
    ],
    ids=["RED-CNN", "network range", "attenuation per cm", "-1 to 1", "empty"],
)
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_normalised_values_cannot(change, noise, rng):
    found = change(values())
    reason = not_hu(found + noise * rng.standard_normal(found.size))
    assert "all lie between" in reason


@pytest.mark.parametrize(
    ("hu", "share", "word"),
    [
        (np.linspace(-33000, -1200, 999), 0.4, "below"),
        (np.linspace(-9000, -2100, 999), 0.04, "below"),
        (np.array([-1200.0]), 0.25, "below"),
        (np.array([62512.0]), 0.2, "above"),
        (np.linspace(31744, 65000, 999), 0.002, "above"),
        (np.array([2.0**31]), 0.01, "above"),
    ],
)
def test_values_no_scan_has_cannot(hu, share, word):
    assert word in not_hu(with_share(share, hu))


@pytest.mark.parametrize(
    ("hu", "share"),
    [
        (np.linspace(3000, 30000, 999), 0.03),
        (np.array([30710.0]), 0.05),
        (np.linspace(-3000, -1100, 999), 0.01),
        (np.array([62512.0]), 0.0005),
    ],
    ids=["metal", "metal at the end of the extended scale", "streaks", "a few wrong pixels"],
)
def test_metal_and_its_streaks_can(hu, share):
    assert not_hu(with_share(share, hu)) == ""


@pytest.mark.parametrize("noise_hu", [40.0, 120.0, 200.0])
def test_noise_of_air_can(noise_hu):
    loud = values(noise_hu=noise_hu)
    assert np.mean(loud < -1100) > (0.05 if noise_hu > 100 else 0)
    assert not_hu(loud) == ""
    # And does not if it is all on one side, as after a shift of the air.
    shifted = np.where(loud < -500, loud - 250, loud)
    assert not_hu(shifted)


def test_nothing_is_no_hu():
    assert not_hu(np.zeros(0))


def test_the_body_is_asked_only_where_all_else_is_air():
    air = np.random.default_rng(0).normal(-1000, 12, MANY)
    body = values()[values() > -950]
    small = np.concatenate([air, body[:1000]])
    assert not_hu(small)
    assert not_hu(small, np.zeros(0))
    assert not_hu(small, body[:1000]) == ""
    assert not_hu(small, body[:1000] + 1000)
    assert not_hu(values() + 1024, body)


def test_offsets_are_those_that_tools_add():
    assert {1024, 1000, 32768} == set(ADDED_OFFSETS) < set(USUAL_OFFSETS)
