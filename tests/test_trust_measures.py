"""Measures of trust against methods of which the answer is known: nothing, a blur, an offset."""

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from cddnet.formats import read_volume
from cddnet.physics.kernel import SOFT_KERNEL
from cddnet.physics.lesion import Lesion, lesion_image
from cddnet.training.slices import full_dose_slices
from cddnet.workflows.demo import demo_series

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _trust_noise
import _trust_residual
import _trust_tissue
import ideal
from _trust import FULL_DOSE, LOW_DOSE

METHODS = {
    "nothing": lambda hu: hu,
    "blur": lambda hu: ndimage.gaussian_filter(hu, 1.5),
    "offset": lambda hu: hu + np.float32(5),
    "half": lambda hu: hu / 2,
}


@pytest.fixture(scope="module")
def patients():
    return {"demo": list(islice(full_dose_slices(read_volume(demo_series())), 2))}


def by_measure(lines):
    return {line.measure: line.values for line in lines}


def test_a_blur_lowers_the_frequency_and_an_offset_does_not(patients):
    shift = by_measure(_trust_noise.texture(patients, METHODS))["NPS mean frequency less full dose"]
    assert shift[FULL_DOSE] == 0
    assert shift["nothing"] == shift[LOW_DOSE]
    assert shift["offset"] == pytest.approx(shift[LOW_DOSE], abs=1e-6)
    assert shift["blur"] < shift[LOW_DOSE] - 0.02


def test_an_offset_is_the_bias(patients):
    found = by_measure(_trust_tissue.bias(patients, METHODS))
    for tissue in ("fat", "organ"):
        values = found[f"bias, {tissue}"]
        assert values[FULL_DOSE] == 0
        assert values["offset"] - values[LOW_DOSE] == pytest.approx(5, abs=1e-3)
        assert values["nothing"] == values[LOW_DOSE]


def test_contrast_is_the_share_that_is_left(patients):
    found = by_measure(_trust_tissue.contrast(patients, METHODS))
    for lesion in ("5 mm, +30 HU disc", "10 mm, +12 HU disc"):
        kept = found[f"contrast kept, {lesion}"]
        assert kept["nothing"] == pytest.approx(1, abs=1e-6)
        assert kept["offset"] == pytest.approx(1, abs=1e-4)
        assert kept["half"] == pytest.approx(0.5, abs=1e-4)
        assert kept["blur"] < 0.95


def test_full_dose_as_it_is_has_the_error_of_the_input():
    for line in _trust_noise.full_dose_phantoms({"nothing": METHODS["nothing"]}):
        assert line.values["nothing"] == 1


def test_what_is_mirrored_comes_back_and_what_is_not_shows(patients):
    lopsided = {
        "blur": METHODS["blur"],
        "one side": lambda hu: np.roll(ndimage.gaussian_filter(hu, 1.5), 1, axis=1),
    }
    found = by_measure(_trust_residual.consistency(patients, lopsided))
    change = found["change where mirrored, of what is removed"]
    assert change["blur"] < 1e-5
    assert change["one side"] > 0.1
    # Half a pixel: a blur commutes with it but at the border.
    moved = found["change where moved by half a pixel, of what is removed"]
    assert max(moved.values()) < 0.02


def test_the_matched_filter_of_white_noise_sees_a_lesion_by_its_energy():
    noise = np.random.default_rng(3).normal(0, 20, (12, 96, 96))
    lesion = Lesion(diameter_mm=5, contrast_hu=30)
    shown = lesion_image((96, 96), np.array([[40, 61]]), lesion, pixel_mm=0.8, kernel=SOFT_KERNEL)
    d_prime, z = ideal.matched(noise, SOFT_KERNEL)
    assert d_prime == pytest.approx(np.sqrt(np.square(shown).sum()) / 20, rel=0.03)
    assert z.std() == pytest.approx(1, rel=0.03)
    # The spectrum is estimated from what is filtered; so small a lesion hardly changes it.
    noise[0] += shown
    d_prime, with_lesion = ideal.matched(noise, SOFT_KERNEL)
    assert (with_lesion - z)[0, 40, 61] == pytest.approx(d_prime, rel=0.05)


def test_what_is_kept_at_most_is_the_mean_of_what_is_shown():
    rng = np.random.default_rng(4)
    for d_prime, threshold, uncounted in ((3.0, 3.5, 0.5), (1.0, 2.0, 0.7), (5.0, 3.0, 0.0)):
        z = rng.normal(d_prime, 1, 200_000)
        shown = np.sign(z) * np.where(np.abs(z) > threshold, 1.0, uncounted)
        deviations = 5 * shown.std() / np.sqrt(len(z))
        most = ideal.most_kept(d_prime, threshold, uncounted)
        assert most == pytest.approx(shown.mean(), abs=deviations)


def test_less_noise_or_more_false_structures_keep_more():
    noise = ndimage.gaussian_filter(
        np.random.default_rng(5).normal(0, 60, (6, 128, 128)), (0, 1, 1), mode="wrap"
    )
    few, many = (ideal.ideal(noise, allowed, SOFT_KERNEL).kept for allowed in (3.0, 30.0))
    quieter = ideal.ideal(noise / 2, 3.0, SOFT_KERNEL).kept
    assert 0 < few < many < 1
    assert few < quieter


def test_doing_nothing_keeps_all_and_half_of_it_half():
    low = _trust_noise.water_slices(SOFT_KERNEL, 0.25, 2, named="ideal")
    made, kept = ideal.of_network(low, METHODS["nothing"], SOFT_KERNEL)
    fewer, half = ideal.of_network(low, METHODS["half"], SOFT_KERNEL)
    assert kept == pytest.approx(1, abs=1e-4)
    assert half == pytest.approx(0.5, abs=1e-4)
    assert 0 < fewer < made / 2
