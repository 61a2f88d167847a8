"""Measures of trust against methods of which the answer is known: nothing, a blur, an offset."""

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from cddnet.formats import read_volume
from cddnet.training.slices import full_dose_slices
from cddnet.workflows.demo import demo_series

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _trust_noise
import _trust_residual
import _trust_tissue
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
