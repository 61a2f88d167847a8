"""CTVolume: lazy, frozen, and honest about what it cannot do."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from cddnet.errors import GeometryError
from cddnet.volume import CTVolume, Derivation

SPACING_MM = (2.5, 0.7, 0.8)
STEP = Derivation(label="halved", description="Half.", parameters=(("factor", "0.5"),), version="0")


@pytest.fixture
def hu(rng):
    return rng.normal(0, 100, (3, 5, 7)).astype(np.float32)


def test_an_array_comes_back_slice_by_slice(hu):
    volume = CTVolume.from_hu(hu, SPACING_MM, series_uid="1.2")
    assert volume.shape == (3, 5, 7)
    assert volume.series_uid == "1.2"
    assert np.array_equal(volume.hu, hu)
    assert all(np.array_equal(a, b) for a, b in zip(volume.slices(), hu, strict=True))


def test_one_slice_is_a_volume_of_depth_one(hu):
    volume = CTVolume.from_hu(hu[0], SPACING_MM)
    assert volume.shape == (1, 5, 7)
    assert np.array_equal(volume.read_slice(0), hu[0])


def test_whole_numbers_become_float32():
    volume = CTVolume.from_hu(np.array([[-1024, 3071]], np.int16), SPACING_MM)
    assert volume.hu.dtype == np.float32
    assert volume.hu.tolist() == [[[-1024.0, 3071.0]]]


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5, 7), (0, 5, 7), (5, 0)])
def test_other_arrays_are_refused_with_their_shape(shape):
    with pytest.raises(GeometryError) as refusal:
        CTVolume.from_hu(np.zeros(shape, np.float32), SPACING_MM)
    assert str(shape) in str(refusal.value)


def test_slices_are_read_when_they_are_asked_for(hu):
    read = []
    volume = CTVolume(
        shape=hu.shape,
        spacing_mm=SPACING_MM,
        read_slice=lambda index: (read.append(index), hu[index])[1],
    )
    slices = volume.slices()
    assert read == []
    next(slices)
    assert read == [0]
    assert np.array_equal(volume.hu, hu)
    assert read == [0, 0, 1, 2]


def test_padding_is_nowhere_unless_it_is_told(hu):
    assert not CTVolume.from_hu(hu, SPACING_MM).padding(1).any()
    padded = CTVolume.from_hu(hu, SPACING_MM, read_padding=lambda index: hu[index] > 0)
    assert np.array_equal(padded.padding(1), hu[1] > 0)
    assert padded.padding(1).any()


def test_a_derived_volume_leaves_its_source_alone(hu):
    source = CTVolume.from_hu(hu, SPACING_MM, series_uid="1.2", thickness_mm=3.0)
    once = source.derived(lambda index: source.read_slice(index) / 2, STEP)
    twice = once.derived(lambda index: once.read_slice(index) / 2, STEP)
    assert np.array_equal(twice.hu, hu / 4)
    assert np.array_equal(source.hu, hu)
    assert [len(v.derivation) for v in (source, once, twice)] == [0, 1, 2]
    assert (twice.spacing_mm, twice.series_uid, twice.thickness_mm) == (SPACING_MM, "1.2", 3.0)


def test_values_are_frozen(hu):
    volume = CTVolume.from_hu(hu, SPACING_MM)
    with pytest.raises(FrozenInstanceError):
        volume.series_uid = "1.3"


def test_positions_are_even_unless_they_are_told(hu):
    assert CTVolume.from_hu(hu, SPACING_MM).slice_positions_mm() == (0.0, 2.5, 5.0)
    told = CTVolume.from_hu(hu, SPACING_MM, positions_mm=(1.0, 3.5, 9.0))
    assert told.slice_positions_mm() == (1.0, 3.5, 9.0)


def test_work_across_slices_is_refused_where_they_are_no_volume(hu):
    CTVolume.from_hu(hu, SPACING_MM).require_whole()
    broken = CTVolume.from_hu(hu, SPACING_MM, volume_problems=("a gap after slice 1", "a tilt"))
    with pytest.raises(GeometryError, match="a gap after slice 1; a tilt"):
        broken.require_whole()
