"""The body in a slice: lungs in, table and air out."""

import numpy as np
import pytest

from cddnet.metrics._body import body_mask


def disc(shape, centre, axes):
    rows, columns = np.indices(shape)
    return ((rows - centre[0]) / axes[0]) ** 2 + ((columns - centre[1]) / axes[1]) ** 2 <= 1


@pytest.fixture
def chest(rng):
    """A chest with lungs and gas lying on a thin table: (image in HU, true body)."""
    shape = (201, 251)
    body = disc(shape, (90, 125), (70, 100))
    hu = np.where(body, 40.0, -1000.0)
    for centre in ((90, 80), (90, 170)):
        hu[disc(shape, centre, (40, 30))] = -850
    hu[disc(shape, (130, 125), (8, 8))] = -1000
    hu[160:165, 20:230] = 150  # touches the back
    return hu + rng.normal(0, 20, shape), body


def test_the_body_is_filled_and_alone(chest):
    hu, body = chest
    found = body_mask(hu)
    assert found.dtype == np.bool_
    # Opening may round corners and keep a stub of table, a few pixels along the rim.
    overlap = 2 * (found & body).sum() / (found.sum() + body.sum())
    assert overlap > 0.99
    assert found[90, 80]
    assert found[130, 125]
    assert not found[162, 30]
    assert not found[5, 5]


def test_a_smaller_object_beside_the_body_is_left_out(chest):
    hu, body = chest
    hu[3:33, 3:33] = 40
    found = body_mask(hu)
    assert not found[3:33, 3:33].any()
    assert found[body].mean() > 0.99


def test_every_pixel_where_nothing_is_found():
    assert body_mask(np.full((33, 47), -1000.0)).all()


@pytest.mark.parametrize(("thickness", "stays"), [(5, False), (6, False), (7, True)])
def test_what_is_thinner_than_seven_pixels_is_opened_away(thickness, stays):
    hu = np.full((60, 80), -1000.0)
    hu[20 : 20 + thickness, 10:70] = 100
    found = body_mask(hu)
    assert found.all() != stays
    if stays:
        # An opening by three crosses cuts corners, three pixels at most.
        assert found[20:27, 13:67].all()
        assert not found[hu < 0].any()


def test_the_body_is_what_lies_above_minus_500_hu():
    hu = np.full((40, 40), -1000.0)
    hu[8:32, 8:32] = -495
    assert not body_mask(hu).all()
    hu[8:32, 8:32] = -505
    assert body_mask(hu).all()
