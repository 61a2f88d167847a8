"""Pairs of positions: mutual, within the tolerance, whatever the order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cddnet.workflows._pairing import nearest

PLACES = st.lists(st.integers(0, 400), min_size=1, max_size=30, unique=True)


def pairs_of(full, low, tolerance_mm):
    found = nearest(np.array(full, float), np.array(low, float), tolerance_mm)
    return {(full[index], low[other]) for index, other in found}


@given(PLACES, PLACES, st.randoms(use_true_random=False))
def test_order_decides_nothing(full, low, random):
    expected = {(place, place) for place in set(full) & set(low)}
    assert pairs_of(full, low, 0.3) == expected
    random.shuffle(full)
    random.shuffle(low)
    assert pairs_of(full, low, 0.3) == expected


@given(PLACES, PLACES, st.floats(0, 5))
def test_no_slice_is_in_two_pairs_and_none_is_too_far(full, low, tolerance_mm):
    found = pairs_of(full, low, tolerance_mm)
    assert len({one for one, _ in found}) == len({other for _, other in found}) == len(found)
    assert all(abs(one - other) <= tolerance_mm for one, other in found)


def test_the_nearest_of_several_is_taken():
    assert pairs_of([0, 3, 6], [0.2, 3.1, 2.9, 6.25], 0.3) in (
        {(0, 0.2), (3, 3.1), (6, 6.25)},
        {(0, 0.2), (3, 2.9), (6, 6.25)},
    )
    assert pairs_of([0, 3], [2.8, 2.9], 0.3) == {(3, 2.9)}
