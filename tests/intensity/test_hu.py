"""Stored values <-> HU: exact over every legal range, and never wrapped."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cddnet.intensity.hu import hu_to_stored, stored_to_hu

LEGAL = [(0, 4095), (-2048, 2047), (0, 65535), (-32768, 32767)]
every_range = pytest.mark.parametrize("legal", LEGAL)
# Float32 HU hold a stored step if |HU| 2^-24 < slope / 2: wide of it for these.
slopes = st.floats(0.01, 100.0) | st.floats(-100.0, -0.01)
intercepts = st.floats(-10_000.0, 10_000.0)


@every_range
@given(slope=slopes, intercept=intercepts)
@example(slope=1.0, intercept=-1024.0)
@example(slope=0.1, intercept=-1000.3)
def test_every_stored_value_comes_back(legal, slope, intercept):
    stored = np.arange(legal[0], legal[1] + 1)
    hu = stored_to_hu(stored, slope, intercept)
    assert hu.dtype == np.float32
    assert np.array_equal(hu_to_stored(hu, slope, intercept, legal), stored)


def test_unsigned_storage_does_not_wrap_below_zero():
    stored = np.array([0, 1, 1023, 1024, 65535], np.uint16)
    expected = np.array([-1024, -1023, -1, 0, 64511], np.float32)
    assert np.array_equal(stored_to_hu(stored, 1.0, -1024.0), expected)


@every_range
@given(slope=st.floats(0.01, 100.0), intercept=intercepts, beyond=st.floats(1.0, 1e6))
def test_values_outside_are_clipped(legal, slope, intercept, beyond):
    ends = np.array(legal) * slope + intercept
    outside = np.array([ends[0] - slope * beyond, ends[1] + slope * beyond])
    assert tuple(hu_to_stored(outside, slope, intercept, legal)) == legal


@given(hu=st.floats(-900.0, 2900.0), slope=st.floats(0.5, 2.0))
def test_the_nearest_stored_value_is_taken(hu, slope):
    stored = hu_to_stored(np.array([hu]), slope, -1024.0, (-32768, 32767))
    assert abs(stored[0] * slope - 1024.0 - hu) <= slope / 2 * (1 + 1e-12) + 1e-9
