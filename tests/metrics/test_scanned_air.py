"""Air of a scan lies in the circle around the middle; ranks need differences of any size."""

import numpy as np
import pytest
from scipy import ndimage

from cddnet.metrics.coverage import Blocks, rank_correlation, tissues


@pytest.mark.parametrize("shape", [(61, 61), (60, 74), (83, 62)])
def test_air_fills_the_circle_around_the_body(shape):
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in shape)
    radius = np.hypot(rows[:, None], columns)
    hu = np.where(radius < 10, 40.0, -1000.0)
    # The rim of two pixels, and one more from what is something else.
    circle = ndimage.binary_erosion(radius < min(shape) / 2 - 2)
    # The blur of two pixels has left air its value from 8 pixels on.
    beyond = radius > 19
    assert np.array_equal(tissues(hu)["air"][beyond], circle[beyond])
    assert circle[beyond].any()


def test_blocks_whose_values_span_one_have_ranks():
    blocks = Blocks(np.array([1.0, 1.25, 2.0]), np.array([5.0, 5.5, 6.0]))
    assert rank_correlation(blocks) == pytest.approx(1)
    turned = blocks._replace(predicted_hu=blocks.predicted_hu[::-1])
    assert rank_correlation(turned) == pytest.approx(-1)
