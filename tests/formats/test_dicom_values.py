"""Odd values of headers: read as they are meant, or refused with what was found."""

import numpy as np
import pytest
from dicom_series import (
    ct_dataset,
    derive,
    enhanced_dataset,
    read,
    save,
    save_series,
    write,
    written,
)
from pydicom import uid

from cddnet.errors import DicomError
from cddnet.formats._facts import read_facts
from cddnet.formats._parametric import RADIOLOGICAL_DEPTH, write_parametric_map
from cddnet.formats._parametric_read import read_parametric_map

ENCODINGS = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian]


def changed(**fields):
    dataset = ct_dataset()
    for keyword, value in fields.items():
        setattr(dataset, keyword, value)
    return dataset


def with_bytes(path, dataset, texts):
    """The file of a dataset, in which placeholders that pydicom accepts became other bytes."""
    save(dataset, path)
    content = path.read_bytes()
    for before, after in texts.items():
        assert len(before) == len(after)
        assert content.count(before) >= 1
        content = content.replace(before, after)
    path.write_bytes(content)
    return path


def test_a_stated_unit_in_any_writing_and_none_stated_are_hu(tmp_path):
    expected = read(save(ct_dataset(), tmp_path / "plain.dcm")).hu
    units = ["HU ", "hu", " Hu", "US", "us", "", "Unspecified", "Hounsfield Units", None]
    for number, unit in enumerate(units):
        dataset = changed(RescaleType=unit)
        if unit is None:
            del dataset.RescaleType
        volume = read(save(dataset, tmp_path / f"{number}.dcm"))
        np.testing.assert_array_equal(volume.hu, expected)
        assert volume.notes == ()


@pytest.mark.parametrize("unit", ["ED", "EDW", "Z_EFF", "MGML", "HU_MOD", "OD", "PCT", "us/cm"])
def test_another_unit_is_refused_by_its_name(tmp_path, unit):
    with pytest.raises(DicomError, match=rf"a\.dcm: its values are in {unit} \(RescaleType\)"):
        read(save(changed(RescaleType=unit), tmp_path / "a.dcm"))


@pytest.mark.parametrize(("unit", "fits"), [("US", True), ("hu", True), ("Z_EFF", False)])
def test_units_of_frames_are_those_of_slices(tmp_path, unit, fits):
    dataset = enhanced_dataset()
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.PixelValueTransformationSequence[0].RescaleType = unit
    path = save(dataset, tmp_path / "a.dcm")
    if fits:
        assert read(path).notes == ()
        return
    with pytest.raises(DicomError, match=f"frame 1: its values are in {unit}"):
        read(path)


@pytest.mark.parametrize("syntax", ENCODINGS)
def test_decimal_commas_are_points_and_written_as_such(tmp_path, syntax):
    dataset = changed(SliceThickness="2.5", PixelSpacing=["0.75", "0.75"], RescaleSlope="1.5")
    dataset.ImagePositionPatient = ["-179.500", "-20.125", "12.5"]
    dataset.file_meta.TransferSyntaxUID = syntax
    expected = read(save(dataset, tmp_path / "points.dcm"))
    places = b"-179.500\\-20.125\\12.5", b"-179,500\\-20,125\\12,5"
    texts = {places[0]: places[1], b"0.75\\0.75": b"0,75\\0,75", b"1.5 ": b"1,5 "}
    path = with_bytes(tmp_path / "commas.dcm", dataset, texts | {b"2.5 ": b"2,5 "})
    volume = read(path)
    assert volume.spacing_mm == expected.spacing_mm == (2.5, 0.75, 0.75)
    assert volume.origin_mm == expected.origin_mm
    np.testing.assert_array_equal(volume.hu, expected.hu)
    keywords = "ImagePositionPatient, PixelSpacing, RescaleSlope, SliceThickness"
    assert volume.notes == (f"decimal commas were read as points in {keywords}",)
    assert read_facts(path).thickness_mm == 2.5
    (result,) = written(write(derive(volume), tmp_path / "out"))
    assert list(result.PixelSpacing) == [0.75, 0.75]
    assert list(result.ImagePositionPatient) == [-179.5, -20.125, 12.5]
    assert read(tmp_path / "out").notes[0] != volume.notes[0]


def test_decimal_commas_of_frames(tmp_path):
    dataset = enhanced_dataset()
    expected = read(save(dataset, tmp_path / "points.dcm"))
    path = with_bytes(tmp_path / "commas.dcm", dataset, {b"0.7\\0.8": b"0,7\\0,8"})
    volume = read(path)
    assert volume.spacing_mm == expected.spacing_mm
    assert volume.notes == ("decimal commas were read as points in PixelSpacing",)
    (result,) = written(write(derive(volume), tmp_path / "out.dcm"))
    shared = result.SharedFunctionalGroupsSequence[0]
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == [0.7, 0.8]


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        # Thousands, or a decimal with three digits: nothing else in the header decides.
        ({b"-1024 ": b"-1,024"}, "RescaleIntercept is not a number but -1,024;"),
        ({b"1234.5": b"1,24.5"}, "RescaleSlope is not a number but 1,24.5;"),
        ({b"0.7\\0.8 ": b"0.7;0.8 "}, "PixelSpacing is not 2 numbers but 0.7;0.8;"),
        ({b"0.7\\0.8 ": b"0.7     "}, "PixelSpacing is not 2 numbers but 0.7;"),
    ],
)
def test_an_odd_number_is_shown_as_found(tmp_path, texts, found):
    slope = "1234.5" if b"1234.5" in texts else "1"
    path = with_bytes(tmp_path / "a.dcm", changed(RescaleSlope=slope), texts)
    with pytest.raises(DicomError) as caught:
        read(path)
    assert found in str(caught.value)


def test_what_may_be_a_name_is_not_shown(tmp_path):
    path = with_bytes(tmp_path / "a.dcm", changed(RescaleSlope="1234.5"), {b"1234.5": b"MEIER "})
    with pytest.raises(DicomError, match="RescaleSlope is not a number;") as caught:
        read(path)
    assert "MEIER" not in str(caught.value)


def tilted(degrees, digits, axis="column"):
    """Cosines of a tilted gantry, or of a turned field of view, rounded."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    values = (
        [1, 0, 0, 0, cosine, -sine] if axis == "column" else [cosine, sine, 0, -sine, cosine, 0]
    )
    return [float(np.round(value, digits)) for value in values]


@pytest.mark.parametrize(
    ("cosines", "digits"),
    [
        (tilted(15, 2), 2),
        (tilted(20.3, 2), 2),
        (tilted(7, 2, "row"), 2),
        ([0.71, 0.71, 0.0, -0.41, 0.41, 0.82], 2),
        ([0.707, 0.707, 0.0, -0.408, 0.41, 0.816], 3),
    ],
)
def test_rounded_cosines_become_directions(tmp_path, cosines, digits):
    volume = read(save(changed(ImageOrientationPatient=cosines), tmp_path / "a.dcm"))
    axes = np.array(volume.direction)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    # No direction is turned by more than rounding may have turned it.
    given = np.array(cosines).reshape(2, 3)
    assert np.abs(axes[[2, 1]] - given).max() <= 2 * 3**0.5 * 10**-digits
    assert [f"{digits} decimals" in note for note in volume.notes if "slices are" not in note] == [
        True
    ]


@pytest.mark.parametrize(
    "cosines",
    [
        # One digit, more error than rounding makes, and an error with all digits.
        [1, 0, 0, 0, 1.0, -0.3],
        [1, 0, 0, 0, 0.95, -0.26],
        [1, 0, 0, 0, 0.9702345, -0.2612345],
        [1, 0, 0, 0.02, 0.97, -0.26],
    ],
)
def test_wrong_cosines_stay_refused(tmp_path, cosines):
    with pytest.raises(DicomError, match="no pair of perpendicular unit vectors"):
        read(save(changed(ImageOrientationPatient=cosines), tmp_path / "a.dcm"))


def test_rounded_cosines_are_copied_as_they_were(tmp_path):
    datasets = []
    for index in range(3):
        dataset = ct_dataset(index)
        dataset.ImageOrientationPatient = tilted(15, 2)
        datasets.append(dataset)
    volume = read(save_series(tmp_path / "ct", datasets))
    results = written(write(derive(volume), tmp_path / "out"))
    assert [list(result.ImageOrientationPatient) for result in results] == [tilted(15, 2)] * 3
    write_parametric_map(derive(volume), tmp_path / "map.dcm", RADIOLOGICAL_DEPTH)
    assert read_parametric_map(tmp_path / "map.dcm").direction == volume.direction


def test_rounding_is_no_gantry_tilt(tmp_path):
    """Slices along the normal of a turned head: what rounding adds is not called a lean."""
    datasets = [ct_dataset(index) for index in range(8)]
    angle = np.radians(15.3)
    normal = np.array([0, np.sin(angle), np.cos(angle)])
    for index, dataset in enumerate(datasets):
        dataset.ImageOrientationPatient = tilted(15.3, 2)
        position = np.array([-20.0, -30.0, 0.0]) + 5 * index * normal
        dataset.ImagePositionPatient = [f"{value:.4f}" for value in position]
    volume = read(save_series(tmp_path / "ct", datasets))
    assert volume.volume_problems == ()
    assert len(volume.notes) == 1
    assert volume.spacing_mm[0] == pytest.approx(5.0, rel=1e-3)
