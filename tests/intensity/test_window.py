"""HU <-> grey levels of a window."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cddnet.intensity.window import from_grey, hu_to_window, to_grey, window_to_hu

every_depth = pytest.mark.parametrize("bits", [8, 16])
windows = st.builds(
    lambda low, width: (low, low + width), st.floats(-2000.0, 2000.0), st.floats(100.0, 4000.0)
)


@every_depth
@given(window_hu=windows)
def test_every_grey_level_comes_back(bits, window_hu):
    grey = np.arange(2**bits)
    hu = from_grey(grey, window_hu, bits)
    assert hu.dtype == np.float32
    assert hu[[0, -1]] == pytest.approx(window_hu, rel=1e-6, abs=1e-3)
    assert np.array_equal(to_grey(hu, window_hu, bits), grey)


@every_depth
@given(window_hu=windows, where=st.floats(0.0, 1.0))
def test_rounding_costs_at_most_half_a_level(bits, window_hu, where):
    low, high = window_hu
    hu = np.array([low + where * (high - low)], np.float32)
    back = from_grey(to_grey(hu, window_hu, bits), window_hu, bits)
    float32_hu = 4 * np.spacing(np.float32(max(abs(low), abs(high))))
    assert abs(back - hu)[0] <= (high - low) / (2**bits - 1) / 2 + float32_hu


def test_levels_change_halfway():
    hu = np.array([0.49, 0.51, 253.49, 253.51])
    assert np.array_equal(to_grey(hu, (0.0, 255.0), 8), [0, 1, 253, 254])


@every_depth
def test_values_outside_are_clipped(bits):
    hu = np.array([-1e6, -161.0, -160.0, 240.0, 241.0, 1e6])
    top = 2**bits - 1
    assert np.array_equal(to_grey(hu, (-160.0, 240.0), bits), [0, 0, 0, top, top, top])


@given(window_hu=windows)
def test_fractions_come_back(window_hu):
    fraction = np.linspace(0, 1, 101)
    back = hu_to_window(window_to_hu(fraction, window_hu), window_hu)
    # One float32 rounding of HU up to 6000, over a width of at least 100 HU.
    assert np.abs(back - fraction).max() <= 6000 * 2**-23 / 100
