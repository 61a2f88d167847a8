"""Low dose inserted into a series, slice by slice."""

import numpy as np
import pytest

from cddnet.errors import GeometryError
from cddnet.formats import read_volume
from cddnet.physics.beam import SliceGeometry
from cddnet.physics.dose import insert_noise, rng_for
from cddnet.volume import CTVolume
from cddnet.workflows.demo import demo_series
from cddnet.workflows.simulate import simulate_volume

GEOMETRY = SliceGeometry(pixel_mm=3.0)


@pytest.fixture
def body():
    """Two slices of a disc in air with a padded corner."""
    rows, columns = np.indices((63, 80))
    inside = np.hypot(rows - 31, columns - 40) < 25
    hu = np.where(inside, 40.0, -1000.0).astype(np.float32)
    hu[:9, :9] = -2000
    return np.stack([hu, hu])


def volume_of(hu, **fields):
    fields = {"thickness_mm": 5.0, "series_uid": "1.2.3"} | fields
    padding = hu[0] == -2000
    return CTVolume.from_hu(hu, (5.0, 3.0, 3.0), read_padding=lambda index: padding, **fields)


def test_the_noise_is_that_of_the_physics_and_padding_stays(body):
    out = simulate_volume(volume_of(body), 0.25, 7)
    padding = body[0] == -2000
    for index in (0, 1):
        filled = np.where(padding, np.float32(-1000), body[index])
        expected = insert_noise(filled, GEOMETRY, rng_for("1.2.3", index, 7), dose_fraction=0.25)
        expected = np.where(padding, body[index], np.maximum(expected.hu, -1024))
        assert np.array_equal(out.read_slice(index), expected)
    assert not np.array_equal(*out.hu)


def test_each_slice_depends_on_itself_alone(body):
    out = simulate_volume(volume_of(body), 0.25, 7)
    last_first = [out.read_slice(1), out.read_slice(0)][::-1]
    assert np.array_equal(np.stack(last_first), out.hu)
    other = simulate_volume(volume_of(body, series_uid="1.2.4"), 0.25, 7)
    assert not np.array_equal(other.hu, out.hu)


def test_the_full_dose_is_the_source(body):
    assert np.array_equal(simulate_volume(volume_of(body), 1.0, 7).hu, body)


def test_what_lies_below_the_floor_already_is_not_lifted(body):
    body[:, 40:, :9] = -1030
    out = simulate_volume(volume_of(body), 0.001, 7).hu
    below = body == -1030
    assert out[below].min() == -1030
    assert out[~below & (body != -2000)].min() == -1024


def test_the_record_decides_the_pixels(body):
    (step,) = simulate_volume(volume_of(body), 0.25, 7).derivation
    told = dict(step.parameters)
    assert (told["dose_fraction"], told["seed"]) == ("0.25", "7")
    assert list(step.parameters) == sorted(step.parameters)
    assert step.description.isascii()


def test_pixels_that_are_not_square_are_refused(body):
    with pytest.raises(GeometryError, match="square"):
        simulate_volume(CTVolume.from_hu(body, (5.0, 3.0, 2.0)), 0.25, 7)


def test_the_demo_series_can_be_simulated():
    volume = read_volume(demo_series())
    low_dose = simulate_volume(volume, 0.25, 0)
    added = (low_dose.read_slice(5) - volume.read_slice(5))[volume.read_slice(5) > 0]
    # 33 HU in the large patient of the calibration; this one is of mean size.
    assert 10 < added.std() < 33
