"""Leaks: everything that only one patient can have, on one side only."""

import hashlib

import numpy as np
import pytest

from cddnet.training.leaks import LeakError, overlaps, require_apart
from cddnet.training.manifest import Manifest, PreparedSeries, StoredFile, slice_sha256


def series(name, patient, side="train", **marks):
    """A series that shares nothing with others unless told."""
    own = {
        "header_patient_digests": (f"h-{name}",),
        "study_digests": (f"s-{name}",),
        "series_digests": (f"u-{name}",),
        "frame_of_reference_digests": (f"f-{name}",),
        "slices": (f"p-{name}", ""),
        "low_slices": None,
    } | marks
    slices, low = own.pop("slices"), own.pop("low_slices")
    return PreparedSeries(
        name=name,
        side=side,
        patient_digest=patient,
        manufacturer="",
        scanner="",
        kernel="",
        collection="",
        shape=(len(slices), 3, 5),
        pixel_mm=0.7,
        spacing_mm=3.0,
        thickness_mm=3.0,
        positions_mm=tuple(3.0 * index for index in range(len(slices))),
        low_dose="simulated",
        full_file=StoredFile(name=f"{name}.npy", sha256="0", slices=slices),
        low_file=None if low is None else StoredFile(name="l.npy", sha256="0", slices=low),
        notes=(),
        volume_problems=(),
        **own,
    )


def manifest(*items):
    return Manifest(
        version="0", request="0", layout="tree", collections=(), warnings=(), series=items
    )


def test_patients_who_share_nothing_are_apart():
    items = [series("a", "A"), series("b", "B", "validation"), series("c", "C", "test")]
    assert require_apart(manifest(*items, series("a2", "A", study_digests=("s-a",)))) == ()


PLANTS = [
    ("the header's patient ID", {"header_patient_digests": ("h-a",)}),
    ("the study", {"study_digests": ("other", "s-a")}),
    ("the frame of reference", {"frame_of_reference_digests": ("x", "f-a")}),
    ("the series", {"series_digests": ("u-a",)}),
    ("the pixels of 1 slices", {"slices": ("q", "p-a")}),
    ("the pixels of 1 slices", {"low_slices": ("p-a", "")}),
]


@pytest.mark.parametrize(("what", "marks"), PLANTS)
def test_a_planted_leak_is_refused_and_named(what, marks):
    planted = manifest(series("a", "A"), series("x", "X"), series("b", "B", "test", **marks))
    with pytest.raises(LeakError) as error:
        require_apart(planted, {"a": "folder/one", "b": "folder/two"})
    text = str(error.value)
    assert all(word in text for word in (what, "folder/one", "folder/two", "--patients"))
    assert "(1 overlaps)" in text


@pytest.mark.parametrize(("what", "marks"), PLANTS)
def test_two_names_on_one_side_are_reported(what, marks):
    (overlap,) = require_apart(manifest(series("a", "A"), series("b", "B", **marks)))
    assert not overlap.is_leak
    assert (overlap.first.name, overlap.second.name) == ("a", "b")


def test_a_patient_on_two_sides_is_a_leak():
    with pytest.raises(LeakError, match="share the patient"):
        require_apart(manifest(series("a", "A"), series("b", "A", "validation")))


def test_shared_slices_are_counted_and_those_without_tissue_are_not():
    first = series("a", "A", slices=("1", "2", "3", ""))
    second = series("b", "B", "test", slices=("", "3", "2", ""))
    (overlap,) = overlaps(manifest(first, second))
    assert (overlap.what, overlap.shared) == ("the pixels", 2)


def test_a_leak_between_many_series_is_found_wherever_it_is():
    items = [series(f"n{i}", f"P{i // 3}", ("train", "test")[i // 3 % 2]) for i in range(30)]
    for first in (0, 7, 20):
        planted = list(items)
        marks = {"study_digests": (f"s-n{first}",)}
        planted.append(series("z", "Z", "validation", **marks))
        (overlap,) = overlaps(manifest(*planted))
        assert {overlap.first.name, overlap.second.name} == {f"n{first}", "z"}


def test_a_slice_is_known_by_its_pixels_and_size(rng):
    hu = rng.integers(-200, 300, (4, 6)).astype(np.int16)
    own = hashlib.sha256(b"4 x 6 int16 " + hu.astype("<i2").tobytes()).hexdigest()
    assert slice_sha256(hu) == slice_sha256(np.asfortranarray(hu)) == own
    assert len({own, slice_sha256(hu.reshape(6, 4)), slice_sha256(hu + np.int16(1))}) == 3


@pytest.mark.parametrize("hu", [[[-1024, -1000]], [[-500, -900]], [[0, 0]], [[-160, -160]]])
def test_air_and_single_values_are_nobodys(hu):
    assert slice_sha256(np.array(hu, np.int16)) == ""
    assert slice_sha256(np.array([[-499, -900]], np.int16)) != ""
