"""The constant around what was measured: found on the edge, and only there a mask."""

import numpy as np
import pytest

from cddnet.intensity.background import (
    background,
    edge_constant,
    edge_of,
    touching_edge,
    with_background,
)
from cddnet.volume import CTVolume

SHAPE = (64, 72)
SPACING_MM = (2.0, 0.7, 0.7)
CONSTANTS = (-3024.0, -2048.0, -1500.0, -32768.0)


def field(constant, rng, noise_hu=12.0):
    """Tissue in a round field of view (H, W), the constant outside; and where it is outside."""
    y, x = np.mgrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j]
    empty = y**2 + x**2 > 1
    hu = np.rint(np.where(y**2 + x**2 > 0.5, -1000, 40) + noise_hu * rng.standard_normal(SHAPE))
    return np.where(empty, constant, hu).astype(np.float32), empty


@pytest.mark.parametrize("constant", CONSTANTS)
def test_outside_the_field_of_view_is_background(constant, rng):
    hu, empty = field(constant, rng)
    assert edge_constant(edge_of(hu), edge_of(hu)) == constant
    assert np.array_equal(background(hu), empty)


@pytest.mark.parametrize("slope", [1.0, 0.5, -2.0])
def test_stored_values_have_the_background_of_their_hu(slope, rng):
    hu, empty = field(-3024.0, rng)
    stored = np.rint((hu + 1024) / slope).astype(np.int16)
    constant = edge_constant(edge_of(stored), edge_of(hu))
    assert constant == -2000 / slope
    assert np.array_equal(touching_edge(stored == constant), empty)


def test_a_measured_pixel_of_the_same_value_stays_a_measurement(rng):
    hu, empty = field(-2048.0, rng)
    # A dark streak beside metal, cut at the lowest value that the scanner stores.
    hu[30:33, 35:38] = -2048
    assert np.array_equal(background(hu), empty)


@pytest.mark.parametrize(
    "hu",
    [
        np.full(SHAPE, -1024.0),
        np.full(SHAPE, -1000.0),
        -1000 + 300 * np.random.default_rng(1).standard_normal(SHAPE),
        np.rint(-2000 + 10 * np.random.default_rng(2).standard_normal(SHAPE)),
        np.where(np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) == 5, -2000.0, -1000.0),
    ],
    ids=["air at the floor", "air", "loud air", "air that is no HU", "one pixel"],
)
def test_air_and_noise_are_no_background(hu):
    assert edge_constant(edge_of(hu), edge_of(hu)) is None
    assert not background(hu).any()


def test_noise_below_air_hides_no_corner(rng):
    hu, empty = field(-3024.0, rng, noise_hu=150.0)
    assert (hu[~empty] < -1100).any()
    assert np.array_equal(background(hu), empty)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 2)])
def test_slices_without_an_inside_are_their_own_edge(shape):
    hu = np.full(shape, -3024.0)
    assert background(hu).all() == (hu.size >= 4)
    assert background(hu).shape == shape


def test_each_slice_has_its_own_background(rng):
    made = [field(constant, rng) for constant in (-3024.0, -2000.0, -2048.0)]
    full = np.where(made[2][1], -1000, made[2][0]).astype(np.float32)
    stack = np.stack([made[0][0], made[1][0], full])
    volume = with_background(CTVolume.from_hu(stack, SPACING_MM))
    assert np.array_equal(volume.padding(0), made[0][1])
    assert np.array_equal(volume.padding(1), made[1][1])
    assert not volume.padding(2).any()
    assert np.array_equal(volume.hu, stack)


def test_a_slice_and_its_padding_are_read_once(rng):
    hu, empty = field(-3024.0, rng)
    reads = []

    def read_slice(index):
        reads.append(index)
        return hu

    plain = CTVolume(shape=(9, *SHAPE), spacing_mm=SPACING_MM, read_slice=read_slice)
    volume = with_background(plain)
    assert reads == []
    for index in range(9):
        assert np.array_equal(volume.read_slice(index), hu)
        assert np.array_equal(volume.padding(index), empty)
    assert reads == list(range(9))
