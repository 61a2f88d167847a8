"""Full-dose slices: slabs of thin ones, never across a gap."""

from itertools import islice

import numpy as np
import pytest

from cddnet.errors import FormatError, GeometryError
from cddnet.training.slices import calibrated_geometry, filled, full_dose_slices, slab_volume
from cddnet.training.splits import load_slices
from cddnet.volume import CTVolume


def volume_of(hu, slice_mm, **fields):
    fields = {"thickness_mm": slice_mm, "series_uid": "1.2"} | fields
    return CTVolume.from_hu(hu, (slice_mm, 0.7, 0.7), **fields)


@pytest.fixture
def hu(rng):
    return rng.normal(40, 20, (12, 5, 7)).astype(np.float32)


def test_thin_slices_are_averaged_in_runs(hu):
    pieces = list(full_dose_slices(volume_of(hu, 1.0)))
    assert [piece.slice_index for piece in pieces] == [0, 5, 10]
    for piece, run in zip(pieces, (hu[:5], hu[5:10], hu[10:]), strict=True):
        assert np.abs(piece.hu - run.astype(np.float64).mean(axis=0)).max() <= 1e-4
        assert piece.hu.dtype == np.float32
        assert piece.series_uid == "1.2"
        assert piece.geometry.pixel_mm == 0.7


def test_a_run_ends_at_a_gap(hu):
    positions = (0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13)
    pieces = list(full_dose_slices(volume_of(hu, 1.0, positions_mm=tuple(map(float, positions)))))
    assert [piece.slice_index for piece in pieces] == [0, 5, 7]
    assert np.abs(pieces[1].hu - hu[5:7].mean(axis=0)).max() <= 1e-4


@pytest.mark.parametrize(
    ("slice_mm", "thickness_mm", "together"),
    [(5.0, 5.0, 1), (3.0, 3.0, 1), (2.5, 2.5, 2), (1.5, 3.0, 1), (1, 2, 2)],
)
def test_slabs_stay_within_their_thickness(hu, slice_mm, thickness_mm, together):
    pieces = list(full_dose_slices(volume_of(hu, slice_mm, thickness_mm=thickness_mm)))
    assert len(pieces) == 12 // together
    assert np.abs(pieces[0].hu - hu[:together].mean(axis=0)).max() <= 1e-4


def test_slabs_are_a_volume_of_the_same_slices(hu):
    hu[:, 0] = -3024
    positions = (0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13)
    volume = volume_of(
        hu,
        1.0,
        positions_mm=tuple(map(float, positions)),
        read_padding=lambda index: hu[index] == -3024,
    )
    slabs = slab_volume(volume)
    pieces = list(full_dose_slices(volume))
    assert slabs.shape == (3, 5, 7)
    for index, piece in enumerate(pieces):
        assert np.array_equal(filled(slabs, index), piece.hu)
    assert slabs.slice_positions_mm() == (2.0, 5.5, 11.0)
    assert (slabs.thickness_mm, slabs.series_uid) == (5.0, "1.2")


def test_slices_carry_their_series_own_noise_and_whether_the_body_is_cut(hu, tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()

    def read_all(folder):
        return (volume_of(hu, 5.0, series_uid=folder.name),)

    patients = {"A": ("a", "b"), "C": ("c",)}
    loaded = load_slices(
        patients, tmp_path, read_all, own=lambda volume: volume.series_uid, cut=["C"]
    )
    found = {(piece.own, piece.cut) for group in loaded.values() for piece in group}
    assert found == {("a", False), ("b", False), ("c", True)}
    plain = load_slices(patients, tmp_path, read_all)
    assert {(piece.own, piece.cut) for group in plain.values() for piece in group} == {
        (None, False)
    }


def test_every_slice_is_used_once(hu):
    pieces = list(full_dose_slices(volume_of(hu, 1.0)))
    total = sum(piece.hu * run for piece, run in zip(pieces, (5, 5, 2), strict=True))
    assert np.abs(total - hu.sum(axis=0)).max() <= 1e-3


def test_slices_are_read_as_they_are_needed(hu):
    read = []
    volume = CTVolume(
        shape=hu.shape,
        spacing_mm=(5.0, 0.7, 0.7),
        thickness_mm=5.0,
        read_slice=lambda index: (read.append(index), hu[index])[1],
    )
    list(islice(full_dose_slices(volume), 2))
    assert read == [0, 1]


def test_padding_becomes_air(hu):
    hu[:, 0] = -3024
    volume = volume_of(hu, 5.0, read_padding=lambda index: hu[index] == -3024)
    assert (filled(volume, 3)[0] == -1000).all()
    assert np.array_equal(filled(volume, 3)[1:], hu[3, 1:])
    assert all((piece.hu[0] == -1000).all() for piece in full_dose_slices(volume))


def test_pixels_that_are_not_square_are_refused(hu):
    volume = CTVolume.from_hu(hu, (5.0, 0.7, 0.8), thickness_mm=5.0)
    with pytest.raises(GeometryError, match=r"0\.700 x 0\.800"):
        calibrated_geometry(volume)


@pytest.mark.parametrize("thickness_mm", [None, 1.0, 8.0])
def test_the_noise_level_does_not_follow_the_thickness(hu, thickness_mm):
    volume = CTVolume.from_hu(hu, (5.0, 0.7, 0.7), thickness_mm=thickness_mm)
    assert calibrated_geometry(volume) == (0.7, 3.0)


def test_patients_keep_their_series_and_missing_folders_are_named(hu, tmp_path):
    (tmp_path / "a1").mkdir()
    (tmp_path / "a2").mkdir()

    def read_all(folder):
        return (volume_of(hu, 5.0, series_uid=folder.name), volume_of(hu[:2], 5.0, series_uid="x"))

    loaded = load_slices({"A": ("a1", "a2")}, tmp_path, read_all)
    assert [piece.series_uid for piece in loaded["A"]] == ["a1"] * 12 + ["x"] * 2 + ["a2"] * 12 + [
        "x"
    ] * 2
    with pytest.raises(FormatError, match=r"lacks 1 series folders: b; fetch"):
        load_slices({"A": ("a1",), "B": ("b",)}, tmp_path, read_all)
