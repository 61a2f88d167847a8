"""The observer on open images that others simulated; see low_contrast_phantom.md."""

from pathlib import Path

import numpy as np
import pytest

from cddnet.metrics.detectability import Trials, channelised_hotelling, resampling

REGION, RADIUS_PX, CONTRAST_HU = 23, 5.5, 30.0
# Row, column, radius and HU of the inserts; 150 mm of water are 232 pixels.
INSERTS = ((24.6, 90.3, 2.3, 14), (24.6, 24.6, 3.9, 7), (90.4, 24.6, 5.4, 5), (90.5, 90.5, 7.7, 3))


@pytest.fixture(scope="module")
def images():
    with np.load(Path(__file__).with_name("low_contrast_phantom.npz")) as file:
        return {name: file[name].astype(float) for name in file.files}


def disc(side, row, column, radius_px):
    rows, columns = np.indices((side, side))
    return np.hypot(rows - row, columns - column) <= radius_px


def trials(absent):
    """A disc in each of 25 regions of five images; of the next image in the same place, none."""
    regions = absent.reshape(5, 5, REGION, 5, REGION).swapaxes(2, 3)
    signal = CONTRAST_HU * disc(REGION, REGION // 2, REGION // 2, RADIUS_PX)
    present = (regions + signal).reshape(-1, REGION, REGION)
    other = np.roll(regions, 1, axis=0).reshape(-1, REGION, REGION)
    return Trials(present, other, np.tile(np.arange(25), 5))


def test_inserts_have_their_contrast(images):
    absent = images["absent_100"]
    for row, column, radius_px, contrast_hu in INSERTS:
        inside = disc(115, row, column, radius_px)
        found = images["present_100"][:, inside].mean() - absent[:, inside].mean()
        spread = absent[:, inside].mean(axis=1).std(ddof=1)
        # Four standard errors of two and of five images, their spread known from five.
        assert abs(found - contrast_hu) < 4 * spread * np.sqrt(1 / 2 + 1 / 5)


def test_detectability_goes_with_the_root_of_the_dose(images):
    found = {}
    for dose in ("010", "100"):
        observed = trials(images[f"absent_{dose}"])
        samples = resampling(observed.place, np.random.default_rng(0))
        found[dose] = channelised_hotelling(observed, 2 * RADIUS_PX, samples)
    low, full = found["010"].d_prime, found["100"].d_prime
    error = np.hypot(*((d.high - d.low) / 3.92 / d.value for d in (low, full)))
    assert full.low > low.high
    assert np.log(full.value / low.value) == pytest.approx(np.log(10) / 2, abs=4 * error)
    assert "read with care" in found["010"].within
